"""Layer norm and RMS norm with modulation, differentiable in every mode."""

from .api import layer_norm as layer_norm
from .api import rms_norm as rms_norm
