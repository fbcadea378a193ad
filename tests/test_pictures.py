"""Pictures of runs and sweeps: what they draw, their limits, and unusual data."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from linear_lab.data import ToyData
from linear_lab.models import LinearModule
from linear_lab.tracking.pictures import canvas, loss_surface
from linear_lab.tracking.pictures.classification import Confusion, Regions
from linear_lab.tracking.pictures.loss_surface import Surface
from linear_lab.tracking.pictures.of_run import surface
from linear_lab.tracking.pictures.of_sweep import Map, rates
from linear_lab.tracking.pictures.regression import Agreement, Coefficients, Fit

random = np.random.default_rng(0)
OPTIMUM = (2.0, 0.5)


class Bowl:
    """A quadratic loss with its minimum at `OPTIMUM`, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, weight, bias):
        self.calls += 1
        w, b = weight - 2, bias - 0.5
        return 5 * w * w + 3.2 * w * b + b * b + 0.16


def descent(lr, steps):
    points = [np.array([-0.3, 0.1])]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            points.append(points[-1] - lr * np.array([[10, 3.2], [3.2, 2]]) @ (points[-1] - OPTIMUM))
    return np.array(points)


def read(png, most=12_000):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.size == (484, 363)
    assert len(png) < most
    return np.asarray(image.convert("RGB")).astype(int)


def holds(picture, points):
    (left, right), (low, high) = picture.axes.get_xlim(), picture.axes.get_ylim()
    w, b = np.reshape(points, (-1, 2)).T
    return bool(((left < w) & (w < right) & (low < b) & (b < high)).all())


def test_fit_draws_the_line_and_keeps_its_limits():
    x = random.normal(size=2000)
    picture = Fit({"train": (x, 2 * x + 1), "val": (x[:9], 2 * x[:9])}, "x", "y", (2.0, 1.0))
    first = picture.draw(0, -0.3, 0.2)
    limits = picture.axes.get_xlim(), picture.axes.get_ylim()
    second = picture.draw(30, 1.98, -0.0512)
    assert (read(first) != read(second)).any()
    line_x, line_y = picture.line.get_data()
    np.testing.assert_allclose(line_y, 1.98 * line_x - 0.0512)
    assert line_x[0] < x.min() < x.max() < line_x[1]
    assert picture.title.get_text() == "step 30: y = 1.98 x - 0.0512"
    assert (picture.axes.get_xlim(), picture.axes.get_ylim()) == limits
    assert [len(line.get_xdata()) for line in picture.axes.lines[:2]] == [1000, 9]
    assert first == picture.draw(0, -0.3, 0.2)  # no trace of the second picture is left


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 1), (1e12, 3), (1e-12, 3)])
def test_fit_of_odd_data(scale, rows):
    x = np.full(rows, scale)
    picture = Fit({"train": (x, x), "val": (x[:0], x[:0])}, "a_$x$ and $ more of a name_" * 3, "_$y", None)
    for weight in (1e300, np.inf, np.nan):
        read(picture.draw(10**6, weight, -weight))
    assert holds(picture, [scale, scale])


def test_colours_are_kept():
    x = np.arange(4.0)
    pixels = read(Fit({"train": (x, x)}, "x", "y", None).draw(0, 0.5, 0.0)).reshape(-1, 3)
    assert (pixels[0] >= 253).all()
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # points and line
        assert (abs(pixels - colour).max(axis=1) < 12).sum() > 50


def test_surface_measures_the_loss_only_when_the_path_leaves():
    loss, path = Bowl(), descent(0.05, 200)
    picture = Surface(loss, OPTIMUM)
    read(picture.draw(0, path[:1]))
    assert holds(picture, [*path[:1], OPTIMUM])
    calls, size = loss.calls, picture.figure.axes[0].get_xlim()
    assert calls == 1
    read(picture.draw(1, path[:2]))
    assert (loss.calls, picture.axes.get_xlim()) == (calls, size)
    read(picture.draw(20, path[:21]))  # the bias passes the optimum, so the limits widen once
    assert loss.calls == 2 * calls
    limits = picture.axes.get_xlim(), picture.axes.get_ylim()
    read(picture.draw(200, path))
    assert loss.calls == 2 * calls
    assert (picture.axes.get_xlim(), picture.axes.get_ylim()) == limits
    assert holds(picture, [*path, OPTIMUM])
    np.testing.assert_array_equal(np.transpose(picture.path.get_data()), path)
    np.testing.assert_array_equal(np.transpose(picture.now.get_data()), path[-1:])


