"""Sampling from a velocity and measuring its density: ODE solvers, guidance, likelihood."""

from .guidance import classifier_free_guidance as classifier_free_guidance
from .guidance import mode_guidance as mode_guidance
from .guidance import mode_seeking as mode_seeking
from .likelihood import Likelihood as Likelihood
from .likelihood import log_likelihood as log_likelihood
from .ode import sample_ode as sample_ode
