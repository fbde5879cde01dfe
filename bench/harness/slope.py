"""Fit the exponent of a power law."""

from collections.abc import Sequence

import numpy as np


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the straight line through the points ``(log x, log y)``."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