@pytest.mark.parametrize("optimum", [OPTIMUM, None])
def test_surface_of_a_path_that_diverges(optimum):
    most = 14_000  # bytes: a zigzag over the whole picture
    path = descent(0.25, 400)
    path[5], path[-3:] = np.nan, [[np.inf, 1], [1e300, -1e300], [np.nan, np.nan]]
    picture = Surface(Bowl(), optimum)
    for steps in (4, 20):
        read(picture.draw(steps, path[:steps]), most)
    read(picture.draw(len(path), path), most)
    if optimum:
        assert np.ptp(picture.axes.get_xlim()) < 10 * (2.3**2 + 0.4**2) ** 0.5
        assert holds(picture, [path[0], optimum])


def test_surface_of_odd_losses():
    for loss, path in (
        (lambda w, b: np.full_like(w, 3.0), np.zeros((0, 2))),
        (lambda w, b: 1e308 * w * w * 9, np.full((2, 2), np.nan)),
    ):
        read(Surface(loss, None).draw(0, path))
    far = Surface(Bowl(), (1e12, 1e-12))
    read(far.draw(0, np.zeros((1, 2))))
    assert holds(far, [[0, 0], [1e12, 1e-12]])


class LooksAtValues(torch.nn.MSELoss):
    """A loss that vmap cannot vectorize."""

    def forward(self, y_hat, y):
        return super().forward(y_hat, y) if (y_hat == y_hat).all() else y.sum()


@pytest.mark.parametrize("kind", [torch.nn.MSELoss, LooksAtValues])
def test_surface_is_the_loss_of_the_model(kind):
    data = ToyData({"x": [-2.0, 0.5, 3.0], "y": [1.0, 0.0, 4.0]})
    data.setup()
    weights, biases = np.array([0.0, 2.0, -1.5]), np.array([0.0, 0.0, 0.3])
    x, y = (values.numpy() for values in data.raw["train"])
    by_hand = [((weight * x + bias - y) ** 2).mean() for weight, bias in zip(weights, biases, strict=True)]
    model = LinearModule(1, 1)
    model.loss = kind()
    losses = surface(data, model)(weights, biases)
    np.testing.assert_allclose(losses, by_hand, rtol=1e-14)


def test_interpolation_is_exact_for_a_cubic():
    fine = np.linspace(-1, 3, 128)
    cubic = np.polynomial.Polynomial([1, -2, 3, 0.5])
    np.testing.assert_allclose(loss_surface.refinement() @ cubic(np.linspace(-1, 3, 32)), cubic(fine), atol=1e-12)


def test_paths():
    read(
        loss_surface.paths(
            Bowl(), OPTIMUM, {"sgd": [descent(0.05, 50), descent(0.01, 50)], "_a$b$": [descent(0.02, 9)]}
        )
    )
    read(loss_surface.paths(Bowl(), None, {"sgd": [], "adam": [np.full((3, 2), np.nan)]}))


def test_paths_draws_each_run(monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas.Picture, "render", lambda self, title: drawn.append(self) or b"")
    runs = {"sgd": [descent(0.05, 50), descent(0.01, 50)], "adam": [descent(0.02, 9)]}
    loss_surface.paths(Bowl(), OPTIMUM, runs)
    lines = drawn[0].axes.lines[:3]
    for line, path in zip(lines, [*runs["sgd"], *runs["adam"]], strict=True):
        np.testing.assert_allclose(np.transpose(line.get_data()), path)
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert [name for name, _ in drawn[0].legend][:2] == ["sgd", "adam"]


