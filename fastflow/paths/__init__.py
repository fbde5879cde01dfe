"""Probability paths, the times at which they are trained, and conversions between their parametrisations."""

from .affine import VP as VP
from .affine import Coefficients as Coefficients
from .affine import CondOT as CondOT
from .affine import Cosine as Cosine
from .affine import Independent as Independent
from .affine import LinearVP as LinearVP
from .affine import Path as Path
from .affine import PathSample as PathSample
from .affine import Polynomial as Polynomial
from .affine import Quantity as Quantity
from .affine import SchrodingerBridge as SchrodingerBridge
from .affine import SigmaMin as SigmaMin
from .affine import TimeDistribution as TimeDistribution
from .affine import convert as convert
from .affine import sample_times as sample_times
