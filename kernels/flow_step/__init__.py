"""The flow step: interpolation, velocity target and loss from six coefficients of time."""