def test_agreement():
    y = random.normal(size=(3000, 1))
    picture = Agreement({"train": y, "val": y[:3]}, ["$y$ _"])
    read(picture.draw(3, {"train": y * 0.9, "val": y[:3] + 1e30}))
    true, predicted = picture.dots["train"].get_data()
    assert len(true) == 1000
    np.testing.assert_allclose(predicted, 0.9 * true)
    np.testing.assert_array_equal(picture.dots["val"].get_ydata(), picture.limits[1])  # drawn at the edge
    several = Agreement({"train": y * [1, 1e12, 0] + [0, 0, 5]}, ["a", "b", "c"])
    read(several.draw(3, {"train": y * [1, 1e12, np.nan]}))
    scaled = several.dots["train"].get_xdata().reshape(-1, 3)
    assert abs(scaled[:, 0] - scaled[:, 1]).max() < 1e-12
    constant = np.full((4, 1), 1e12)
    read(Agreement({"train": constant}, ["y"]).draw(0, {"train": constant * np.nan}))


def test_coefficients_shows_the_largest():
    optimum = np.arange(30.0) * (-1) ** np.arange(30)
    picture = Coefficients([f"a long name of a column, $x_{i}$" for i in range(30)], optimum)
    read(picture.draw(0, np.zeros(30)))
    limits = picture.axes.get_xlim()
    read(picture.draw(9, np.where(np.arange(30) == 29, 1e9, optimum + 0.5)))
    assert picture.axes.get_xlim() == limits
    assert list(picture.rows) == list(range(14, 30))
    np.testing.assert_allclose(picture.dots.get_xdata()[:-1], optimum[14:29] + 0.5)
    assert picture.dots.get_xdata()[-1] == limits[1]


def test_coefficients_without_optimum():
    picture = Coefficients(["a", "b", "c"], None)
    read(picture.draw(0, np.array([0.1, -0.2, 0.1])))
    read(picture.draw(5, np.array([3.0, 1.0, -2.0])))  # the limits grow with the coefficients
    assert list(picture.dots.get_xdata()) == [3, 1, -2]
    read(picture.draw(6, np.array([2.9, np.nan, 1e30])))  # but not with a single large one
    assert np.ptp(picture.axes.get_xlim()) < 100
    read(Coefficients(["a"], np.zeros(1)).draw(0, np.array([1e12])))


@pytest.mark.parametrize("classes", [2, 12])
def test_regions_are_those_of_argmax(classes):
    random = np.random.default_rng(classes)  # independent of the tests before
    x, c = random.normal(size=(500, 2)), random.integers(0, classes, 500)
    weight, bias = random.normal(size=(classes, 2)), random.normal(size=classes)
    picture = Regions(x, c, [f"_class ${i}$" for i in range(classes)], ["a_b", "$c$"])
    first = picture.draw(1, weight * 0, bias)
    pixels = read(picture.draw(2, weight, bias), 14_000)
    assert first != picture.draw(2, weight, bias)
    shown = np.asarray(picture.image.get_array())
    for row, column in random.integers(0, (240, 360), (50, 2)):
        at = np.array([picture.across[column], picture.up[row]])
        assert shown[row, column] == (weight @ at + bias).argmax() % 8
    assert len(np.unique(shown)) > 1
    large = [winner for winner in np.unique(shown) if (shown == winner).sum() > 500]
    for winner in large:  # the palette has all their colours
        light = 255 * np.array(picture.image.cmap(picture.image.norm(winner))[:3])
        assert (abs(pixels - light).max(axis=2) < 10).sum() > (shown == winner).sum() / 10
    picture.draw(3, weight * np.nan, bias)
    assert not np.ma.count(picture.image.get_array())


def test_regions_of_one_row():
    read(Regions(np.full((1, 2), 1e12), np.array([0]), ["a", "b"], ["u", "v"]).draw(0, np.eye(2), np.zeros(2)))


