"""Pictures of the loss over weight and bias, with the paths of optimizers."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.lines import Line2D

from linear_lab.tracking.pictures import canvas
from linear_lab.tracking.pictures.canvas import REACH, Array, Picture, finite, span

Loss = Callable[[Array, Array], Array]  # of weights and biases, (n,) each

GRID = 32  # points per axis at which the loss is evaluated
PALE = ListedColormap(0.35 + 0.65 * colormaps["viridis"](np.linspace(0, 1, 256))[:, :3])  # paths stand out


class Landscape(Picture):
    """The loss over weight and bias: the base of `Surface` and `paths`."""

    def __init__(self, loss: Loss, optimum: tuple[float, float] | None) -> None:
        super().__init__()
        self.loss, self.optimum = loss, np.array([] if optimum is None else [optimum], float).reshape(-1, 2)
        self.limits: Array | None = None  # (low, high) x (weight, bias)
        self.contours: list[Any] = []

    def mark_optimum(self) -> None:
        if len(self.optimum):
            style: dict[str, Any] = {"marker": "*", "markersize": 13, "color": "white", "markeredgecolor": "black"}
            self.add("optimum", *self.optimum.T, linestyle="", **style)

    def widen_limits(self, paths: Iterable[Array]) -> None:
        """Widen the limits if the paths leave them, and only then evaluate the loss again."""
        points = np.concatenate([*map(self._points_to_show, paths), self.optimum])
        low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else np.zeros((2, 2))
        if (old := self.limits) is None:
            flat = (high - low <= 1e-13 * max(high - low)) * max(high - low) / 2  # as wide as the other axis
            self.limits = np.array([span(axis, margin=0.2) for axis in zip(low - flat, high + flat, strict=True)]).T
        elif (low < old[0]).any() or (high > old[1]).any():
            width = np.maximum(high, old[1]) - np.minimum(low, old[0])
            low, high = low - width * np.where(low < old[0], 0.5, 0.1), high + width * np.where(high > old[1], 0.5, 0.1)
            self.limits = np.array([np.minimum(low, old[0]), np.maximum(high, old[1])])
        else:
            return
        self._draw_loss(self.limits)

    def set_path(self, line: Line2D, path: Array, edge: float = 100) -> None:
        """Set the points of a line, clipped at ``edge`` widths outside of the limits, since rendering may overflow."""
        assert self.limits is not None
        if len(path) > 1000:  # keep more of the first steps, which are the longest
            path = path[np.unique(np.geomspace(1, len(path), 1000).astype(int)) - 1]
        width = edge * (self.limits[1] - self.limits[0])
        line.set_data(*np.clip(path, self.limits[0] - width, self.limits[1] + width).T)

    def _points_to_show(self, path: Array) -> Array:
        """Return the points of a path that the limits must contain: finite points that do not diverge."""
        path = finite(path)
        if not len(path):
            return path
        # without an optimum, the first half of the path gives the scale
        centre, scale = (self.optimum, path[:1]) if len(self.optimum) else (path[:1], path[: max(3, len(path) // 2)])
        reach = REACH * max(np.hypot(*(scale - centre).T).max(), 1e-3 * np.hypot(*centre[0]))
        return path[np.hypot(*(path - centre).T) <= reach] if reach else path

    def _draw_loss(self, limits: Array) -> None:
        weights, biases = (axis.reshape(-1) for axis in np.meshgrid(*np.linspace(limits[0], limits[1], GRID).T))
        with np.errstate(all="ignore"):
            values = self.loss(np.append(weights, self.optimum[:, 0]), np.append(biases, self.optimum[:, 1]))
            values, at_optimum = values[: GRID**2], values[GRID**2 :]
            least = [values.min(where=np.isfinite(values), initial=np.inf), *at_optimum]
            above = values.reshape(GRID, GRID) - min(least)
        measured = above < 1e290
        most = above.max(where=measured, initial=0.0)
        top = math.ceil(2 * math.log10(most if most > 1e-290 else 1.0)) / 2
        fine = refinement()
        levels = 10 ** np.arange(top - 4, top + 0.1, 0.5)
        above = np.clip(fine @ np.where(measured, above, levels[-1]) @ fine.T, levels[0], levels[-1])
        for old in self.contours:
            old.remove()
        across, up = np.linspace(limits[0], limits[1], len(fine)).T
        filled = self.axes.contourf(across, up, above, levels, norm=LogNorm(levels[0], levels[-1]), cmap=PALE)
        bar = self.figure.colorbar(filled, ax=self.axes, label="loss above its minimum", pad=0.02)
        self.contours = [bar, filled]
        decades = 10.0 ** np.arange(math.ceil(top - 4), math.floor(top) + 1)
        bar.set_ticks(decades.tolist(), labels=[f"{decade:g}" for decade in decades])
        bar.minorticks_off()
        inner = levels[(levels > above.min()) & (levels < above.max())]
        if len(inner):
            self.contours.append(self.axes.contour(across, up, above, inner, colors="white", linewidths=0.6))
        self.axes.set(xlim=limits[:, 0], ylim=limits[:, 1])
        self.axes.locator_params(nbins=5)
        self.background = None


def refinement(points: int = GRID, finer: int = 4) -> Array:
    """Return the matrix ``(finer * points, points)`` of cubic interpolation through the four nearest grid points.

    It is exact for a quadratic loss; contours on the coarse grid would break its narrow valleys into pieces.
    """
    at = np.linspace(0, points - 1, finer * points)
    first, matrix = np.clip(at.astype(int) - 1, 0, points - 4), np.zeros((len(at), points))
    for i in range(4):
        weights = [(at - first - j) / (i - j) for j in range(4) if j != i]
        matrix[np.arange(len(at)), first + i] = np.prod(weights, axis=0)
    return matrix


class Surface(Landscape):
    """The loss over weight and bias, the path of the optimizer on it, and the optimum.

    Colours show the logarithm of the loss above its minimum. The limits contain path and optimum, and widen only when
    the path leaves them. A diverging path is clipped at 3 times the distance from its start to the optimum.
    ``loss(weights, biases)`` is called with 32 x 32 points and the optimum whenever the limits change.
    """

    def __init__(self, loss: Loss, optimum: tuple[float, float] | None) -> None:
        super().__init__(loss, optimum)
        self.path = self.add("", [], [], color="black", linewidth=1.5)
        self.mark_optimum()
        edge: dict[str, Any] = {"markeredgecolor": "black", "linestyle": "", "markersize": 8}
        self.start = self.add("start", [], [], marker="o", color=canvas.COLOURS[4], **edge)
        self.now = self.add("now", [], [], marker="^", **canvas.RED, **edge)
        self.label_axes("weight", "bias")

    def draw(self, step: int, path: Array) -> bytes:
        """Draw the finite points of the path ``(n, 2)`` of weight and bias."""
        self.widen_limits([path])
        points = finite(path)
        self.set_path(self.path, points)
        self.set_path(self.start, points[:1], edge=0)
        self.set_path(self.now, points[-1:], edge=0)  # at the edge if outside of the limits
        weight, bias = path[-1] if len(path) else (math.nan, math.nan)
        return self.render(f"step {step}: weight {weight:.3g}, bias {bias:.3g}")


def paths(loss: Loss, optimum: tuple[float, float] | None, paths: dict[str, list[Array]]) -> bytes:
    """Draw the paths ``(n, 2)`` of all runs, by optimizer; each optimizer has one colour and dash."""
    picture = Landscape(loss, optimum)
    picture.widen_limits(path for runs in paths.values() for path in runs)
    for i, (name, runs) in enumerate(paths.items()):
        style: dict[str, Any] = {"color": canvas.OPTIMIZERS[i % 7], "linestyle": canvas.DASHES[i % 4], "linewidth": 1.6}
        for j, path in enumerate(runs):
            picture.set_path(picture.add("" if j else name, [], [], **style), finite(path))
    picture.mark_optimum()
    picture.label_axes("weight", "bias")
    return picture.render("paths of the optimizers")
