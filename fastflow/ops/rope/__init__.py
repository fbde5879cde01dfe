"""Rotary position embedding with every derivative to second order."""

from .api import rope as rope
