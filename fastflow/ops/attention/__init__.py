"""Softmax attention with every derivative to second order."""

from .api import attention as attention
from .api import attention_jvp as attention_jvp