def test_confusion_counts():
    picture = Confusion(["a", "_b", "$c$"])
    read(picture.draw(1, np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 2])))
    assert [text.get_text() for text in picture.texts] == ["1", "1", "", "", "1", "", "", "", "2"]
    np.testing.assert_allclose(picture.image.get_array(), [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    assert picture.title.get_text() == "step 1: 80 % correct"
    read(picture.draw(2, np.zeros(0, int), np.zeros(0, int)))
    twelve = Confusion([f"a class of long name {i}" for i in range(12)])
    read(twelve.draw(0, np.arange(12), np.arange(12)))
    assert not twelve.texts


def test_rates():
    pairs = [(0.1, 0.2), (0.01, 3.0), (0.1, 0.4), (0.1, 0.9), (1.0, None), (1.0, np.nan)]
    read(rates({"sgd": pairs, "_adam $x$": [(0.1, 1e-9)], "none": []}, "val/loss [y^2]"))
    for curves in ({}, {"sgd": [(0.1, None)], "adam": [(1e-9, 0.0), (0.2, -1e12)]}):
        read(rates(curves, "$metric_"))


def test_rates_goes_through_medians(monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas.Picture, "render", lambda self, title: drawn.append(self) or b"")
    rates({"sgd": [(0.1, 0.2), (0.01, 3.0), (0.1, 0.4), (0.1, 0.9), (1.0, None)]}, "loss")
    median, points, lost, _ = drawn[0].axes.lines
    np.testing.assert_allclose(np.transpose(median.get_data()), [[0.01, 3], [0.1, 0.4]])
    assert len(points.get_xdata()) == 4
    assert list(lost.get_xdata()) == [1.0]
    assert [name for name, line in drawn[0].legend] == ["sgd", "diverged"]
    assert drawn[0].axes.get_yscale() == "log"
    rates({"sgd": [(0.1, 0.0), (1.0, 0.5)], "adam": [(0.1, 0.01)]}, "loss")
    assert drawn[1].axes.get_yscale() == "log"
    np.testing.assert_allclose(drawn[1].axes.lines[0].get_ydata(), [0.001, 0.5])  # 0 is drawn at the edge
    rates({"sgd": [(0.1, -1.0), (1.0, 0.5)]}, "loss")
    assert drawn[2].axes.get_yscale() == "linear"


def test_a_line_outside_of_a_map_is_not_named():
    axis, values = np.array([1.0, 2.0, 3.0]), np.ones((3, 3))
    for at, named in ((2.5, ["largest stable"]), (9.0, [])):
        picture = Map(axis, axis, values, values > 1, ("lr", "momentum", "val/loss"), np.array([[at, 1.0], [at, 3.0]]))
        assert [name for name, _ in picture.legend] == named
        assert picture.render("title")[:4] == b"\x89PNG"


def test_many_classes_are_cut_in_the_legend():
    x, labels = random.normal(size=(50, 2)), [f"c{k}" for k in range(14)]
    picture = Regions(x, np.arange(50) % 14, labels, ["a", "b"])
    assert [name for name, _ in picture.legend] == [*labels[:11], "..."]
    picture = Regions(x, np.arange(50) % 12, labels[:12], ["a", "b"])
    assert [name for name, _ in picture.legend] == labels[:12]


def test_a_long_path_is_thinned_where_its_steps_are_short():
    picture = Surface(Bowl(), OPTIMUM)
    path = descent(0.001, 5000)
    picture.widen_limits([path])
    (line,) = picture.axes.plot([], [])
    picture.set_path(line, path)
    shown = np.transpose(line.get_data())
    assert 500 < len(shown) <= 1000
    np.testing.assert_array_equal(shown[:50], path[:50])
    np.testing.assert_array_equal(shown[-1], path[-1])


def test_a_map_of_values_below_zero_has_linear_colours():
    axis, values = np.array([1.0, 2.0, 3.0]), np.arange(9.0).reshape(3, 3)
    for low, kind in ((1.0, "LogNorm"), (-1.0, "Normalize")):
        given = values + low
        picture = Map(axis, axis, given, values > 9, ("lr", "momentum", "val/excess"), np.zeros((0, 2)))
        shown = picture.axes.collections[0]
        assert type(shown.norm).__name__ == kind
        np.testing.assert_allclose(shown.get_array(), given)
