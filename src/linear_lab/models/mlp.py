"""The multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from linear_lab.models.supervised import SupervisedModule

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "identity": nn.Identity}


class MLPModule(SupervisedModule):
    """A multilayer perceptron, ``y_hat = W_n a(... a(W_1 x + b_1) ...) + b_n``.

    Args:
        in_features: F, the number of columns of x.
        out_features: T, the number of columns of y, or C, the number of classes.
        hidden: width of each hidden layer, at least 1; an empty list gives a linear model.
        activation: a, applied to each element of a hidden layer: tanh, relu or identity.
        bias: False leaves out the bias of every layer.
        **training: loss, optimizer, scheduler, metric and schema, see `SupervisedModule`.

    Raises:
        ValueError: if a width is below 1 or the activation is unknown, or for the reasons of `SupervisedModule`.

    >>> [tuple(p.shape) for p in MLPModule(2, 1, hidden=[3]).parameters()]
    [(3, 2), (3,), (1, 3), (1,)]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (16,),
        activation: str = "tanh",
        bias: bool = True,
        **training: Any,
    ) -> None:
        if not isinstance(hidden, Sequence) or any(type(width) is not int or width < 1 for width in hidden):
            raise ValueError(f"hidden must be a list of widths of at least 1, as in [16,16], got {hidden}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation}")
        if not isinstance(bias, bool):
            raise ValueError(f"bias must be true or false, got {bias}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([in_features, *hidden, out_features]):
            layers += [nn.Linear(inputs, outputs, bias=bias), ACTIVATIONS[activation]()]
        super().__init__(nn.Sequential(*layers[:-1]), **training)
