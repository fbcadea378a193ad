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


@pytest.mark.parametrize(
    ("case", "standardized"),  # tiny numbers need it beside a bias, and a constant target cannot be standardized
    [
        (case, standardized)
        for case in ROUNDING
        for standardized in (False, True)
        if standardized == (case == "tiny numbers") or case not in ("tiny numbers", "two targets")
    ],
)
def test_values_below_the_last_digit_are_zero(case, standardized):
    x, y = (torch.tensor(values, dtype=torch.float64) for values in ROUNDING[case][:2])
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


def test_stable_rates_by_hand():
    assert stable_lr(0.5) == 2 / 0.5
    assert stable_lr(4.0, dampening=0.5) == 2 / 4  # PyTorch ignores dampening without momentum
    assert stable_lr(4.0, momentum=0.5) == 2 * 1.5 / 4
    assert stable_lr(4.0, momentum=0.5, dampening=0.2) == 2 * 1.5 / 4 / 0.8
    assert stable_lr(4.0, momentum=0.5, nesterov=True) == 2 * 1.5 / 4 / 2
    assert stable_lr(0.0, momentum=0.5) == stable_lr(-1e-20) == float("inf")


def test_the_optimum_as_lists():
    x, y = [[1.0], [2], [4]], [[1.0, 2], [3, 4], [7, 8]]
    optimum = least_squares(torch.tensor(x), torch.tensor(y))
    assert optimum.learned() == {"weight": optimum.weight.tolist(), "bias": optimum.bias.tolist()}
    through_zero = least_squares(torch.tensor([[1.0], [2]]), torch.tensor([[1.0], [3]]), bias=False)
    assert through_zero.learned() == {"weight": [[pytest.approx(7 / 5)]], "bias": None}


@pytest.mark.parametrize("bias", [True, False])
def test_the_excess_loss_of_a_network_by_hand(bias):
    x, y = torch.tensor([[1.0], [2], [4]]), torch.tensor([[2.0], [4], [8]])
    linear = nn.Linear(1, 1, bias=bias)
    result = reference(linear, nn.MSELoss(), torch.optim.SGD(linear.parameters()), x, y)
    with torch.no_grad():
        linear.weight.fill_(3)
        if bias:
            linear.bias.fill_(0.5)
    squares = [(3 * value + 0.5 * bias - 2 * value) ** 2 for value in (1, 2, 4)]
    assert result.excess(linear) == pytest.approx(sum(squares) / 3)
    assert result.excess(nn.Sequential(linear)) is None
    assert result._replace(optimum=None).excess(linear) is None


def test_optima_are_cached_by_weight_decay():
    x, y, linear, optima = *draw(8, 1), nn.Linear(1, 1), {}
    for decay in (0.0, 0.5, 0.5, 0.0):
        optimizer = torch.optim.Adam(linear.parameters(), weight_decay=decay)
        result = reference(linear, nn.MSELoss(), optimizer, x, y, optima=optima)
        assert result.optimum is optima[decay]
        assert result.weight_decay == decay
    assert list(optima) == [0.0, 0.5]
    cached = optima[0.5]
    assert reference(linear, nn.MSELoss(), optimizer, x, y, optima={0.0: cached}).optimum is cached


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.LBFGS])
def test_a_reference_has_the_units_and_the_weight_decay_of_training(kind):
    x, y = draw(8, 2)
    of_x, of_y = units(x, center=True), units(y, center=True)
    linear = nn.Linear(2, 1)
    decay = {} if kind is torch.optim.LBFGS else {"weight_decay": 0.3}
    result = reference(linear, nn.MSELoss(), kind(linear.parameters(), **decay), x, y, of_x, of_y)
    coupled = kind in (torch.optim.SGD, torch.optim.Adam)
    expected = least_squares(x, y, weight_decay=0.3 if coupled else 0.0, x_units=of_x, y_units=of_y)
    assert result.weight_decay == (0.3 if coupled else 0)
    assert torch.equal(result.optimum.solution, expected.solution)
    assert torch.equal(result.optimum.weight, expected.weight)
    assert result.stable_lr == (pytest.approx(2 / expected.curvature) if kind is torch.optim.SGD else None)


