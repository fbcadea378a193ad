"""The optimum against NumPy, the excess loss against its definition, the stable rate against SGD itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from linear_lab.data.schema import units
from linear_lab.theory.least_squares import BLOCK, least_squares
from linear_lab.theory.reference import reference
from linear_lab.theory.stability import stable_lr


def draw(rows, features, targets=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (features, targets)]


def mse(x, y, weight, bias):
    return (x @ weight.T + (0 if bias is None else bias) - y).square().mean().item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "features", "targets"), [(9, 1, 1), (40, 3, 2), (5, 4, 1), (3, 1, 4)])
def test_the_optimum_equals_that_of_numpy(rows, features, targets, bias):
    x, y = draw(rows, features, targets)
    optimum = least_squares(x, y, bias=bias)
    columns = np.hstack([x, np.ones((rows, 1))]) if bias else x.numpy()
    expected = np.linalg.lstsq(columns, y.numpy())[0]
    np.testing.assert_allclose(optimum.weight, expected[:features].T, rtol=1e-10)
    if bias:
        np.testing.assert_allclose(optimum.bias, expected[features], rtol=1e-10, atol=1e-12)
    assert optimum.loss == pytest.approx(np.square(columns @ expected - y.numpy()).mean(), rel=1e-10, abs=1e-25)
    assert (optimum.rank, optimum.parameters) == (columns.shape[1],) * 2


@pytest.mark.parametrize(("rows", "features"), [(3, 6), (1, 2), (8, 2)])
def test_of_many_solutions_it_is_that_of_minimum_norm(rows, features):
    x, y = draw(rows, features)
    x = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)  # the last column depends on the first two
    optimum = least_squares(x, y)
    columns = np.hstack([x, np.ones((rows, 1))])
    expected = np.linalg.pinv(columns, rcond=1e-12) @ y.numpy()
    np.testing.assert_allclose(torch.cat([optimum.weight, optimum.bias[:, None]], 1).T, expected, rtol=1e-8, atol=1e-12)
    assert optimum.rank == np.linalg.matrix_rank(columns) < optimum.parameters


def test_with_weight_decay_it_is_ridge_regression_of_all_parameters():
    x, y = draw(30, 3, 2)
    decay = 0.3
    optimum = least_squares(x, y, weight_decay=decay)
    columns = np.hstack([x, np.ones((30, 1))])
    # the gradient 2 / (B T) A^T (A p - y) + decay p vanishes
    hessian = 2 / y.numel() * columns.T @ columns + decay * np.eye(4)
    expected = np.linalg.solve(hessian, 2 / y.numel() * columns.T @ y.numpy())
    np.testing.assert_allclose(torch.cat([optimum.weight, optimum.bias[:, None]], 1).T, expected, rtol=1e-10)
    assert optimum.loss == pytest.approx(mse(x, y, optimum.weight, optimum.bias))
    weight, bias = optimum.weight + 0.1, optimum.bias - 0.2
    objective = [
        mse(x, y, w, b) + decay / 2 * (w.square().sum() + b.square().sum()).item()
        for w, b in ((weight, bias), (optimum.weight, optimum.bias))
    ]
    assert optimum.excess(weight, bias) == pytest.approx(objective[0] - objective[1])


@given(seed=st.integers(0, 99), bias=st.booleans(), center=st.booleans())
def test_excess_is_the_loss_above_the_least_one(seed, bias, center):
    x, y = draw(20, 2, 2, seed)
    x_units, y_units = units(x * 7 + 3, center=center), units(y - 5, center=center)
    optimum = least_squares(x * 7 + 3, y - 5, bias=bias, x_units=x_units, y_units=y_units)
    z, t = (x * 7 + 3 - x_units[0]) / x_units[1], (y - 5 - y_units[0]) / y_units[1]
    weight, b = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64) if bias else None
    assert optimum.excess(weight, b) == pytest.approx(mse(z, t, weight, b) - optimum.loss)
    assert optimum.excess(weight, b) >= 0


def test_standardizing_does_not_move_the_optimum():
    x, y = draw(50, 3)
    x = x * torch.tensor([1e-3, 1, 1e6]) + torch.tensor([0, 100, -1e7])
    plain, standardized = least_squares(x, y), least_squares(x, y, x_units=units(x, center=True))
    torch.testing.assert_close(plain.weight, standardized.weight, rtol=1e-9, atol=0)
    torch.testing.assert_close(plain.bias, standardized.bias, rtol=1e-9, atol=0)


def test_blocks_of_rows_change_nothing():
    x, y = draw(BLOCK + 5, 2)
    optimum = least_squares(x, y)
    expected = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), y.numpy())[0]
    np.testing.assert_allclose(optimum.weight, expected[:2].T, rtol=1e-10)


def test_curvature_is_the_largest_eigenvalue_of_the_hessian():
    x, y = draw(12, 3, 2)
    columns = torch.cat([x, torch.ones(12, 1)], 1)
    expected = torch.linalg.eigvalsh(2 / y.numel() * columns.T @ columns)[-1].item()
    assert least_squares(x, y).curvature == pytest.approx(expected)
    assert least_squares(x, y, weight_decay=0.5).curvature == pytest.approx(expected + 0.5)
    toy = least_squares(torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([[2.0], [4], [6], [8]]))
    # by hand: the Hessian is [[15, 5], [5, 2]], its eigenvalues are 8.5 +- sqrt(67.25)
    assert stable_lr(toy.curvature) == pytest.approx(2 / (8.5 + 67.25**0.5))


@pytest.mark.parametrize(
    "rule",
    [{}, {"momentum": 0.5}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5},
     {"weight_decay": 0.7}, {"momentum": 0.3, "nesterov": True, "weight_decay": 0.2}],
)  # fmt: skip
def test_just_below_the_stable_rate_steps_converge_and_just_above_they_do_not(rule):
    x, y = draw(16, 2)

    def distance(share):
        linear = nn.Linear(2, 1, dtype=torch.float64)
        optimizer = torch.optim.SGD(linear.parameters(), lr=1.0, **rule)
        result = reference(linear, nn.MSELoss(), optimizer, x, y)
        optimizer.param_groups[0]["lr"] = share * result.stable_lr
        for _ in range(600):
            optimizer.zero_grad()
            nn.functional.mse_loss(linear(x), y).backward()
            optimizer.step()
        return result.optimum.excess(linear.weight.detach(), linear.bias.detach())

    assert distance(0.95) < 1e-6
    assert not distance(1.05) < 1e6


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_with_weight_decay_converge_to_the_optimum(kind):
    """AdamW, whose decay is not part of the loss, converges near it."""
    x, y = draw(16, 2)
    linear = nn.Linear(2, 1, dtype=torch.float64)
    optimizer = kind(linear.parameters(), lr=0.1 if kind is torch.optim.SGD else 0.02, weight_decay=0.05)
    result = reference(linear, nn.MSELoss(), optimizer, x, y)
    for _ in range(1000):
        optimizer.zero_grad()
        nn.functional.mse_loss(linear(x), y).backward()
        optimizer.step()
    assert result.optimum.excess(linear.weight.detach(), linear.bias.detach()) < (
        1e-4 if kind is torch.optim.AdamW else 1e-6
    )


def test_other_losses_networks_and_optimizers_have_no_reference():
    x, y = draw(8, 1)
    linear = nn.Linear(1, 1)
    sgd, adam = torch.optim.SGD(linear.parameters()), torch.optim.Adam(linear.parameters())
    assert reference(linear, nn.L1Loss(), sgd, x, y) == (None, None, 0)
    assert reference(nn.Sequential(linear), nn.MSELoss(), sgd, x, y) == (None, None, 0)
    assert reference(linear, nn.MSELoss(), adam, x, y).stable_lr is None
    assert reference(linear, nn.MSELoss(), adam, x, y).optimum is not None


def test_a_column_of_zeros_has_no_curvature():
    optimum = least_squares(torch.zeros(3, 1), torch.ones(3, 1), bias=False)
    assert (optimum.rank, optimum.weight.item(), optimum.loss) == (0, 0, pytest.approx(1))
    assert stable_lr(optimum.curvature) == float("inf")


ROUNDING = {  # x, y, and the solution that has zeros in it
    "the four points": ([[1], [2], [3], [4]], [[2], [4], [6], [8]], [[2]], [0], 0),
    "no exact fractions": ([[0.1], [0.2], [0.3], [0.7]], [[0.2], [0.4], [0.6], [1.4]], [[2]], [0], 0),
    "far from the origin": ([[1e8 + k] for k in (0, 1, 2, 5)], [[2e8 + 2 * k] for k in (0, 1, 2, 5)], [[2]], [0], 0),
    "a column without effect": ([[1, 2], [3, 1], [4, 7], [5, 5], [9, 2]], [[1], [3], [4], [5], [9]], [[1, 0]], [0], 0),
    "no slope": ([[1], [2], [3], [4]], [[1], [-1], [-1], [1]], [[0]], [0], 1),
    "two targets": ([[1], [2], [3], [4]], [[2, 5], [4, 5], [6, 5], [8, 5]], [[2], [0]], [0, 5], 0),
    "a small slope": ([[1], [2], [3], [4]], [[1 + k * 2**-40] for k in range(4)], [[2**-40]], [1 - 2**-40], 0),
    "tiny numbers": ([[1e-30], [2e-30], [4e-30]], [[1e-40], [2e-40], [3.5e-40]], None, None, None),
}


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("case", ROUNDING)
def test_values_below_the_last_digit_are_zero(case, standardized):
    x, y = (torch.tensor(values, dtype=torch.float64) for values in ROUNDING[case][:2])
    if (case == "tiny numbers") != standardized and (case == "tiny numbers" or y.std(0).min() == 0):
        pytest.skip("too tiny for a bias beside them, or constant, which is not standardized")
    of_x, of_y = (units(values, center=True) if standardized else None for values in (x, y))
    optimum, (weight, bias, loss) = least_squares(x, y, x_units=of_x, y_units=of_y), ROUNDING[case][2:]
    if weight is None:
        assert optimum.weight.item() == pytest.approx(np.polyfit(x[:, 0] * 1e30, y[:, 0] * 1e40, 1)[0] * 1e-10)
        assert optimum.loss > 0
        return
    for values, expected in ((optimum.weight, weight), (optimum.bias, bias)):
        expected = torch.tensor(expected, dtype=torch.float64)
        assert torch.equal(values == 0, expected == 0)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    assert optimum.loss == (pytest.approx(loss / (of_y[1].item() ** 2 if standardized else 1)) if loss else 0)


@pytest.mark.parametrize(("x", "y"), [((0, 1), (0, 1)), ((3,), (3, 1)), ((3, 1), (4, 1))])
def test_shapes_are_named(x, y):
    with pytest.raises(ValueError, match=r"x \(B, F\) and y \(B, T\) need the same B"):
        least_squares(torch.zeros(x), torch.zeros(y))
