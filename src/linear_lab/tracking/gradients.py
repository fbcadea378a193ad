"""A model looked at beside its training: the gradients of its loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from linear_lab.data.datamodule import EVALUATION_ROWS
from linear_lab.models import SupervisedModule
from linear_lab.tracking.figures.selection import is_plain


@contextmanager
def untouched(model: SupervisedModule) -> Iterator[None]:
    """Run a model beside its training: without Dropout, and so that neither its buffers nor random numbers change."""
    training = {module: module.training for module in model.modules()}
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def gradient_norms(
    model: SupervisedModule, x: Tensor, y: Tensor, *, of_rows: bool = True
) -> tuple[float, Tensor | None]:
    """Norm of the gradient of the loss over all rows, and the norms of the rows' own gradients.

    A row's gradient is that of its own loss: with ``g`` the derivative by its y_hat, ``g x^T`` for the weight and ``g``
    for the bias, so its norm is ``|g| sqrt(|x|^2 + 1)``. The gradient over all rows is their mean.

    Args:
        model: its weights stay as they are, and its gradients; see `untouched` for the rest.
        x: ``(B, F)``, as training sees it.
        y: ``(B, T)`` or ``(B,)``.
        of_rows: False leaves the rows' own out.

    Returns:
        a number, and ``(B,)``, float64, on the CPU; None for another network than nn.Linear.
    """
    linear = model.network if of_rows and is_plain(model) else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype  # of half precision, whose batches Lightning rounds
    total, norms = torch.zeros((), dtype=torch.float64), []
    with torch.inference_mode(False), torch.enable_grad():  # Lightning validates without gradients
        for rows in range(0, len(x), EVALUATION_ROWS):
            inputs, targets = (
                values[rows : rows + EVALUATION_ROWS].to(model.device, dtype if values.is_floating_point() else None)
                for values in (x, y)
            )
            y_hat = model(inputs)
            wanted = parameters if linear is None else [*parameters, y_hat]
            gradients = torch.autograd.grad(
                model.loss(y_hat, targets), wanted, allow_unused=True, materialize_grads=True
            )
            flat = torch.cat([values.flatten() for values in gradients[: len(parameters)]])
            total = total + flat.cpu().double() * (len(inputs) / len(x))
            if linear is not None:
                length = inputs.square().sum(1) + (linear.bias is not None)
                norms.append((gradients[-1].norm(dim=1) * len(inputs) * length.sqrt()).cpu().double())
    return total.norm().item(), torch.cat(norms) if norms else None
