"""Import libraries that only the trainer and the command line need."""

import importlib
from types import ModuleType


def extra(name: str) -> ModuleType:
    """Import a module of the ``train`` extra, or raise a ModuleNotFoundError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{library} is not installed; the trainer needs it: pip install 'fastflow[train]'", name=library
        ) from error
