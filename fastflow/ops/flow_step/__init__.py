"""The conditional flow-matching step: interpolation, velocity target and loss."""

from .api import AffinePath as AffinePath
from .api import Noise as Noise
from .api import flow_matching_loss as flow_matching_loss
from .api import interpolate as interpolate
from .api import target_velocity as target_velocity
