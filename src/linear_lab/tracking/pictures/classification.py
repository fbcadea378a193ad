"""Pictures of a classification."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.lines import Line2D

from linear_lab.tracking.pictures.canvas import COLOURS, Array, Picture, marker, short, span, subset


class Regions(Picture):
    """The regions of two features in which each of C classes has the largest score, and the data.

    ``x`` is ``(n, 2)``, ``classes`` has indices ``(n,)`` of ``labels``. At most 250 rows are shown. Colours and markers
    repeat after eight classes.
    """

    def __init__(self, x: Array, classes: Array, labels: list[str], x_names: list[str]) -> None:
        super().__init__()
        self.across, self.up = np.linspace(*span(x[:, 0]), 360), np.linspace(*span(x[:, 1]), 240)
        light = ListedColormap([tuple(0.65 + 0.35 * part for part in to_rgb(colour)) for colour in COLOURS])
        extent = (self.across[0], self.across[-1], self.up[0], self.up[-1])
        style: dict[str, Any] = {"cmap": light, "vmin": -0.5, "vmax": 7.5, "aspect": "auto", "origin": "lower"}
        self.image = self.axes.imshow([[math.nan]], extent=extent, interpolation="nearest", animated=True, **style)
        self.axes.locator_params(nbins=5)
        self.moving.append(self.image)
        rows = subset(len(x), 250)
        for i, label in enumerate(labels):
            points = x[rows][classes[rows] == i].T
            edge = {"markeredgewidth": 0.4, "markeredgecolor": "black", "linestyle": "", "markersize": 5}
            self.add(label or " ", *points, **marker(i) | edge)
        if len(labels) > 12:
            self.legend[11:] = [("...", Line2D([], [], linestyle=""))]
        self.label_axes(x_names[0], x_names[1], right=True)

    def draw(self, step: int, weight: Array, bias: Array) -> bytes:
        """Draw the regions of ``argmax(x W^T + b)``, W ``(C, 2)``, b ``(C,)``, where that is finite."""
        with np.errstate(all="ignore"):
            scores = weight[:, :1, None] * self.across + (weight[:, 1:] * self.up + bias[:, None])[:, :, None]
            self.image.set_data(np.where(np.isfinite(scores.sum(axis=0)), scores.argmax(axis=0) % len(COLOURS), np.nan))
        return self.render(f"step {step}: decision regions")


class Confusion(Picture):
    """The confusion matrix: one row per true class, one column per predicted one.

    Colours show shares of a row. With at most 10 classes, cells show their count unless it is 0.
    """

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        self.count = count = len(labels)
        style: dict[str, Any] = {"cmap": "cividis", "vmin": 0, "vmax": 1, "aspect": "auto", "animated": True}
        self.image = self.axes.imshow(np.zeros((count, count)), **style)
        at = np.arange(0, count, math.ceil(count / 12))
        names = [short(labels[i], 10) for i in at]
        self.axes.set_xticks(at, names, rotation=90 if len(names) * max(map(len, names)) > 30 else 0)
        self.axes.set_yticks(at, names)
        self.figure.colorbar(self.image, ax=self.axes, label="share of the true class", ticks=[0, 0.5, 1], pad=0.02)
        cells = np.ndindex((count, count) if count <= 10 else (0,))
        style = {"ha": "center", "va": "center", "fontsize": 10.5 if count <= 5 else 8.5, "animated": True}
        self.texts = [self.axes.text(cell[1], cell[0], "", **style) for cell in cells]
        self.moving += [self.image, *self.texts]
        self.label_axes("predicted class", "true class")

    def draw(self, step: int, true: Array, predicted: Array) -> bytes:
        """Draw the counts of pairs of true and predicted class; both are indices ``(n,)``."""
        pairs = np.asarray(true, int) * self.count + np.asarray(predicted, int)
        counts = np.bincount(pairs, minlength=self.count**2).reshape(self.count, self.count)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        self.image.set_data(shares)
        for text, number, share in zip(self.texts, counts.flat, shares.flat, strict=False):
            large = f"{number / 1e3:.0f}k" if number < 1e6 else f"{number:.0e}"
            short = f"{number or ''}" if number < 10_000 else large
            text.set(text=short, color="black" if share > 0.5 else "white")
        return self.render(f"step {step}: {100 * np.trace(counts) / max(len(pairs), 1):.3g} % correct")
