"""A small trainer for flow-matching models. To read it, start at ``loop.py``."""

from .config import Config as Config
from .loop import train as train
from .runs import load_run as load_run
