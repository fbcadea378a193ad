"""The least-squares solution of a linear model, and the excess loss of other parameters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 65_536  # rows that are factored at once; it bounds memory
EPS = torch.finfo(torch.float64).eps
WELL_CONDITIONED = 10.0  # up to this ratio of singular values, rounding costs only a few of 16 digits
Units = tuple[Tensor, Tensor]  # mean and scale of columns


@dataclass(frozen=True)
class Optimum:
    """The parameters with the least mean squared error, and the curvature of the loss.

    Attributes:
        weight: ``(T, F)``, float64, in the units of x and y.
        bias: ``(T,)``; None for a model without a bias, unless centring the columns gives it one.
        loss: mean squared error of the optimum, in training's units, without the penalty of weight decay.
        rank: rank of ``[z, 1]``, the standardized columns of x and ones. If it is below `parameters`, there are many
            solutions, and this is the one of minimum norm (of weight and bias together, in training's units).
        parameters: P, the number of columns of ``[z, 1]``.
        curvature: the largest eigenvalue of the loss's Hessian ``2 / (B T) [z, 1]^T [z, 1] + weight_decay I``.
        solution: weight and bias in training's units, ``(P, T)``.
    """

    weight: Tensor
    bias: Tensor | None
    loss: float
    rank: int
    parameters: int
    curvature: float
    solution: Tensor
    _factor: Tensor  # the triangle R of [z, 1] = Q R, divided by sqrt(B T / 2)
    _weight_decay: float

    def learned(self) -> dict[str, Any]:
        """Return weight and bias as lists, like `LinearModule.learned`."""
        return {"weight": self.weight.tolist(), "bias": None if self.bias is None else self.bias.tolist()}

    def excess(self, weight: Tensor, bias: Tensor | None) -> float:
        """Return the loss of other parameters minus the optimum's: never below 0, since nothing cancels.

        The loss is quadratic: at a distance d from its minimum it is higher by ``d^T H d / 2``. Both losses include the
        penalty of weight decay.

        Args:
            weight: ``(T, F)``, in training's units.
            bias: ``(T,)`` or None, in training's units.
        """
        return self.excesses(weight[None], None if bias is None else bias[None]).item()

    def excesses(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the excess loss of J models, ``(J,)``; weight is ``(J, T, F)`` and bias ``(J, T)``."""
        columns = [weight] if bias is None else [weight, bias[..., None]]
        distance = torch.cat(columns, -1).double() - self.solution.T.to(weight.device)
        curved = distance @ self._factor.T.to(weight.device)
        return (curved.square().sum((1, 2)) + self._weight_decay * distance.square().sum((1, 2))) / 2


def least_squares(
    x: Tensor,
    y: Tensor,
    *,
    bias: bool = True,
    weight_decay: float = 0.0,
    x_units: Units | None = None,
    y_units: Units | None = None,
) -> Optimum:
    """Minimise ``mean((y_hat - y)^2) + weight_decay / 2 |parameters|^2``: least squares, or ridge regression.

    The method is QR factorization of blocks of rows, then an SVD of the last triangle (Golub & Van Loan, *Matrix
    Computations*, 4th ed., sec. 5.3 and 5.5). Two steps of iterative refinement on the unscaled values restore the
    digits that rounding z has cost (Björck, *Numerical Methods for Least Squares Problems*, 1996, sec. 6.6). There is
    no refinement with weight decay, for linearly dependent columns, and for more than `BLOCK` rows of well-conditioned
    columns, where it would gain few digits and take seconds.

    Args:
        x: inputs, ``(B, F)``.
        y: targets, ``(B, T)``.
        bias: whether the model has a bias.
        weight_decay: at least 0; it applies to all parameters, in training's units, as in PyTorch's SGD and Adam.
        x_units: mean and scale, ``(F,)`` each: training sees ``z = (x - mean) / scale``; None means ``z = x``.
        y_units: mean and scale of y, ``(T,)`` each, or None.

    Raises:
        ValueError: if x or y is not 2-D, if they have no rows, or if their numbers of rows differ.

    >>> optimum = least_squares(torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([[3.0], [5], [7], [9]]))
    >>> round(optimum.weight.item(), 9), round(optimum.bias.item(), 9), round(optimum.loss, 9)
    (2.0, 1.0, 0.0)
    >>> round(optimum.excess(torch.tensor([[2.0]]), torch.tensor([1.5])), 9)
    0.25
    """
    if x.ndim != 2 or y.ndim != 2 or not len(x) or len(x) != len(y):
        raise ValueError(f"x (B, F) and y (B, T) need the same B of at least 1, got {tuple(x.shape)}, {tuple(y.shape)}")
    x, y = x.double().cpu(), y.double().cpu()
    x_units, y_units = x_units or _identity(x), y_units or _identity(y)
    parameters = x.shape[1] + bias
    triangle = _triangle(x, y, x_units, y_units, bias=bias)
    factor, right = triangle[:parameters, :parameters], triangle[:parameters, parameters:]
    u, s, vh = torch.linalg.svd(factor, full_matrices=False)
    keep = s > s[0] * EPS * max(len(x), parameters)
    inverse = torch.where(keep, s / (s.square() + weight_decay), 0.0)
    solution = vh.T @ (inverse[:, None] * (u.T @ right))
    residual = triangle[parameters:, parameters:]
    loss = ((factor @ solution - right).square().sum() + residual.square().sum()).item() / 2
    weight, constant = _unscaled(solution, x_units, y_units, bias=bias)
    worthwhile = len(x) <= BLOCK or s[0] > WELL_CONDITIONED * s[-1]
    if worthwhile and keep.all() and len(s) == parameters and not weight_decay:
        weight, constant = _refined(x, y, weight, constant, s, vh, x_units)
    weight, constant = _without_rounding(x, y, weight, constant)
    if worthwhile:
        scale = y_units[1].numpy()
        squares = sum(np.square(residual / scale).sum() for _, residual in _residuals(x, y, weight, constant))
        loss = float(squares / y.numel())
    loss = 0.0 if loss <= (EPS * y.abs().amax(0) / y_units[1]).square().mean() else loss
    intercept = constant if bias or x_units[0].any() or y_units[0].any() else None
    rank, curvature = int(keep.sum()), s[0].square().item() + weight_decay
    return Optimum(weight, intercept, loss, rank, parameters, curvature, solution, factor, weight_decay)


def _identity(values: Tensor) -> Units:
    return torch.zeros_like(values[0]), torch.ones_like(values[0])


def _triangle(x: Tensor, y: Tensor, x_units: Units, y_units: Units, *, bias: bool) -> Tensor:
    """Return R of ``[z, 1, t] = Q R``, t being standardized y, divided by sqrt(B T / 2)."""
    triangle = torch.empty(0)  # torch.cat skips it
    for x_block, y_block in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True):
        z = torch.where(x_units[1] > 0, (x_block - x_units[0]) / x_units[1], 0.0)
        ones = torch.ones(len(z), int(bias), dtype=torch.float64)
        block = torch.cat([z, ones, (y_block - y_units[0]) / y_units[1]], 1)
        triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
    scale: float = (2 / y.numel()) ** 0.5
    return triangle * scale


