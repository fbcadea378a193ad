"""Losses of torch.nn whose numbers are tensors, so that they can differ between models under vmap.

``torch.nn.functional`` takes plain numbers for ``delta`` and ``label_smoothing``, and refuses tensors under vmap.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]  # (y_hat, y, numbers) -> loss


def mse(y_hat: Tensor, y: Tensor, numbers: dict[str, Tensor]) -> Tensor:
    return (y_hat - y).square().mean()


def mae(y_hat: Tensor, y: Tensor, numbers: dict[str, Tensor]) -> Tensor:
    return (y_hat - y).abs().mean()


def huber(y_hat: Tensor, y: Tensor, numbers: dict[str, Tensor]) -> Tensor:
    """``mean(e^2 / 2)`` where ``|e| < delta``, else ``delta (|e| - delta / 2)``, with ``e = y_hat - y``.

    >>> huber(torch.full((1, 1), 3.0), torch.zeros(1, 1), {"delta": torch.tensor(2.0)}).item()
    4.0
    """
    error, delta = (y_hat - y).abs(), numbers["delta"].to(y_hat.dtype)
    return torch.where(error < delta, error.square() / 2, delta * (error - delta / 2)).mean()


def cross_entropy(y_hat: Tensor, y: Tensor, numbers: dict[str, Tensor]) -> Tensor:
    """``mean(-(1 - s) log p[y] - s mean(log p))``, ``p = softmax(y_hat)``; y_hat ``(B, C)``, y ``(B,)`` int64."""
    surprise, smoothing = -y_hat.log_softmax(1), numbers["label_smoothing"].to(y_hat.dtype)
    of_label = surprise.gather(1, y[:, None])[:, 0]
    return ((1 - smoothing) * of_label + smoothing * surprise.mean(1)).mean()


LOSSES: dict[str, tuple[Loss, dict[str, float]]] = {  # by class: the function, and the defaults of its numbers
    "torch.nn.MSELoss": (mse, {}),
    "torch.nn.L1Loss": (mae, {}),
    "torch.nn.HuberLoss": (huber, {"delta": 1.0}),
    "torch.nn.CrossEntropyLoss": (cross_entropy, {"label_smoothing": 0.0}),
}
BOUNDS = {"delta": (0.0, torch.inf, "()"), "label_smoothing": (0.0, 1.0, "[]")}  # the ranges that torch accepts
