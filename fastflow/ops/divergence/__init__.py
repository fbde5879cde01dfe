"""The divergence of a field, exact or estimated with random probes."""

from .api import Divergence as Divergence
from .api import Estimator as Estimator
from .api import Method as Method
from .api import divergence as divergence
from .api import mean_and_stderr as mean_and_stderr
