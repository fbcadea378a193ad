"""Losses of many models at once: what torch.nn computes of one, with numbers that differ from model to model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
NUMBERS: dict[str, dict[str, float]] = {  # classes of torch.nn, and the numbers that may differ, with their defaults
    "torch.nn.MSELoss": {},
    "torch.nn.L1Loss": {},
    "torch.nn.HuberLoss": {"delta": 1.0},
    "torch.nn.CrossEntropyLoss": {"label_smoothing": 0.0},
}


def stacked_loss(specs: Sequence[dict[str, Any]]) -> Loss:
    """Make the loss of J models, whose specs name one class and differ in numbers alone.

    Args:
        specs: of each model, the class under ``_target_`` and its numbers; see `NUMBERS`.

    Returns:
        A function of y_hat ``(J, T, B)`` and y ``(T, B)`` or ``(J, T, B)``, floating, or class indices ``(B,)`` or
        ``(J, B)``; it returns ``(J,)``, the mean over rows and targets of each.

    >>> loss = stacked_loss([{"_target_": "torch.nn.HuberLoss", "delta": delta} for delta in (1.0, 2.0)])
    >>> loss(torch.full((2, 1, 1), 3.0), torch.zeros(1, 1)).tolist()
    [2.5, 4.0]
    """
    name = str(specs[0]["_target_"])
    numbers = {
        key: torch.tensor([float(spec.get(key, default)) for spec in specs], dtype=torch.float64)
        for key, default in NUMBERS[name].items()
    }

    def of(key: str, like: Tensor, dimensions: int) -> Tensor:
        return numbers[key].to(like).reshape(-1, *[1] * dimensions)

    def mse(y_hat: Tensor, y: Tensor) -> Tensor:
        return (y_hat - y).square().mean((1, 2))

    def mae(y_hat: Tensor, y: Tensor) -> Tensor:
        return (y_hat - y).abs().mean((1, 2))

    def huber(y_hat: Tensor, y: Tensor) -> Tensor:
        error, delta = (y_hat - y).abs(), of("delta", y_hat, 2)
        return torch.where(error < delta, error.square() / 2, delta * (error - delta / 2)).mean((1, 2))

    def cross_entropy(y_hat: Tensor, y: Tensor) -> Tensor:
        surprise = -y_hat.log_softmax(1)  # (J, C, B)
        labels = y.expand(len(y_hat), -1)[:, None]
        smoothing = of("label_smoothing", y_hat, 1)
        rows = (1 - smoothing) * surprise.gather(1, labels)[:, 0] + smoothing * surprise.mean(1)
        return rows.mean(1)

    return {"MSELoss": mse, "L1Loss": mae, "HuberLoss": huber, "CrossEntropyLoss": cross_entropy}[
        name.rpartition(".")[2]
    ]
