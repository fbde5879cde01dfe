"""The divergence of a field, exact or estimated with random probes."""

from .api import Divergence as Divergence
from .api import divergence as divergence
from .options import DivergenceOptions as DivergenceOptions
from .options import Method as Method
