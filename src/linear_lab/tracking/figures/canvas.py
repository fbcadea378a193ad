"""Pictures of a linear model: arrays in, PNG out.

A picture is built once and redrawn often: what stays is rendered once and kept, a redraw adds what moves.
"""

import io
import math
import warnings
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

REACH = 3  # limits hold nothing that is further off than this many times what is known
ROWS = 16  # coefficients that are shown
# Okabe and Ito: told apart by colour-blind people too
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
# and these stand out on a loss surface too
OPTIMIZERS = ["#000000", "#56B4E9", "#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#009E73"]
DASHES = ["-", "--", "-.", ":"]
RED: dict[str, Any] = {"color": COLOURS[5]}
EXACT: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}


def look(i: int, rows: int = 0) -> dict[str, Any]:
    """Marker and colour of the i-th of several, smaller where there are many rows."""
    return {"marker": "o^sDvP<>"[i % 8], "color": COLOURS[i % 8], "markersize": 4 if rows > 50 else 6}


def cut(name: str, length: int = 14) -> str:
    """Shorten a name in its middle to one line, in which ``$`` is a dollar and not mathematics."""
    name, end = " ".join(name.split()), (length - 1) // 2  # columns often differ in their last characters only
    return (name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}").replace("$", r"\$")


def spread(rows: int, most: int = 1000) -> Array:
    """Give the indices of at most so many rows, evenly spaced: ``(min(rows, most),)``."""
    return np.linspace(0, rows - 1, min(rows, most)).astype(int)


