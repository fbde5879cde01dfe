"""Probability paths, their training times, and conversions between their parametrisations."""

from .affine import Coefficients as Coefficients
from .affine import Path as Path
from .affine import PathSample as PathSample
from .convert import Quantity as Quantity
from .convert import convert as convert
from .registry import NAMES as NAMES
from .registry import PathName as PathName
from .registry import build as build
from .schedules import VP as VP
from .schedules import CondOT as CondOT
from .schedules import Cosine as Cosine
from .schedules import Independent as Independent
from .schedules import LinearVP as LinearVP
from .schedules import Polynomial as Polynomial
from .schedules import SchrodingerBridge as SchrodingerBridge
from .schedules import SigmaMin as SigmaMin
from .schedules import Tube as Tube
from .times import TimeDistribution as TimeDistribution
from .times import sample_times as sample_times
