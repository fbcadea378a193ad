"""The linear model."""

from typing import Any

import torch
from torch import Tensor, nn

from linear_lab.models.supervised import SupervisedModule


class LinearModule(SupervisedModule):
    """``y_hat = x W^T + b``, fitted by gradient descent; for classification y_hat are the logits of C classes.

    Args:
        in_features: F, the number of columns of x.
        out_features: T, the number of columns of y, or C, the number of classes.
        bias: False leaves b out; True draws its initial value at random; a number or a list of T numbers sets it.
        weight: the initial W: a number, or ``(T, F)`` numbers; None draws it at random.
        **training: loss, optimizer, scheduler, metric and schema, see `SupervisedModule`.

    Raises:
        ValueError: if the initial weight or bias has the wrong shape, or for the reasons of `SupervisedModule`.

    >>> module = LinearModule(1, 1, weight=0.5636951923370361, bias=0.46575701236724854)
    >>> module(torch.tensor([[2.0]])).item()
    1.5931473970413208
    """

    network: nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool | float | list[float] = True,
        weight: float | list[Any] | None = None,
        **training: Any,
    ) -> None:
        linear = nn.Linear(in_features, out_features, bias=bias is not False)
        if weight is not None:
            set_parameter(linear.weight, weight, "weight")
        if not isinstance(bias, bool):
            set_parameter(linear.bias, bias, "bias")
        super().__init__(linear, **training)

    def learned(self) -> dict[str, Any]:
        """Return ``weight`` ``(T, F)`` and ``bias`` ``(T,)`` as lists; bias is None for a model without one."""
        return {"bias": None} | super().learned()


@torch.no_grad()
def set_parameter(parameter: Tensor, values: Any, name: str) -> None:
    """Set a parameter to the given numbers; a single number sets all its elements."""
    try:
        tensor = torch.tensor(values, dtype=parameter.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number, or rows of numbers of equal length, got {values}") from error
    if tensor.ndim == 1 and parameter.ndim == 2 and parameter.shape[0] == 1:
        tensor = tensor.unsqueeze(0)  # with one target, a plain list holds its coefficients
    if tensor.ndim and tensor.shape != parameter.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but the data need {tuple(parameter.shape)}")
    parameter.copy_(tensor.expand_as(parameter))
