"""LBFGS against PyTorch's LBFGS, which it derives from."""

import pytest
import torch
from certified import SETS
from torch import nn

from linear_lab.data.schema import standardize, units
from linear_lab.models.lbfgs import LBFGS

ARGUMENTS = {
    "max_iter": 20,
    "history_size": 100,
    "line_search_fn": "strong_wolfe",
    "tolerance_grad": 0,
    "tolerance_change": 0,
}


def trained(kind, linear, x, y, steps, loss=nn.functional.mse_loss):
    optimizer = kind(linear.parameters(), **ARGUMENTS)

    def closure():
        optimizer.zero_grad()
        value = loss(linear(x), y)
        value.backward()
        return value

    losses = [optimizer.step(closure).item() for _ in range(steps)]
    return losses, optimizer


def standardized(name):
    """Return x and y of a certified data set, standardized."""
    certified = SETS[name]
    x = torch.tensor([*certified.x.values()], dtype=torch.float64).T
    y = torch.tensor(certified.y, dtype=torch.float64)[:, None]
    return [standardize(values, *units(values, center=True)) for values in (x, y)]


def start(seed=2):
    torch.manual_seed(seed)
    return nn.Linear(5, 1, dtype=torch.float64)


@pytest.mark.parametrize(("name", "tolerance"), [("Wampler1", 1e-9), ("Wampler4", 1e-7)])
def test_it_reaches_the_orthogonal_solution(name, tolerance):
    x, y = standardized(name)
    expected = torch.linalg.lstsq(x, y, driver="gelsd").solution.T
    ours, theirs = start(), start()
    trained(LBFGS, ours, x, y, 25)
    trained(torch.optim.LBFGS, theirs, x, y, 25)
    torch.testing.assert_close(ours.weight.detach(), expected, rtol=tolerance, atol=0)
    assert not torch.allclose(theirs.weight, expected, rtol=tolerance, atol=0)  # else nothing needs the subclass


def test_the_loss_it_returns_is_the_closures():
    x, y = standardized("Wampler4")
    linear = start()
    before = nn.functional.mse_loss(linear(x), y).item()
    losses, _ = trained(LBFGS, linear, x, y, 3)
    assert losses[0] == before
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_with_kinks_keeps_its_line_search(dtype):
    x, y = (values.to(dtype) for values in standardized("Wampler4"))
    losses, optimizer = trained(LBFGS, start().to(dtype), x, y, 30, nn.functional.l1_loss)
    assert losses[-1] <= losses[0]
    assert optimizer.param_groups[0]["line_search_fn"] == "strong_wolfe"


def test_at_the_optimum_steps_evaluate_the_loss_rarely():
    x = torch.tensor([[1.0], [2], [3], [4]])
    torch.manual_seed(0)
    linear, calls = nn.Linear(1, 1), []

    def loss(y_hat, y):
        calls.append(1)
        return nn.functional.mse_loss(y_hat, y)

    trained(LBFGS, linear, x, 2 * x, 50, loss)
    before = len(calls)
    losses, optimizer = trained(LBFGS, linear, x, 2 * x, 50, loss)
    assert losses[-1] < 1e-12
    assert len(calls) - before < 1500  # 50 steps may take 25,000
    assert optimizer.param_groups[0]["stalled"] == losses[-1]


def test_parameters_that_the_loss_does_not_use_stay_as_they_are():
    x, y = standardized("Wampler4")
    linear, unused = start(), nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    alone = start()
    optimizer = LBFGS([*linear.parameters(), unused], **ARGUMENTS)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(linear(x), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == pytest.approx(trained(LBFGS, alone, x, y, 3)[0], rel=1e-9)
    assert unused.tolist() == [1.0, 2.0]
