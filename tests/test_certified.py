"""Correct digits of the optimum and of trained coefficients on certified data sets."""

import pytest
import torch
from certified import LBFGS, SETS, digits
from runs import train
from torch.utils._python_dispatch import TorchDispatchMode

from linear_lab.data.schema import units
from linear_lab.theory.least_squares import BLOCK, least_squares


@pytest.mark.parametrize(
    ("name", "optimum", "lbfgs"),
    [("NoInt1", 13, 13), ("Longley", 13, 12), ("Wampler1", 12, 9), ("Wampler2", 12, 12), ("Wampler4", 10, 7.5)],
)
@pytest.mark.slow("test_least_squares_reaches_the_certified_digits_in_any_units is quick")
def test_float64_reaches_the_certified_digits(name, optimum, lbfgs, tmp_path):
    certified = SETS[name]
    result = train(
        tmp_path / "run", *certified.write(tmp_path), *LBFGS, "trainer.max_epochs=25", "logger=none", "seed=2"
    )
    assert certified.lre(result["optimum"]) >= optimum
    assert certified.lre(result["parameters"]) >= lbfgs
    assert result["optimum"]["bias"] is None or certified.bias


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.slow("test_least_squares_reaches_the_certified_digits_in_any_units is quick")
def test_float32_reaches_four_digits(optimizer, tmp_path):
    certified = SETS["NoInt1"]
    result = train(tmp_path / "run", *certified.write(tmp_path), f"optimizer={optimizer}", "logger=none")
    assert certified.lre(result["parameters"]) >= 4


@pytest.mark.parametrize("name", ["NoInt1", "synthetic"])
@pytest.mark.slow("like test_digits_of_the_table")
def test_the_table_has_the_digits_of_a_data_set(name, tmp_path):
    assert min(digits(name, LBFGS, tmp_path / "set")) > 13


@pytest.mark.parametrize("name", ["NoInt1", "synthetic"])
def test_digits_of_the_table(name, tmp_path):
    optimum, learned = digits(name, LBFGS, tmp_path / name)
    assert min(optimum, learned) >= 13


class NoFloat32(TorchDispatchMode):
    """Collects functions that return a float32 tensor of several numbers; Lightning itself makes single ones."""

    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.ndim and len(result):
            self.functions.add(str(function))
        return result


@pytest.mark.parametrize(("precision", "found"), [("64-true", False), ("32-true", True)])
def test_no_step_of_float64_passes_through_float32(precision, found, tmp_path):
    certified = SETS["Longley"]
    with NoFloat32() as mode:
        train(tmp_path / "run", *certified.write(tmp_path), "trainer.max_epochs=3", f"trainer.precision={precision}")
    assert bool(mode.functions) == found, mode.functions


@pytest.mark.parametrize(
    ("name", "least", "squares"),  # digits, and the certified sum of the squared residuals
    [
        ("NoInt1", 14, 127.272727272727), ("Longley", 13.5, 836424.055505915), ("Wampler1", 13, 0),
        ("Wampler2", 12.5, 0), ("Wampler3", 12.5, 83554268), ("Wampler4", 10, 835542680000),
        ("Wampler5", 8.5, 8355426800000000),
    ],
)  # fmt: skip
@pytest.mark.parametrize("center", [None, False, True])
@pytest.mark.parametrize("block", [BLOCK, 4])
def test_least_squares_reaches_the_certified_digits_in_any_units(name, least, squares, center, block, monkeypatch):
    monkeypatch.setattr("linear_lab.theory.least_squares.BLOCK", block)
    certified = SETS[name]
    x = torch.tensor([*certified.x.values()], dtype=torch.float64).T
    y = torch.tensor(certified.y, dtype=torch.float64)[:, None]
    of_x, of_y = (None if center is None else units(v, center=center and certified.bias) for v in (x, y))
    optimum = least_squares(x, y, bias=certified.bias, x_units=of_x, y_units=of_y)
    assert certified.lre(optimum.learned()) >= least
    assert optimum.rank == optimum.parameters == len(certified.coefficients)
    scale = 1 if of_y is None else of_y[1].item()
    assert optimum.loss == pytest.approx(squares / len(y) / scale**2, rel=1e-12)
