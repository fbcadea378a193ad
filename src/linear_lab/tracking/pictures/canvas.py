"""The base class of pictures, a figure with one axes that is rendered as PNG, and the styles of all pictures."""

import io
import warnings
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

REACH = 3  # limits contain points up to this many times as far away as the optimum
# the palette of Okabe and Ito, whose colours colour-blind people can distinguish
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
# one colour per optimizer, in an order that stands out on a loss surface
OPTIMIZERS = ["#000000", "#56B4E9", "#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#009E73"]
DASHES = ["-", "--", "-.", ":"]
RED: dict[str, Any] = {"color": COLOURS[5]}
EXACT: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}


def marker(i: int, rows: int = 0) -> dict[str, Any]:
    """Return marker and colour of the i-th group of points; more than 50 rows have smaller markers."""
    return {"marker": "o^sDvP<>"[i % 8], "color": COLOURS[i % 8], "markersize": 4 if rows > 50 else 6}


def short(name: str, length: int = 14) -> str:
    """Return a name on one line, cut in its middle, since columns often differ in their last characters only."""
    name, end = " ".join(name.split()), (length - 1) // 2
    name = name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}"
    return name.replace("$", r"\$")  # otherwise matplotlib parses mathematics


def subset(rows: int, most: int = 1000) -> Array:
    """Return the indices of at most ``most`` rows, evenly spaced."""
    return np.linspace(0, rows - 1, min(rows, most)).astype(int)


def span(*values: Any, margin: float = 0.06) -> tuple[float, float]:
    """Return limits of an axis that contain all finite values with a margin; they differ even for equal values."""
    flat = np.concatenate([np.asarray(v, float).ravel() for v in values])
    flat = np.clip(flat[np.isfinite(flat)], -1e300, 1e300)  # keeps high - low finite
    low, high = (float(flat.min()), float(flat.max())) if len(flat) else (0.0, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
    return low - margin * (high - low), high + margin * (high - low)


def finite(path: Array) -> Array:
    """Return the points of a path ``(n, 2)`` that are finite and whose squares cannot overflow."""
    path = np.asarray(path, float).reshape(-1, 2)
    return np.asarray(path[(abs(path) < 1e100).all(axis=1)])


class Picture:
    """A figure of 484 x 363 pixels with one axes, which matplotlib's blitting redraws quickly.

    The background is rendered once, and a redraw adds the moving artists. Without this, a sweep of 20 default runs took
    45 s instead of 35 s.
    """

    def __init__(self) -> None:
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        self.figure: Any = Figure(figsize=(4.4, 3.3), dpi=110, layout=layout)
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_subplot()
        self.title = self.figure.suptitle("", animated=True)
        self.moving: list[Artist] = []  # in drawing order
        self.legend: list[tuple[str, Line2D]] = []
        self.background: Any = None  # the rendered artists that do not move; None if they must be rendered

    def add(self, name: str, x: Any, y: Any, still: bool = False, **style: Any) -> Line2D:
        """Plot a line or points, with an entry in the legend if the name is not empty."""
        line: Line2D = self.axes.plot(x, y, animated=not still, **style)[0]
        self.moving += [] if still else [line]
        self.legend += [(name, line)] if name else []
        return line

    def label_axes(self, x: str, y: str, right: bool = False) -> None:
        """Label the axes, and put the legend outside of them, where it cannot cover data."""
        self.axes.set_xlabel(short(x, 36), fontsize=10.5)
        self.axes.set_ylabel(short(y, 26), fontsize=10.5)
        names, lines = [short(name, 9 if right else 14) for name, _ in self.legend], [line for _, line in self.legend]
        if not names:
            return
        widths = [7.5 * len(name) + 50 for name in names]  # estimated, in pixels
        columns = 1 if right else len(names) if sum(widths) < 470 else max(1, int(470 / max(widths)))
        style: dict[str, Any] = {"handletextpad": 0.4, "columnspacing": 1, "labelspacing": 0.3, "borderpad": 0.2}
        place = "outside right upper" if right else "outside lower center"
        legend = self.figure.legend(lines, ["-"] * len(names), loc=place, ncols=columns, frameon=False, **style)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)  # set here, since legend() drops names that begin with _

    def render(self, title: str) -> bytes:
        """Draw the picture, and encode it as PNG with a palette, which has a third of the size of full colour."""
        self.title.set(text=title, fontsize=min(11, 500 / len(title)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # matplotlib draws a box instead
            if self.background is None:
                self.canvas.draw()
                self.background = self.canvas.copy_from_bbox(self.figure.bbox)
            self.canvas.restore_region(self.background)
            for artist in [*self.moving, *self.axes.spines.values(), self.title]:
                self.figure.draw_artist(artist)
        picture, buffer = Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]), io.BytesIO()
        # octree is the fastest method, and it keeps the colours of small marks
        picture.quantize(48, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG")
        return buffer.getvalue()
