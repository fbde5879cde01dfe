"""The pictures of a run. Figures are built without pyplot, so nothing here touches a global state or a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import DataSpec
from .extras import extra

_INK = "#1f2933"
_FAINT = "#9aa5b1"
_BLUE = "#2563eb"
_MAX_ROWS = 16


def plot_samples(
    file: Path, spec: DataSpec, x: Tensor, y: Tensor | None = None, *, title: str = "", real: Tensor | None = None
) -> None:
    """A PNG of samples ``[N, *shape]``: points as a scatter, images as a grid with a labelled row for each class.

    Args:
        file: where to.
        spec: what the samples are.
        x: the samples, in the data's own units.
        y: labels ``[N]``.
        title: what stands above.
        real: real points to show behind the samples; of no use to images.
    """
    if spec.kind == "points":
        _scatter(file, x, title, real)
    else:
        _grid(file, spec, x, y, title)


def plot_losses(file: Path, steps: Sequence[int], losses: Sequence[float]) -> None:
    """A PNG of the training loss: every step faintly, and its running mean."""
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=_BLUE, alpha=0.18, linewidth=0.6, label="each step")
    width = max(1, len(losses) // 40)
    if len(losses) > width:
        mean = np.convolve(losses, np.full(width, 1.0 / width), mode="valid")
        label = f"mean of {width} steps"
        axes.plot(steps[width - 1 :], mean, color=_BLUE, linewidth=1.8, label=label)
    axes.set(xlabel="step", ylabel="flow-matching loss", xlim=(0, max(steps, default=1)))
    low, high = np.quantile(losses, (0.0, 0.995))
    axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.05 * (high - low) + 1e-12)
    axes.grid(True, color=_FAINT, alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, labelcolor=_INK)
    _style(axes)
    figure.savefig(file)


def plot_histogram(file: Path, values: Tensor, name: str) -> None:
    """A PNG of how values ``[N]`` are distributed, with their mean."""
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.hist(values.numpy(), bins=max(10, round(len(values) ** 0.5)), color=_BLUE, alpha=0.7)
    axes.axvline(values.mean().item(), color=_INK, linewidth=1.2, label=f"mean {values.mean().item():.3f}")
    axes.set(xlabel=name, ylabel="samples")
    axes.legend(frameon=False, labelcolor=_INK)
    _style(axes)
    figure.savefig(file)


def _grid(file: Path, spec: DataSpec, x: Tensor, y: Tensor | None, title: str) -> None:
    rows = _rows(x, y)
    names = [spec.class_names[int(label)] if label is not None else "" for label, _ in rows]
    images = [_displayable(spec, members) for _, members in rows]
    columns = max(map(len, images))
    height, width = images[0].shape[1:3]
    gap = max(1, round(height / 10))
    canvas = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), dtype=np.float32)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image

    side = 0.42 if height <= 16 else 0.6
    figure = _figure(columns * side + 1.0, len(rows) * side + (0.6 if title else 0.2))
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(rows))], names)
    axes.tick_params(length=0, colors=_INK, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, color=_INK, fontsize=10, loc="left")
    figure.savefig(file)


def _rows(x: Tensor, y: Tensor | None) -> list[tuple[int | None, Tensor]]:
    """(label, images) of each row: one row a class, or rows of equal length where there are no classes."""
    if y is None:
        columns = max(1, round(len(x) ** 0.5))
        return [(None, part) for part in x.split(columns)]
    return [(int(label), x[y == label]) for label in y.unique()[:_MAX_ROWS]]


def _displayable(spec: DataSpec, x: Tensor) -> Any:
    """Images as RGB ``[N, H, W, 3]`` in [0, 1]; of latents the first channel, two standard deviations each way."""
    if spec.kind == "latents":
        x = 0.5 + 0.25 * (x[:, :1] - spec.mean) / spec.std
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
    return x.clamp(0.0, 1.0).permute(0, 2, 3, 1).float().numpy()


def _scatter(file: Path, x: Tensor, title: str, real: Tensor | None) -> None:
    figure = _figure(4.8, 4.8)
    axes = figure.add_subplot()
    clouds = [("samples", x, _BLUE)] if real is None else [("data", real, _FAINT), ("samples", x, _BLUE)]
    for label, points, colour in clouds:
        second = points[:, 1] if points.shape[1] > 1 else torch.zeros(len(points))
        axes.scatter(points[:, 0], second, s=4, color=colour, alpha=0.5, linewidths=0, label=label)
    if real is not None:
        axes.legend(
            frameon=False,
            labelcolor=_INK,
            fontsize=9,
            markerscale=2.5,
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1, 1),
        )
    axes.set_aspect("equal", adjustable="box")
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    axes.grid(True, color=_FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, color=_INK, fontsize=10, loc="left")
    _style(axes)
    figure.savefig(file)


def _figure(width: float, height: float) -> Any:
    return extra("matplotlib.figure").Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")


def _style(axes: Any) -> None:
    axes.tick_params(colors=_INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