def test_sgd_that_maximizes_has_no_stable_rate():
    x, y = draw(8, 1)
    linear = nn.Linear(1, 1)
    sgd = torch.optim.SGD(linear.parameters(), maximize=True, weight_decay=0.1)
    assert reference(linear, nn.MSELoss(), sgd, x, y)[1:] == (None, 0.1)


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_excess_losses_of_many_models_are_those_of_each(decay):
    x, y = draw(20, 2, 3)
    optimum = least_squares(x, y, weight_decay=decay)
    weight, bias = torch.randn(5, 3, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = [optimum.excess(one, shift) for one, shift in zip(weight, bias, strict=True)]
    assert optimum.excesses(weight, bias).tolist() == pytest.approx(expected)
    assert optimum.excesses(weight.to("meta"), bias.to("meta")).device.type == "meta"


@pytest.mark.parametrize("center", [True, False])
def test_a_standardized_column_without_spread_has_no_effect(center):
    x, y = draw(9, 2)
    wide = torch.cat([x[:, :1], torch.full((9, 1), 0.3 if center else 0.0, dtype=torch.float64), x[:, 1:]], 1)
    bare = least_squares(x, y, x_units=units(x, center=center))
    optimum = least_squares(wide, y, x_units=units(wide, center=center))
    assert (optimum.rank, optimum.parameters) == (3, 4)
    assert optimum.weight[0, 1] == 0
    torch.testing.assert_close(optimum.weight[:, [0, 2]], bare.weight)
    torch.testing.assert_close(optimum.bias, bare.bias)
    assert optimum.loss == pytest.approx(bare.loss)
    assert optimum.curvature == pytest.approx(bare.curvature)


def test_a_weight_without_effect_on_the_last_digit_of_y_is_zero():
    for small, expected in ((2**-52, 0), (2**-51, 2**-51)):
        optimum = least_squares(torch.eye(2), torch.tensor([[1.0], [small]]), bias=False)
        assert optimum.weight.tolist() == [[1, expected]]
        assert optimum.loss == 0


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_small_blocks_of_rows_change_nothing(decay, monkeypatch):
    x, y = draw(22, 2, 3)
    of_x, of_y = units(x + 2, center=True), units(3 * y, center=True)
    whole = least_squares(x + 2, 3 * y, weight_decay=decay, x_units=of_x, y_units=of_y)
    monkeypatch.setattr("linear_lab.theory.least_squares.BLOCK", 5)
    blocks = least_squares(x + 2, 3 * y, weight_decay=decay, x_units=of_x, y_units=of_y)
    torch.testing.assert_close(blocks.weight, whole.weight)
    torch.testing.assert_close(blocks.bias, whole.bias)
    assert blocks.loss == pytest.approx(whole.loss)
    assert blocks.curvature == pytest.approx(whole.curvature)


@pytest.mark.parametrize(
    ("rows", "scales", "decay", "expected"),
    [
        (20, (50, 50, 50), 0.0, True),
        (21, (50, 50, 50), 0.0, False),  # more than a block of well-conditioned columns
        (21, (500, 5, 5), 0.0, True),
        (21, (500, 500, 5), 0.0, True),
        (20, (50, 50, 50), 0.1, False),
        (20, (50, 50, 0), 0.0, False),
        (2, (50, 50, 50), 0.0, False),
    ],
)
def test_what_is_refined(rows, scales, decay, expected, monkeypatch):
    calls = []
    monkeypatch.setattr("linear_lab.theory.least_squares.BLOCK", 20)
    monkeypatch.setattr("linear_lab.theory.least_squares._refined", lambda *args: calls.append(args) or args[2:4])
    x, y = draw(rows, 3)
    least_squares(x * torch.tensor(scales), y, bias=False, weight_decay=decay)
    assert bool(calls) == expected


def test_a_small_loss_is_zero_only_below_the_last_digit_of_each_target():
    x, y = torch.tensor([[1.0], [0]]), torch.tensor([[1, 1e6], [1e-12, 0]], dtype=torch.float64)
    of_y = torch.zeros(2, dtype=torch.float64), torch.tensor([1, 1e6], dtype=torch.float64)
    assert least_squares(x, y, bias=False, y_units=of_y).loss == pytest.approx(1e-24 / 4, abs=0)
    y[1, 0] = 1e-17
    assert least_squares(x, y, bias=False, y_units=of_y).loss == 0


def test_centring_gives_a_model_without_a_bias_an_intercept():
    x, y = draw(9, 2)
    for of_x, of_y in ((units(x + 5, center=True), None), (None, units(y + 5, center=True))):
        optimum = least_squares(x + 5, y + 5, bias=False, x_units=of_x, y_units=of_y)
        (mean, scale), shift = of_x or (torch.zeros(2), torch.ones(2)), of_y[0] if of_y else 0
        z, t = ((x + 5 - mean) / scale).numpy(), (y + 5 - shift).numpy()
        weight = np.linalg.lstsq(z, t)[0][:, 0] / scale.numpy()
        np.testing.assert_allclose(optimum.weight[0], weight, rtol=1e-10)
        np.testing.assert_allclose(optimum.bias, shift - weight @ mean.numpy(), rtol=1e-10)
