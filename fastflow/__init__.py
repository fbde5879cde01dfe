"""fastflow: flow-matching ops for PyTorch, fused, and correct in every differentiation mode."""

from fastflow import nn as nn
from fastflow import paths as paths
from fastflow.guidance import classifier_free_guidance as classifier_free_guidance
from fastflow.guidance import mode_guidance as mode_guidance
from fastflow.likelihood import log_likelihood as log_likelihood
from fastflow.ops.attention import attention as attention
from fastflow.ops.attention import attention_jvp as attention_jvp
from fastflow.ops.attention import replace_sdpa as replace_sdpa
from fastflow.ops.divergence import divergence as divergence
from fastflow.ops.flow_step import flow_matching_loss as flow_matching_loss
from fastflow.ops.flow_step import interpolate as interpolate
from fastflow.ops.flow_step import target_velocity as target_velocity
from fastflow.ops.random import GaussianNoise as GaussianNoise
from fastflow.solvers import sample_ode as sample_ode

__version__ = "0.1.0"
