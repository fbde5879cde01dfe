"""The pictures of a run: samples, the loss curve and a histogram."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import DataSpec
from .files import replacing
from .style import BLUE, FAINT, INK, add_grid, add_title, new_figure, style_axes

_MAX_COLUMNS = 100
_MAX_PIXELS = 1 << 26
_MAX_INCHES = 400  # at 160 pixels an inch: Matplotlib draws no side of 2^16 pixels


def plot_samples(
    file: Path, spec: DataSpec, x: Tensor, y: Tensor | None = None, *, title: str = "", real: Tensor | None = None
) -> None:
    """Write a PNG of samples: points as a scatter plot, images as a grid with a labelled row for each class.

    Args:
        file: file to write.
        spec: description of the data.
        x: samples ``[N, *shape]``, in the data's own units.
        y: labels ``[N]``.
        title: title of the picture.
        real: real points to show behind the samples; ignored for images.
    """
    if spec.kind == "points":
        _scatter(file, x, title, real)
    else:
        _grid(file, spec, x, y, title)


def check_picture(spec: DataSpec, num: int, y: Tensor | None = None) -> None:
    """Raise a ValueError if a picture of ``num`` samples, with labels ``[num]`` or None, would be too large to draw."""
    if spec.kind == "points":
        return
    height, width = spec.shape[1:]
    rows = _rows(num, y)
    columns = max(len(index) for _, index in rows)
    inches = _side(height) * max(len(rows), columns)
    if inches > _MAX_INCHES or len(rows) * columns * (height + _gap(height)) * (width + _gap(height)) > _MAX_PIXELS:
        raise ValueError(f"a picture of {len(rows)} × {columns} samples is too large: write an .npz file")


def plot_losses(file: Path, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Write a PNG of the training loss: every step faintly, and the running mean."""
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=BLUE, alpha=0.18, linewidth=0.6, label="each step")
    width = max(1, len(losses) // 40)
    if len(losses) > width:
        mean = np.convolve(losses, np.full(width, 1.0 / width), mode="valid")
        label = f"mean of {width} steps"
        axes.plot(steps[width - 1 :], mean, color=BLUE, linewidth=1.8, label=label)
    axes.set(xlabel="step", ylabel="flow-matching loss", xlim=(0, max(steps, default=1)))
    if losses:  # none if the metrics of a finished run are lost
        low, high = np.quantile(losses, (0.0, 0.995))
        axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.05 * (high - low) + 1e-12)
    add_grid(axes)
    axes.legend(frameon=False, labelcolor=INK)
    style_axes(axes)
    _save(figure, file)


def plot_histogram(file: Path, values: Tensor, name: str) -> None:
    """Write a PNG with the histogram of values ``[N]`` and their mean."""
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.hist(values.numpy(), bins=max(10, round(len(values) ** 0.5)), color=BLUE, alpha=0.7)
    axes.axvline(values.mean().item(), color=INK, linewidth=1.2, label=f"mean {values.mean().item():.3f}")
    axes.set(xlabel=name, ylabel="samples")
    axes.legend(frameon=False, labelcolor=INK)
    style_axes(axes)
    _save(figure, file)


def _grid(file: Path, spec: DataSpec, x: Tensor, y: Tensor | None, title: str) -> None:
    rows = _rows(len(x), y)
    names = [spec.class_names[label] if label is not None else "" for label, _ in rows]
    images = [_displayable(spec, x[index]) for _, index in rows]
    columns = max(map(len, images))
    height, width = images[0].shape[1:3]
    gap = _gap(height)
    canvas = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), dtype=np.float32)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image

    side = _side(height)
    figure = new_figure(columns * side + 1.0, len(rows) * side + (0.6 if title else 0.2))
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(rows))], names)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    add_title(axes, title)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as partial:
        figure.savefig(partial)


def _gap(height: int) -> int:
    """Return the pixels between two images."""
    return max(1, round(height / 10))


def _side(height: int) -> float:
    """Return the inches from one image to the next."""
    return 0.42 if height <= 16 else 0.6


def _rows(num: int, y: Tensor | None) -> list[tuple[int | None, Tensor]]:
    """Return class and indices of each row: rows for each class, or rows of equal length if there are no classes."""
    if y is None:
        columns = max(1, round(num**0.5))
        return [(None, part) for part in torch.arange(num).split(columns)]
    members = [(int(label), (y == label).nonzero()[:, 0]) for label in y.unique()]
    return [(label, part) for label, index in members for part in index.split(_MAX_COLUMNS)]


def _displayable(spec: DataSpec, x: Tensor) -> Any:
    """Return RGB ``[N, H, W, 3]`` in [0, 1]; of latents the first channel, from -2 to 2 standard deviations."""
    if spec.kind == "latents":
        x = 0.5 + 0.25 * (x[:, :1] - spec.mean) / spec.std
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
    return x.clamp(0.0, 1.0).permute(0, 2, 3, 1).float().numpy()


def _scatter(file: Path, x: Tensor, title: str, real: Tensor | None) -> None:
    figure = new_figure(4.8, 4.8)
    axes = figure.add_subplot()
    clouds = [("samples", x, BLUE)] if real is None else [("data", real, FAINT), ("samples", x, BLUE)]
    for label, points, colour in clouds:
        second = points[:, 1] if points.shape[1] > 1 else torch.zeros(len(points))
        axes.scatter(points[:, 0], second, s=4, color=colour, alpha=0.5, linewidths=0, label=label)
    if real is not None:
        axes.legend(
            frameon=False,
            labelcolor=INK,
            fontsize=9,
            markerscale=2.5,
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1, 1),
        )
    axes.set_aspect("equal", adjustable="box")
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    add_grid(axes)
    axes.set_axisbelow(True)
    add_title(axes, title)
    style_axes(axes)
    _save(figure, file)
