"""A trainer for flow-matching models that one reads from top to bottom: start at ``loop.py``."""

from fastflow.train.config import Config as Config
from fastflow.train.loop import train as train
from fastflow.train.runs import load_run as load_run
