"""The linear layer with every derivative to second order."""

from .api import linear as linear
