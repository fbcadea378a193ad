"""Gradients of the loss, computed beside training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from linear_lab.data.datamodule import EVALUATION_ROWS
from linear_lab.models import SupervisedModule
from linear_lab.tracking.figures.selection import is_plain


@contextmanager
def evaluation_mode(model: SupervisedModule) -> Iterator[None]:
    """Run a model in evaluation mode, and restore each module's mode and the random state afterwards."""
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
    """Norm of the gradient of the loss over all rows, and the norms ``(B,)`` of the gradients of each row's loss.

    With ``g`` the derivative of a row's loss by its y_hat, its gradient is ``g x^T`` for the weight and ``g`` for the
    bias, so that its norm is ``|g| sqrt(|x|^2 + 1)``. For other networks than nn.Linear the norms of rows are None. The
    parameters' ``grad`` does not change.
    """
    linear = model.network if of_rows and is_plain(model) else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype  # with half precision, Lightning rounds the batches too
    total, norms = torch.zeros((), dtype=torch.float64), []
    with torch.inference_mode(False), torch.enable_grad():  # Lightning validates without gradients
        for start in range(0, len(x), EVALUATION_ROWS):
            rows = slice(start, start + EVALUATION_ROWS)
            inputs = x[rows].to(model.device, dtype)
            targets = y[rows].to(model.device, dtype if y.is_floating_point() else None)
            y_hat = model(inputs)
            variables = parameters if linear is None else [*parameters, y_hat]
            loss = model.loss(y_hat, targets)
            gradients = torch.autograd.grad(loss, variables, allow_unused=True, materialize_grads=True)
            flat = torch.cat([values.flatten() for values in gradients[: len(parameters)]])
            total = total + flat.cpu().double() * (len(inputs) / len(x))
            if linear is not None:
                length = inputs.square().sum(1) + (linear.bias is not None)
                norms.append((gradients[-1].norm(dim=1) * len(inputs) * length.sqrt()).cpu().double())
    return total.norm().item(), torch.cat(norms) if norms else None
