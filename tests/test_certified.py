"""Certified coefficients: digits of the optimum, and of training."""

import pytest
import torch
from certified import LBFGS, SETS, digits
from runs import train
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize(
    ("name", "optimum", "lbfgs"),
    [("NoInt1", 13, 13), ("Longley", 13, 12), ("Wampler1", 12, 9), ("Wampler2", 12, 12), ("Wampler4", 10, 7.5)],
)
def test_float64_reaches_the_certified_digits(name, optimum, lbfgs, tmp_path):
    known = SETS[name]
    result = train(tmp_path / "run", *known.write(tmp_path), *LBFGS, "trainer.max_epochs=25", "logger=none", "seed=2")
    assert known.lre(result["optimum"]) >= optimum
    assert known.lre(result["parameters"]) >= lbfgs
    assert result["optimum"]["bias"] is None or known.bias


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_float32_reaches_four_digits(optimizer, tmp_path):
    known = SETS["NoInt1"]
    result = train(tmp_path / "run", *known.write(tmp_path), f"optimizer={optimizer}", "logger=none")
    assert known.lre(result["parameters"]) >= 4


@pytest.mark.parametrize("name", ["NoInt1", "synthetic"])
def test_digits_of_the_table(name, tmp_path):
    optimum, learned = digits(name, LBFGS, tmp_path / name)
    assert min(optimum, learned) >= 13


class NoFloat32(TorchDispatchMode):
    """Notes what makes a float32 tensor of more than a number: Lightning keeps single ones for its own."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.ndim and len(result):
            self.found.add(str(function))
        return result


@pytest.mark.parametrize(("precision", "found"), [("64-true", False), ("32-true", True)])
def test_no_step_of_float64_passes_through_float32(precision, found, tmp_path):
    known = SETS["Longley"]
    with NoFloat32() as mode:
        train(tmp_path / "run", *known.write(tmp_path), "trainer.max_epochs=3", f"trainer.precision={precision}")
    assert bool(mode.found) == found, mode.found