def span(*values: Any, margin: float = 0.06) -> tuple[float, float]:
    """Limits that hold all finite values with a margin, and are apart where the values are not."""
    flat = np.concatenate([np.asarray(v, float).ravel() for v in values])
    flat = np.clip(flat[np.isfinite(flat)], -1e300, 1e300)  # so that high - low is finite
    low, high = (float(flat.min()), float(flat.max())) if len(flat) else (0.0, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
    return low - margin * (high - low), high + margin * (high - low)


def finite(path: Array) -> Array:
    """Leave out the points of a path ``(n, 2)`` that are not finite, or so large that the squares hardly are."""
    path = np.asarray(path, float).reshape(-1, 2)
    known: Array = path[(abs(path) < 1e100).all(axis=1)]
    return known


def grid(limits: Array, points: int) -> Array:
    """Evenly spaced points ``(points,)`` from the lower to the upper limit."""
    return np.linspace(float(limits[0]), float(limits[1]), points)


class Picture:
    """A figure of one axes, 484 x 363 pixels, and the artists that a redraw moves."""

    def __init__(self) -> None:
        self.figure: Any = Figure(figsize=(4.4, 3.3), dpi=110, layout="constrained")
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_subplot()
        self.title = self.figure.suptitle("", animated=True)
        self.moving: list[Artist] = []  # in drawing order
        self.legend: list[tuple[str, Line2D]] = []
        self.still: Any = None  # the rendered rest; None: to be laid out and rendered

    def add(self, name: str, x: Any, y: Any, still: bool = False, **style: Any) -> Line2D:
        """Plot a line or points that redraws move, unless still; with a name, the legend has it."""
        line: Line2D = self.axes.plot(x, y, animated=not still, **style)[0]
        self.moving += [] if still else [line]
        self.legend += [(name, line)] if name else []
        return line

    def explain(self, x: str, y: str, right: bool = False) -> None:
        """Name the axes, and put the legend outside of them: there it never covers data."""
        self.axes.set_xlabel(cut(x, 36), fontsize=10.5)
        self.axes.set_ylabel(cut(y, 26), fontsize=10.5)
        names, lines = [cut(name, 9 if right else 14) for name, _ in self.legend], [line for _, line in self.legend]
        if not names:
            return
        widths = [7.5 * len(name) + 50 for name in names]  # pixels, about
        columns = 1 if right else len(names) if sum(widths) < 470 else max(1, int(470 / max(widths)))
        style: dict[str, Any] = {"handletextpad": 0.4, "columnspacing": 1, "labelspacing": 0.3, "borderpad": 0.2}
        place = "outside right upper" if right else "outside lower center"
        legend = self.figure.legend(lines, ["-"] * len(names), loc=place, ncols=columns, frameon=False, **style)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)  # afterwards: legend() drops names that begin with _

    def render(self, title: str) -> bytes:
        """Draw, and encode as PNG with a palette: a third of the size in full colour."""
        self.title.set(text=title, fontsize=min(11, 500 / len(title)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box stands for it
            if self.still is None:
                self.figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
                self.canvas.draw()
                self.figure.set_layout_engine("none")
                self.still = self.canvas.copy_from_bbox(self.figure.bbox)
            self.canvas.restore_region(self.still)
            for artist in [*self.moving, *self.axes.spines.values(), self.title]:
                self.figure.draw_artist(artist)
        picture, buffer = Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]), io.BytesIO()
        # by octree: the fastest, and it keeps the colours of small marks
        picture.quantize(48, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG")
        return buffer.getvalue()


class Fit(Picture):
    """The line of a model of one feature and one target, among the data and beside least squares.

    ``parts`` are x and y, both ``(n,)``, of train and val, of which 1,000 rows each are shown; ``optimum`` is weight
    and bias of least squares, or None.
    """

    def __init__(
        self, parts: dict[str, tuple[Array, Array]], x_name: str, y_name: str, optimum: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.names = cut(y_name, 8), cut(x_name, 8)
        for i, (part, (x, y)) in enumerate(parts.items()):
            rows = spread(len(x))
            self.add(part, x[rows], y[rows], still=True, linestyle="", **look(i, len(rows)))
        self.x = np.array(span(*(x for x, _ in parts.values())))
        best = [] if optimum is None else [optimum[0] * self.x + optimum[1]]
        self.axes.set(xlim=tuple(self.x), ylim=span(*(y for _, y in parts.values()), *best))
        self.axes.locator_params(nbins=5)
        self.line = self.add("fit", self.x, self.x * math.nan, linewidth=2.5, **RED)
        for y in best:  # over the fit: once they agree, both are seen
            self.add("least squares", self.x, y, **EXACT)
        self.explain(x_name, y_name)

    def draw(self, step: int, weight: float, bias: float) -> bytes:
        """Draw ``y = weight x + bias``; the limits are fixed, a line far off is outside of them."""
        with np.errstate(all="ignore"):
            self.line.set_ydata(weight * self.x + bias)
        y, x = self.names
        return self.render(f"step {step}: {y} = {weight:.3g} {x} {'-' if bias < 0 else '+'} {abs(bias):.3g}")


class Agreement(Picture):
    """Predicted against true values of a regression, which are the same on the dashed diagonal.

    ``parts`` are the true values ``(n, T)`` of train and val, of which 1,000 each are shown, ``names`` the T targets;
    several targets are each scaled so that the true values go from 0 to 1. Predictions outside of the limits, which
    are those of the true values, lie at the edge.
    """

    def __init__(self, parts: dict[str, Array], names: list[str]) -> None:
        super().__init__()
        self.low, self.high = np.zeros(len(names)), np.ones(len(names))
        if len(names) > 1:
            every = np.concatenate(list(parts.values()))
            self.low, self.high = np.array([span(column, margin=0) for column in every.T]).T
        true = {part: self.points(values) for part, values in parts.items()}
        self.limits = span(*true.values())
        self.axes.set(xlim=self.limits, ylim=self.limits)
        self.axes.locator_params(nbins=5)
        self.dots = {
            part: self.add(part, x, x * math.nan, linestyle="", clip_on=False, **look(i, len(x)))
            for i, (part, x) in enumerate(true.items())
        }
        self.add("exact", self.limits, self.limits, **EXACT)
        about = names[0] if len(names) == 1 else "values, scaled"
        self.explain(f"true {about}", f"predicted {about}")

    def points(self, values: Array) -> Array:
        """Scale and thin values ``(n, T)`` of a part to at most 1,000."""
        rows = spread(len(values), max(1, 1000 // len(self.low)))
        scaled: Array = (np.asarray(values, float)[rows] - self.low) / (self.high - self.low)
        return scaled[:, :1000].ravel()

    def draw(self, step: int, predicted: dict[str, Array]) -> bytes:
        """Draw the predictions, ``(n, T)`` a part, in the order of the true values."""
        for part, values in predicted.items():
            self.dots[part].set_ydata(np.clip(self.points(values), *self.limits))
        return self.render(f"step {step}: predicted and true")


class Coefficients(Picture):
    """Learned beside optimal coefficients ``(k,)``, a row each, at most 16: those whose optimum is largest.

    Limits are those of the optimum and the start; what is outside of them lies at the edge. ``standardized`` says that
    they are those of standardized columns.
    """

    def __init__(self, names: list[str], optimum: Array | None, standardized: bool = False) -> None:
        super().__init__()
        best = np.zeros(len(names)) if optimum is None else np.asarray(optimum, float)
        self.rows = np.sort(np.argsort(-abs(best), kind="stable")[:ROWS])
        self.known, self.free, at = np.append(best[self.rows], 0), optimum is None, np.arange(len(self.rows))
        self.about = f"{ROWS} of {len(names)} coefficients" if len(names) > ROWS else "coefficients"
        self.axes.axvline(0, color="0.6", linewidth=1)
        self.axes.set(ylim=(len(at) - 0.5, -0.5))
        self.axes.locator_params(nbins=5)
        self.axes.set_yticks(at, [cut(names[row]) for row in self.rows], fontsize=10 if len(at) <= 10 else 8.5)
        self.axes.grid(axis="y", color="0.9")
        self.dots = self.add("learned", at * math.nan, at, linestyle="", marker="o", clip_on=False, **RED)
        if not self.free:
            style: dict[str, Any] = {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": COLOURS[0]}
            self.add("optimal", self.known[:-1], at, linestyle="", **style)
        self.explain(f"coefficient{' of standardized columns' if standardized else ''}", "")
        self.limits: tuple[float, float] | None = None

    def draw(self, step: int, values: Array) -> bytes:
        """Draw the learned coefficients ``(k,)``."""
        values = np.asarray(values, float)[self.rows]
        held = values[np.isfinite(values)]
        # without an optimum only the other coefficients say what is far off
        reach = REACH * (
            3 * np.sort(abs(held))[(len(held) - 1) // 2] if self.free and len(held) else abs(self.known).max()
        )
        held = np.clip(held, -reach, reach) if reach else held
        if self.limits is None or (self.free and span(held, self.limits, margin=0) != self.limits):
            self.limits = span(self.known, held, margin=0.06 if self.limits is None else 0.5)
            self.axes.set(xlim=self.limits)
            self.still = None
        self.dots.set_xdata(np.clip(values, *self.limits))
        return self.render(f"step {step}: {self.about}")


def rates(curves: dict[str, list[tuple[float, float | None]]], metric: str) -> bytes:
    """Draw a sweep: the final metric over the learning rate, a curve through the medians an optimizer.

    ``curves`` are pairs of rate and metric, several a rate if there are several seeds; None, or what is not finite,
    means diverged. The metric's axis is logarithmic where no value is negative; then 0 lies at its lower edge.
    """
    picture = Picture()
    axes, arrays = picture.axes, [np.array(pairs, float).reshape(-1, 2) for pairs in curves.values()]  # None is nan
    table = np.concatenate([np.zeros((0, 2)), *(np.where(abs(p) < 1e100, p, math.nan) for p in arrays)])
    above = table[table[:, 1] > 0, 1]
    logarithmic = len(above) > 0 and not (table[:, 1] < 0).any()
    if logarithmic:
        table[table[:, 1] == 0, 1] = above.min() / 10
    tables = np.split(table, np.cumsum([len(points) for points in arrays]))[:-1]
    for i, (name, points) in enumerate(zip(curves, tables, strict=True)):
        known = finite(points)
        at = np.unique(known[:, 0])
        medians = [np.median(known[known[:, 0] == rate, 1]) for rate in at]
        style = look(i) | {"color": OPTIMIZERS[i % 7]}
        picture.add(name, at, medians, linestyle=DASHES[i % 4], **style)
        picture.add("", *known.T, linestyle="", **style | {"markersize": 4})
        # one below the other: several may diverge at one rate
        lost = points[~np.isfinite(points[:, 1]), 0]
        cross = {"marker": "x", "linestyle": "", "markeredgewidth": 2, "transform": axes.get_xaxis_transform()}
        picture.add("", lost, np.full(len(lost), 0.96 - 0.05 * (i % 8)), **style | cross)
    if diverged := not np.isfinite(table).all():
        picture.add("diverged", [], [], marker="x", linestyle="", markeredgewidth=2, color="0.4")
    for axis, values, log in (("x", table[:, 0], True), ("y", table[:, 1], logarithmic)):
        low, high = span(np.log10(values[np.isfinite(values)]) if log else values)
        high += 0.25 * (high - low) * (diverged and axis == "y")
        if log:
            axes.set(**{f"{axis}scale": "log", f"{axis}lim": (10**low, 10**high)})
            ticks: Any = getattr(axes, f"{axis}axis")
            ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,), numticks=7))
            ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ticks.set_minor_formatter(NullFormatter())
        else:
            axes.set(**{f"{axis}lim": (low, high)})
    picture.explain("learning rate", metric)
    return picture.render("final metric of each learning rate")
