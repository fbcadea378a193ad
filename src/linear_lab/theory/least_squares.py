"""What training is held against: the least-squares solution, and the largest stable learning rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

BLOCK = 65_536  # rows that are factored at once: bounds memory, not results
WELL_CONDITIONED = 10.0  # ratio of singular values up to which rounding costs no more than a few of 16 digits
Units = tuple[Tensor, Tensor]  # mean and scale of columns


@dataclass(frozen=True)
class Optimum:
    """The parameters with the smallest mean squared error, and the curvature around them.

    Attributes:
        weight: ``(T, F)``, float64, in the units of x and y.
        bias: ``(T,)``; None for a model without, unless centred columns give it one.
        loss: mean squared error there, in training's units; without the penalty of weight decay.
        rank: of ``[z, 1]``, the columns of x as training sees them; below `parameters` there are many solutions, and
            this is the one of minimum norm (of weight and bias together, in training's units).
        parameters: P, columns of ``[z, 1]``.
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
    _factor: Tensor  # the triangle R of [z, 1] = Q R, divided by the root of B T / 2
    _weight_decay: float

    def learned(self) -> dict[str, Any]:
        """Return weight and bias as lists, as a linear model does."""
        return {"weight": self.weight.tolist(), "bias": None if self.bias is None else self.bias.tolist()}

    def excess(self, weight: Tensor, bias: Tensor | None) -> float:
        """Loss of other parameters minus the least loss, without cancellation: never negative.

        The loss is quadratic: at a distance d from its minimum it is higher by ``d^T H d / 2``, with weight decay its
        penalty included.

        Args:
            weight: ``(T, F)``, in training's units.
            bias: ``(T,)`` or None, likewise.
        """
        return self.excesses(weight[None], None if bias is None else bias[None]).item()

    def excesses(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the excess of J models, ``(J,)``; weight is ``(J, T, F)`` and bias ``(J, T)``."""
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

    Householder triangles of blocks of rows, then the singular values of the last triangle (Golub & Van Loan, *Matrix
    Computations*, 4th ed., sec. 5.3 and 5.5). Rounding the columns to z has cost digits, most where they are nearly
    dependent. Two steps of iterative refinement on the values as given bring them back, with residuals in extended
    precision (Björck, *Numerical Methods for Least Squares Problems*, 1996, sec. 6.6): not for weight decay, for
    columns that depend on each other, and for more than `BLOCK` rows of well-conditioned ones, where it is not worth
    its time.

    Args:
        x: inputs, ``(B, F)``.
        y: targets, ``(B, T)``.
        bias: whether the model has one.
        weight_decay: at least 0; of all parameters, in training's units, as PyTorch's SGD and Adam have it.
        x_units: mean and scale, ``(F,)`` each: training sees ``z = (x - mean) / scale``; None leaves x as it is.
        y_units: likewise of y.

    Raises:
        ValueError: if x or y is not 2-D, or they have no or different numbers of rows.

    >>> found = least_squares(torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([[3.0], [5], [7], [9]]))
    >>> round(found.weight.item(), 9), round(found.bias.item(), 9), round(found.loss, 9)
    (2.0, 1.0, 0.0)
    >>> round(found.excess(torch.tensor([[2.0]]), torch.tensor([1.5])), 9)
    0.25
    """
    if x.ndim != 2 or y.ndim != 2 or not len(x) or len(x) != len(y):
        raise ValueError(f"x (B, F) and y (B, T) want the same B of at least 1, got {tuple(x.shape)}, {tuple(y.shape)}")
    x, y = x.double().cpu(), y.double().cpu()
    (x_mean, x_scale), (y_mean, y_scale) = (
        units or (torch.zeros(v.shape[1], dtype=torch.float64), torch.ones(v.shape[1], dtype=torch.float64))
        for units, v in ((x_units, x), (y_units, y))
    )
    features, parameters, targets = x.shape[1], x.shape[1] + bias, y.shape[1]
    triangle = torch.zeros(0, parameters + targets, dtype=torch.float64)
    for rows in range(0, len(x), BLOCK):
        z = torch.where(x_scale > 0, (x[rows : rows + BLOCK] - x_mean) / x_scale, 0.0)
        ones = [torch.ones(len(z), 1, dtype=torch.float64)] if bias else []
        block = torch.cat([z, *ones, (y[rows : rows + BLOCK] - y_mean) / y_scale], 1)
        triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
    triangle = triangle * (2 / y.numel()) ** 0.5  # of the loss now, not of the sum of squares
    factor, right, left_over = (
        triangle[:parameters, :parameters],
        triangle[:parameters, parameters:],
        triangle[parameters:, parameters:],
    )
    u, s, vh = torch.linalg.svd(factor, full_matrices=False)
    keep = s > s[0] * torch.finfo(s.dtype).eps * max(len(x), parameters)
    inverse = torch.where(keep, s / (s.square() + weight_decay), 0.0)
    solution = vh.T @ (inverse[:, None] * (u.T @ right))

    weight = torch.where(x_scale > 0, y_scale[:, None] * solution[:features].T / x_scale, 0.0)
    constant = y_mean - weight @ x_mean + (y_scale * solution[features] if bias else 0.0)
    loss = ((factor @ solution - right).square().sum() + left_over.square().sum()).item() / 2
    worthwhile = len(x) <= BLOCK or s[0] > WELL_CONDITIONED * s[-1]  # millions of rows cost seconds
    if worthwhile and keep.all() and len(s) == parameters and not weight_decay:
        for _ in range(2):
            gradient = _gradient(x, y, weight, constant, (x_mean, x_scale))[:parameters]
            step = vh.T @ ((vh @ gradient) / s.square()[:, None])
            change = (step[:features] / x_scale[:, None]).T
            weight = weight + change
            constant = constant - change @ x_mean + (step[features] if bias else 0.0)
        squares = sum(np.square(rest / y_scale.numpy()).sum() for _, rest in _residuals(x, y, weight, constant))
        loss = float(squares / y.numel())
    return Optimum(
        weight=weight,
        bias=constant if bias or x_mean.any() or y_mean.any() else None,
        loss=loss,
        rank=int(keep.sum()),
        parameters=parameters,
        curvature=s[0].square().item() + weight_decay,
        solution=solution,
        _factor=factor,
        _weight_decay=weight_decay,
    )


def _residuals(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[Any, Any]]:
    """Yield blocks of x and of ``y - x weight^T - bias``, in extended precision where the machine has one."""
    w, b = (values.numpy().astype(np.longdouble) for values in (weight, bias))
    for rows in range(0, len(x), BLOCK):
        block = x[rows : rows + BLOCK].numpy().astype(np.longdouble)
        yield block, y[rows : rows + BLOCK].numpy().astype(np.longdouble) - block @ w.T - b


def _gradient(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, x_units: Units) -> Tensor:
    """``2 / (B T) [z, 1]^T (y - x weight^T - bias)``, ``(F + 1, T)``."""
    mean, scale = (values.numpy().astype(np.longdouble) for values in x_units)
    total = np.zeros((x.shape[1] + 1, y.shape[1]), np.longdouble)
    for block, residual in _residuals(x, y, weight, bias):
        total[:-1] += ((block - mean) / scale).T @ residual
        total[-1] += residual.sum(0)
    return torch.from_numpy((total * 2 / y.numel()).astype(np.float64))


def stable_lr(curvature: float, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> float:
    """Largest learning rate below which full-batch gradient descent on a quadratic loss converges.

    With ``h`` the largest eigenvalue of the Hessian the error along it is multiplied by ``1 - lr h`` each step, so it
    shrinks while ``lr < 2 / h`` (Nocedal & Wright, *Numerical Optimization*, 2nd ed., sec. 3.3). With momentum m it
    follows a recurrence of second order, whose roots lie within the unit circle while ``lr < 2 (1 + m) / h``, and
    with Nesterov's gradient while ``lr < 2 (1 + m) / ((1 + 2 m) h)`` (Lessard, Recht & Packard, *Analysis and Design of
    Optimization Algorithms via Integral Quadratic Constraints*, 2016, sec. 2.2). Dampening d scales the gradient by
    ``1 - d``.

    Args:
        curvature: h, above 0.
        momentum: m, 0 to below 1.
        dampening: d, 0 to below 1.
        nesterov: Nesterov's momentum, which PyTorch allows without dampening alone.

    >>> stable_lr(16.7)
    0.11976047904191617
    """
    if curvature <= 0:
        return float("inf")
    bound = 2 * (1 + momentum) / curvature
    return bound / (1 + 2 * momentum) if nesterov else bound / (1 - (dampening if momentum else 0))


class Reference(NamedTuple):
    """What a run is held against; None where there is no such thing."""

    optimum: Optimum | None = None
    stable_lr: float | None = None
    weight_decay: float = 0.0  # whose penalty is part of what the optimum minimises

    def excess(self, network: nn.Module) -> float | None:
        """Loss of nn.Linear, in training's units, minus the least loss; None where that is not known."""
        if self.optimum is None or not isinstance(network, nn.Linear):
            return None
        linear, bias = network, network.bias
        return self.optimum.excess(linear.weight.detach().cpu(), None if bias is None else bias.detach().cpu())


def reference(
    linear: nn.Module,
    loss: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    x_units: Units | None = None,
    y_units: Units | None = None,
    solved: dict[float, Optimum] | None = None,
) -> Reference:
    """Return the optimum of nn.Linear under MSELoss, and the largest stable rate of SGD with it.

    ``solved`` has the optima of these data that are known, by weight decay, and is added to.

    Weight decay counts where the optimizer adds it to the gradient. AdamW takes it off the weights instead: its
    steps shrink with the gradient until the decay is all there is left, near the plain least-squares solution.
    """
    if not (isinstance(linear, nn.Linear) and isinstance(loss, nn.MSELoss)):
        return Reference()
    group = optimizer.param_groups[0]
    weight_decay = 0.0 if group.get("decoupled_weight_decay") else group.get("weight_decay", 0.0)
    bias = linear.bias is not None
    solved = {} if solved is None else solved
    if weight_decay not in solved:
        solved[weight_decay] = least_squares(
            x, y, bias=bias, weight_decay=weight_decay, x_units=x_units, y_units=y_units
        )
    optimum = solved[weight_decay]
    if type(optimizer) is not SGD or group["maximize"]:
        return Reference(optimum, None, weight_decay)
    rule = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
    return Reference(optimum, stable_lr(optimum.curvature, **rule), weight_decay)
