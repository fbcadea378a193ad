"""Pictures of a regression."""

import math
from typing import Any

import numpy as np

from linear_lab.tracking.pictures.canvas import COLOURS, EXACT, REACH, RED, Array, Picture, marker, short, span, subset

MAX_ROWS = 16  # coefficients that are shown


class Fit(Picture):
    """The line of a model of one feature and one target, with the data and the least-squares line.

    ``parts`` holds x and y, both ``(n,)``, of train and val, of which at most 1,000 rows each are shown. ``optimum`` is
    weight and bias of least squares, or None. The limits contain the data and the optimum.
    """

    def __init__(
        self, parts: dict[str, tuple[Array, Array]], x_name: str, y_name: str, optimum: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.names = short(y_name, 8), short(x_name, 8)
        for i, (part, (x, y)) in enumerate(parts.items()):
            rows = subset(len(x))
            self.add(part, x[rows], y[rows], still=True, linestyle="", **marker(i, len(rows)))
        self.x = np.array(span(*(x for x, _ in parts.values())))
        best = [] if optimum is None else [optimum[0] * self.x + optimum[1]]
        self.axes.set(xlim=tuple(self.x), ylim=span(*(y for _, y in parts.values()), *best))
        self.axes.locator_params(nbins=5)
        self.line = self.add("fit", self.x, self.x * math.nan, linewidth=2.5, **RED)
        for y in best:  # dashed and on top of the fit, so that both are visible when they agree
            self.add("least squares", self.x, y, **EXACT)
        self.label_axes(x_name, y_name)

    def draw(self, step: int, weight: float, bias: float) -> bytes:
        with np.errstate(all="ignore"):
            self.line.set_ydata(weight * self.x + bias)
        y, x = self.names
        return self.render(f"step {step}: {y} = {weight:.3g} {x} {'-' if bias < 0 else '+'} {abs(bias):.3g}")


class Agreement(Picture):
    """Predicted against true values of a regression; a dashed diagonal shows where they are equal.

    ``parts`` holds the true values ``(n, T)`` of train and val, of which at most 1,000 each are shown. If T > 1, each
    target is scaled so that its true values range from 0 to 1. The limits contain the true values; predictions outside
    of them are drawn at the edge.
    """

    def __init__(self, parts: dict[str, Array], names: list[str]) -> None:
        super().__init__()
        self.low, self.high = np.zeros(len(names)), np.ones(len(names))
        if len(names) > 1:
            every = np.concatenate(list(parts.values()))
            self.low, self.high = np.array([span(column, margin=0) for column in every.T]).T
        true = {part: self._points(values) for part, values in parts.items()}
        self.limits = span(*true.values())
        self.axes.set(xlim=self.limits, ylim=self.limits)
        self.axes.locator_params(nbins=5)
        self.dots = {
            part: self.add(part, x, x * math.nan, linestyle="", clip_on=False, **marker(i, len(x)))
            for i, (part, x) in enumerate(true.items())
        }
        self.add("exact", self.limits, self.limits, **EXACT)
        about = names[0] if len(names) == 1 else "values, scaled"
        self.label_axes(f"true {about}", f"predicted {about}")

    def draw(self, step: int, predicted: dict[str, Array]) -> bytes:
        """Draw the predictions ``(n, T)`` of each part, in the order of the true values."""
        for part, values in predicted.items():
            self.dots[part].set_ydata(np.clip(self._points(values), *self.limits))
        return self.render(f"step {step}: predicted and true")

    def _points(self, values: Array) -> Array:
        rows = subset(len(values), max(1, 1000 // len(self.low)))
        scaled = (np.asarray(values, float)[rows] - self.low) / (self.high - self.low)
        return np.asarray(scaled[:, :1000]).ravel()


class Coefficients(Picture):
    """Learned and optimal coefficients ``(k,)``, one row each; of more than 16 those with the largest optimum.

    The limits contain the optimum and the initial model; coefficients outside of them are drawn at the edge.
    ``standardized`` tells whether the columns are standardized.
    """

    def __init__(self, names: list[str], optimum: Array | None, standardized: bool = False) -> None:
        super().__init__()
        best = np.zeros(len(names)) if optimum is None else np.asarray(optimum, float)
        self.rows = np.sort(np.argsort(-abs(best), kind="stable")[:MAX_ROWS])
        self.optimal, self.has_optimum, at = best[self.rows], optimum is not None, np.arange(len(self.rows))
        self.about = f"{MAX_ROWS} of {len(names)} coefficients" if len(names) > MAX_ROWS else "coefficients"
        self.axes.axvline(0, color="0.6", linewidth=1)
        self.axes.set(ylim=(len(at) - 0.5, -0.5))
        self.axes.locator_params(nbins=5)
        self.axes.set_yticks(at, [short(names[row]) for row in self.rows], fontsize=10 if len(at) <= 10 else 8.5)
        self.axes.grid(axis="y", color="0.9")
        self.dots = self.add("learned", at * math.nan, at, linestyle="", marker="o", clip_on=False, **RED)
        if self.has_optimum:
            style: dict[str, Any] = {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": COLOURS[0]}
            self.add("optimal", self.optimal, at, linestyle="", **style)
        self.label_axes(f"coefficient{' of standardized columns' if standardized else ''}", "")
        self.limits: tuple[float, float] | None = None

    def draw(self, step: int, values: Array) -> bytes:
        """Draw the learned coefficients ``(k,)``."""
        values = np.asarray(values, float)[self.rows]
        shown = values[np.isfinite(values)]
        largest = abs(self.optimal).max()
        if not self.has_optimum and len(shown):  # then the median tells which coefficients are far off
            largest = 3 * np.sort(abs(shown))[(len(shown) - 1) // 2]
        if largest:
            shown = np.clip(shown, -REACH * largest, REACH * largest)
        if self.limits is None or (not self.has_optimum and span(shown, self.limits, margin=0) != self.limits):
            self.limits = span(self.optimal, [0], shown, margin=0.06 if self.limits is None else 0.5)
            self.axes.set(xlim=self.limits)
            self.background = None
        self.dots.set_xdata(np.clip(values, *self.limits))
        return self.render(f"step {step}: {self.about}")
