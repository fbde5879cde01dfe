"""Sampling from a velocity and the density of its samples: ODE solvers, guidance, likelihood."""

from .adaptive import IntegrationError as IntegrationError
from .guidance import classifier_free_guidance as classifier_free_guidance
from .guidance import mode_guidance as mode_guidance
from .guidance import mode_seeking as mode_seeking
from .likelihood import Likelihood as Likelihood
from .likelihood import LikelihoodSolver as LikelihoodSolver
from .likelihood import log_likelihood as log_likelihood
from .ode import Solver as Solver
from .ode import Velocity as Velocity
from .sample import sample_ode as sample_ode