def _unscaled(solution: Tensor, x_units: Units, y_units: Units, *, bias: bool) -> Units:
    """Return weight ``(T, F)`` and bias ``(T,)`` in the units of x and y."""
    (x_mean, x_scale), (y_mean, y_scale), features = x_units, y_units, len(x_units[0])
    weight = torch.where(x_scale > 0, y_scale[:, None] * solution[:features].T / x_scale, 0.0)
    return weight, y_mean - weight @ x_mean + (y_scale * solution[features] if bias else 0.0)


def _refined(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, s: Tensor, vh: Tensor, x_units: Units) -> Units:
    """Return weight and bias after two steps of iterative refinement with singular values s and vectors vh."""
    (x_mean, x_scale), features, parameters = x_units, x.shape[1], len(s)
    for _ in range(2):
        gradient = _gradient(x, y, weight, bias, x_units)[:parameters]
        step = vh.T @ ((vh @ gradient) / s.square()[:, None])
        change = (step[:features] / x_scale[:, None]).T
        weight = weight + change
        bias = bias - change @ x_mean + (step[features] if parameters > features else 0.0)
    return weight, bias


def _without_rounding(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Units:
    """Set weights and biases to 0 whose effect is below the last digit of the largest y or y_hat."""
    x, y = x.abs().amax(0), y.abs().amax(0)
    weight = torch.where(weight.abs() * x <= EPS * y[:, None], 0.0, weight)
    return weight, torch.where(bias.abs() <= EPS * torch.maximum(y, weight.abs() @ x), 0.0, bias)


def _residuals(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[Any, Any]]:
    """Yield blocks of x and of ``y - x weight^T - bias``, in extended precision where the machine has it."""
    for x_block, y_block in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True):
        block = x_block.numpy().astype(np.longdouble)
        yield block, y_block.numpy() - block @ weight.numpy().T - bias.numpy()


def _gradient(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, x_units: Units) -> Tensor:
    """Return ``2 / (B T) [z, 1]^T (y - x weight^T - bias)``, ``(F + 1, T)``."""
    mean, scale = (values.numpy() for values in x_units)
    total = np.zeros((x.shape[1] + 1, y.shape[1]), np.longdouble)
    for block, residual in _residuals(x, y, weight, bias):
        total[:-1] += ((block - mean) / scale).T @ residual
        total[-1] += residual.sum(0)
    return torch.from_numpy((total * 2 / y.numel()).astype(np.float64))
