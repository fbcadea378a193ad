"""A picture of many runs: what two swept numbers lead to."""

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from linear_lab.tracking.figures.canvas import COLOURS, Array, Picture

WIDE = 10.0  # ratio of the largest to the smallest value from which an axis may be logarithmic


class Map(Picture):
    """The final metric as colour over two swept numbers; runs that diverged are marked.

    Args:
        x: the distinct values of one number, ascending, ``(X,)``.
        y: of the other, ``(Y,)``.
        values: the metric, ``(Y, X)``; NaN where no run was completed.
        diverged: where runs diverged, ``(Y, X)``.
        names: of x, y and the metric.
        stable: points of the line of the largest stable rate, ``(N, 2)``.
    """

    def __init__(
        self, x: Array, y: Array, values: Array, diverged: Array, names: tuple[str, str, str], stable: Array
    ) -> None:
        super().__init__()
        finite = values[np.isfinite(values)]
        norm: Normalize = Normalize()
        if len(finite) and (finite >= 0).all() and (finite > 0).any():
            least = max(finite[finite > 0].min(), finite.max() * 1e-12)
            values = np.where(values < least, least, values)  # 0 lies at the lower end
            norm = LogNorm(least, max(finite.max(), least * 10))
        edges = [edges_of(axis) for axis in (x, y)]
        shown = self.axes.pcolormesh(*edges, np.ma.masked_invalid(values), norm=norm, cmap="viridis", rasterized=True)
        if diverged.any():
            lost = np.ma.masked_where(~diverged, np.ones_like(values))
            self.axes.pcolormesh(*edges, lost, vmin=0, vmax=1, cmap="Greys", alpha=0.35, rasterized=True)
            self.add("diverged", [], [], still=True, marker="s", linestyle="", color="0.65")
        low, high = (np.array([axis[end] for axis in edges]) for end in (0, -1))
        if ((low <= stable) & (stable <= high)).all(1).any():  # else the legend would name what is not to be seen
            self.add("largest stable", stable[:, 0], stable[:, 1], still=True, linewidth=1.6, color=COLOURS[5])
        for axis, centers, limits in zip("xy", (x, y), edges, strict=True):
            if is_wide(centers):
                self.axes.set(**{f"{axis}scale": "log"})
            self.axes.set(**{f"{axis}lim": (limits[0], limits[-1])})
        self.figure.colorbar(shown, ax=self.axes, label=names[2], pad=0.02)
        self.explain(names[0], names[1])


def is_wide(values: Array) -> bool:
    """Tell whether an axis is better logarithmic: for ascending values that are more even by their ratios."""
    if values[0] <= 0 or values[-1] / values[0] < WIDE:
        return False
    plain, ratios = np.diff(values), np.diff(np.log(values))
    return bool(ratios.std() / ratios.mean() < plain.std() / plain.mean())


def edges_of(values: Array) -> Array:
    """Return the edges of cells around ascending values, ``(N + 1,)``.

    >>> edges_of(np.array([1.0, 2.0, 4.0])).tolist()
    [0.5, 1.5, 3.0, 5.0]
    """
    values = np.log(values) if (wide := is_wide(values)) else values
    middle = (values[:-1] + values[1:]) / 2
    edges: Array = np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
    return np.asarray(np.exp(edges)) if wide else edges
