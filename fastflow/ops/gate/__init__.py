"""The gated residual, alone and with the norm that follows it, with every derivative to second order."""

from .api import gated_add as gated_add
from .api import gated_add_layer_norm as gated_add_layer_norm
