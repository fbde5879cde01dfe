"""GELU, SiLU and SwiGLU with every derivative to second order."""

from .api import gelu as gelu
from .api import silu as silu
from .api import swiglu as swiglu
