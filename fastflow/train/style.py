"""One look for all figures. They are built without pyplot, so they touch no global state and no display."""

from typing import Any

from .extras import extra

INK = "#1f2933"
FAINT = "#9aa5b1"
BLUE = "#2563eb"


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of this size in inches."""
    return extra("matplotlib.figure").Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")


def style_axes(axes: Any) -> None:
    """Draw the left and the bottom spine only, and the ticks in ink."""
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def add_grid(axes: Any) -> None:
    """Draw a faint grid."""
    axes.grid(True, color=FAINT, alpha=0.25, linewidth=0.6)


def add_title(axes: Any, title: str) -> None:
    """Set the title flush left, if there is one."""
    if title:
        axes.set_title(title, color=INK, fontsize=10, loc="left")
