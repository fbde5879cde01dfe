"""Errors of a run that the user can act on; the command line prints them in one line."""


class RunError(RuntimeError):
    """Base class of the errors below."""


class NonFiniteError(RunError):
    """Raised if a loss, a gradient or a weight becomes infinite or NaN."""


class DamagedCheckpointError(RunError):
    """Raised if a checkpoint is incomplete, altered or does not fit its run."""


class UnsupportedCheckpointError(RunError):
    """Raised if an undamaged checkpoint was written by another version of fastflow, which this one cannot read."""


class RunInUseError(RunError):
    """Raised if another process trains in the folder."""
