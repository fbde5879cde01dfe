"""``python -m fastflow``: the command line."""

from .cli import main

main()
