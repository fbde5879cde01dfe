"""``fastflow train``: train a model and print the summary."""

from ..train.config import Config
from ..train.loop import train


def run(config: Config) -> None:
    """Train as configured; print the summary, a value a line."""
    for name, value in train(config).items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    print(f"{'samples':20} {config.out / 'samples.png'}")
