"""fastflow: flow-matching ops for PyTorch, fused, and correct in every differentiation mode."""

from . import nn as nn
from . import paths as paths
from . import sampling as sampling
from .ops.activation import gelu as gelu
from .ops.activation import silu as silu
from .ops.activation import swiglu as swiglu
from .ops.attention import attention as attention
from .ops.attention import attention_jvp as attention_jvp
from .ops.divergence import Divergence as Divergence
from .ops.divergence import DivergenceOptions as DivergenceOptions
from .ops.divergence import divergence as divergence
from .ops.flow_step import flow_matching_loss as flow_matching_loss
from .ops.flow_step import interpolate as interpolate
from .ops.flow_step import target_velocity as target_velocity
from .ops.gate import gated_add as gated_add
from .ops.gate import gated_add_layer_norm as gated_add_layer_norm
from .ops.linear import linear as linear
from .ops.norm import layer_norm as layer_norm
from .ops.norm import rms_norm as rms_norm
from .ops.random import GaussianNoise as GaussianNoise
from .ops.replace import replace_ops as replace_ops
from .ops.replace import replace_sdpa as replace_sdpa
from .ops.rope import rope as rope
from .paths import PathSample as PathSample
from .sampling import Likelihood as Likelihood
from .sampling import classifier_free_guidance as classifier_free_guidance
from .sampling import log_likelihood as log_likelihood
from .sampling import mode_guidance as mode_guidance
from .sampling import sample_ode as sample_ode
from .streams import Stream as Stream

__version__ = "0.1.0"
