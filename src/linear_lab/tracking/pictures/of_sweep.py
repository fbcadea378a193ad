"""Pictures of sweeps: the final metric over one or two swept numbers."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from linear_lab.tracking.pictures.canvas import COLOURS, DASHES, OPTIMIZERS, Array, Picture, finite, marker, span

WIDE = 10.0  # an axis may be logarithmic if the largest value is at least this many times the smallest


def rates(curves: dict[str, list[tuple[float, float | None]]], metric: str) -> bytes:
    """Draw the final metric over the learning rate, one curve through the medians per optimizer.

    ``curves`` holds pairs of rate and metric by optimizer, one per seed. If the metric is None or not finite, the run
    has diverged. If no metric is negative, the y axis is logarithmic, with 0 at its lower edge.
    """
    picture = Picture()
    arrays = [np.array(pairs, float).reshape(-1, 2) for pairs in curves.values()]  # None becomes nan
    table = np.concatenate([np.zeros((0, 2)), *(np.where(abs(p) < 1e100, p, math.nan) for p in arrays)])
    above = table[table[:, 1] > 0, 1]
    logarithmic = len(above) > 0 and not (table[:, 1] < 0).any()
    if logarithmic:
        table[table[:, 1] == 0, 1] = above.min() / 10
    tables = np.split(table, np.cumsum([len(points) for points in arrays]))[:-1]
    for i, (name, points) in enumerate(zip(curves, tables, strict=True)):
        completed = finite(points)
        distinct = np.unique(completed[:, 0])
        medians = [np.median(completed[completed[:, 0] == rate, 1]) for rate in distinct]
        style = marker(i) | {"color": OPTIMIZERS[i % 7]}
        picture.add(name, distinct, medians, linestyle=DASHES[i % 4], **style)
        picture.add("", *completed.T, linestyle="", **style | {"markersize": 4})
        # crosses at the upper edge, at one height per optimizer, since several may diverge at one rate
        lost = points[~np.isfinite(points[:, 1]), 0]
        cross = {"marker": "x", "linestyle": "", "markeredgewidth": 2, "transform": picture.axes.get_xaxis_transform()}
        picture.add("", lost, np.full(len(lost), 0.96 - 0.05 * (i % 8)), **style | cross)
    diverged = not np.isfinite(table).all()
    if diverged:
        picture.add("diverged", [], [], marker="x", linestyle="", markeredgewidth=2, color="0.4")
    _scale(picture.axes, "x", table[:, 0], logarithmic=True)
    _scale(picture.axes, "y", table[:, 1], logarithmic=logarithmic, room=0.25 * diverged)
    picture.label_axes("learning rate", metric)
    return picture.render("final metric of each learning rate")


def _scale(axes: Any, axis: str, values: Array, *, logarithmic: bool, room: float = 0.0) -> None:
    """Set limits and ticks of an axis, with ``room`` of its length above the values."""
    low, high = span(np.log10(values[np.isfinite(values)]) if logarithmic else values)
    high += room * (high - low)
    if not logarithmic:
        axes.set(**{f"{axis}lim": (low, high)})
        return
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (10**low, 10**high)})
    ticks: Any = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,), numticks=7))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


class Map(Picture):
    """The final metric as colour over two swept numbers; grey cells mark runs that diverged.

    ``x`` ``(X,)`` and ``y`` ``(Y,)`` are distinct values, ascending. ``values`` ``(Y, X)`` are metrics, NaN where no
    run was completed. ``diverged`` ``(Y, X)`` tells where runs diverged. ``names`` are those of x, y and the metric.
    ``stable`` ``(N, 2)`` are points of the line of the largest stable rate.
    """

    def __init__(
        self, x: Array, y: Array, values: Array, diverged: Array, names: tuple[str, str, str], stable: Array
    ) -> None:
        super().__init__()
        completed = values[np.isfinite(values)]
        norm: Normalize = Normalize()
        if len(completed) and (completed >= 0).all() and (completed > 0).any():
            least = max(completed[completed > 0].min(), completed.max() * 1e-12)
            values = np.where(values < least, least, values)  # 0 gets the lowest colour
            norm = LogNorm(least, max(completed.max(), least * 10))
        edges = [edges_of(axis) for axis in (x, y)]
        shown = self.axes.pcolormesh(*edges, np.ma.masked_invalid(values), norm=norm, cmap="viridis", rasterized=True)
        if diverged.any():
            lost = np.ma.masked_where(~diverged, np.ones_like(values))
            self.axes.pcolormesh(*edges, lost, vmin=0, vmax=1, cmap="Greys", alpha=0.35, rasterized=True)
            self.add("diverged", [], [], still=True, marker="s", linestyle="", color="0.65")
        low, high = (np.array([axis[end] for axis in edges]) for end in (0, -1))
        if ((low <= stable) & (stable <= high)).all(1).any():  # otherwise the legend would name an invisible line
            self.add("largest stable", stable[:, 0], stable[:, 1], still=True, linewidth=1.6, color=COLOURS[5])
        for axis, centers, limits in zip("xy", (x, y), edges, strict=True):
            if is_wide(centers):
                self.axes.set(**{f"{axis}scale": "log"})
            self.axes.set(**{f"{axis}lim": (limits[0], limits[-1])})
        self.figure.colorbar(shown, ax=self.axes, label=names[2], pad=0.02)
        self.label_axes(names[0], names[1])


def is_wide(values: Array) -> bool:
    """Tell whether an axis should be logarithmic: if ratios of ascending values vary less than differences."""
    if values[0] <= 0 or values[-1] / values[0] < WIDE:
        return False
    plain, ratios = np.diff(values), np.diff(np.log(values))
    return bool(ratios.std() / ratios.mean() < plain.std() / plain.mean())


def edges_of(values: Array) -> Array:
    """Return the edges of cells around ascending values, ``(N + 1,)``.

    >>> edges_of(np.array([1.0, 2.0, 4.0])).tolist()
    [0.5, 1.5, 3.0, 5.0]
    """
    wide = is_wide(values)
    values = np.log(values) if wide else values
    middle = (values[:-1] + values[1:]) / 2
    edges = np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
    return np.asarray(np.exp(edges) if wide else edges)
