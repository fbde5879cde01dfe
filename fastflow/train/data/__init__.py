"""Load training data: images, latents and points, built in or from files."""

from .datasets import ArrayData as ArrayData
from .datasets import Dataset as Dataset
from .datasets import PointData as PointData
from .datasets import Samples as Samples
from .load import load_data as load_data
from .spec import DataSpec as DataSpec
