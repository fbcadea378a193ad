"""Curves, pictures, histograms and the graph of a run of a SupervisedModule on LinearData."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from linear_lab.data import LinearData
from linear_lab.data.datamodule import EVALUATION_ROWS
from linear_lab.models import SupervisedModule
from linear_lab.theory.reference import Reference
from linear_lab.tracking import hparams
from linear_lab.tracking.curves import Curves
from linear_lab.tracking.graph import trace
from linear_lab.tracking.pictures.of_run import Pictures, is_plain

MAX_CURVES = 16  # coefficients that have a curve each; if there are more, only their norm is logged


class Tracker(Curves):
    """Logs curves, pictures, histograms, graph and texts of a run of a SupervisedModule on LinearData.

    Curves have one point per validation, from the initial model at step 0 to the final model. If
    ``logger.tensorboard.pictures`` is true, pictures and histograms are logged at steps 0, 1, 3, 10, 30, 100 and so on,
    and of the final model. Only TensorBoard gets more than curves. The arguments after ``reference`` are `Curves`' own.
    """

    state = ("path", "logged", "drawn", "lr")

    def __init__(self, data: LinearData, model: SupervisedModule, reference: Reference, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.data, self.model, self.reference = data, model, reference
        self.pictures = Pictures(data, model, reference) if self.logger and self.logger.pictures else None
        self.path: list[list[float]] = []  # [step, weight, bias], if there are one feature and one target
        self.drawn = -1  # the last step that has pictures

    def begin(self) -> None:
        """Log what does not change during training, and pictures of the initial model."""
        super().begin()
        if self.logger:
            self.logger.experiment.add_custom_scalars(charts(self._coefficients("param", self.model.learned())))
            with evaluation_mode(self.model):
                self.logger.log_graph_of(trace(self.model, *(values[:1] for values in self.data.parts["train"])))
        self._log_pictures(0)

    def hyperparameters(self) -> dict[str, hparams.Cell]:
        optimizer = self.model.fresh_optimizer()
        if self.lr is None:  # before the first step, for which a scheduler may have changed it
            self.lr = optimizer.param_groups[0].get("lr")
        return hparams.hyperparameters(self.config, optimizer, len(self.data.parts["train"][0]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_measured(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, started = trainer.global_step, time.perf_counter()
        if not trainer.is_global_zero:
            return
        if on_path(step):
            self._extend_path(step)
        if has_pictures(step):
            self._log_pictures(step)
            assert self.training_since  # since on_train_batch_start
            first, since = self.training_since
            self.training_since = first, since + time.perf_counter() - started  # speed does not include drawing

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Log pictures of the final model, and its numbers if no validation has logged them."""
        if step != self.logged:
            excess = self.reference.excess(self.model.network)
            loss = metrics.get("train/loss", math.nan) if excess is None else excess
            self.summary.note_small(step, torch.tensor([loss]))
        super().finish(step, metrics)
        self._log_pictures(step)

    def row(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        excess, optimum = self.reference.excess(self.model.network), self.reference.optimum
        with evaluation_mode(self.model):
            norm, _ = gradient_norms(self.model, *self.data.on_device("train"), of_rows=False)
        numbers = {
            **super().row(step, metrics),
            "optim/grad_norm": norm,
            **self._coefficients("param", self.data.schema.in_file_units(self.model.learned())),
        }
        if excess is not None:
            numbers |= {"train/excess": excess, "hp/excess_loss": excess}
        if excess:
            numbers["train/log10_excess"] = math.log10(excess)
        if optimum:
            numbers |= {"optimum/loss": optimum.loss, **self._coefficients("optimum", optimum.learned())}
        return numbers

    def _coefficients(self, group: str, parameters: dict[str, Any]) -> dict[str, float]:
        schema = self.data.schema
        return coefficients(group, parameters, schema.x, schema.labels or schema.y)

    def _extend_path(self, step: int) -> None:
        if self.pictures and self.pictures.surface and [point[0] for point in self.path[-1:]] != [step]:
            values = self.data.schema.in_file_units(self.model.learned())
            self.path.append([float(step), values["weight"][0][0], values["bias"][0]])

    def _log_pictures(self, step: int) -> None:
        # a batch that only accumulates its gradient takes no step, so this step has its pictures
        if self.pictures is None or self.logger is None or step == self.drawn:
            return
        self.drawn = step
        self._extend_path(step)
        with evaluation_mode(self.model):
            drawn = self.pictures.draw(step, [point[1:] for point in self.path])
            histograms = self.pictures.residuals()
            _, norms = gradient_norms(self.model, *self.data.on_device("train"))
        if norms is not None:
            histograms["gradient_norms"] = norms.numpy()
        for tag, png in drawn.items():
            self.logger.log_picture(f"pictures/{tag}", png, step)
        for tag, values in histograms.items():
            self.logger.log_histogram(f"train/{tag}", values, step)


def track(
    data: LightningDataModule, model: LightningModule, reference: Reference, loggers: Sequence[Logger], *arguments: Any
) -> Curves | None:
    """Return the callback that logs most of a run, given its classes; None if there are no loggers."""
    if not loggers:
        return None
    if isinstance(data, LinearData) and isinstance(model, SupervisedModule):
        return Tracker(data, model, reference, loggers, *arguments)
    return Curves(loggers, *arguments)


def on_path(step: int) -> bool:
    """Tell whether a step is a point of the path: each step up to 64, then 32 steps per doubling.

    >>> [step for step in range(124, 140) if on_path(step)]
    [124, 126, 128, 132, 136]
    """
    return step % (1 << max(0, step.bit_length() - 6)) == 0


def has_pictures(step: int) -> bool:
    """Tell whether pictures are due at a step.

    >>> [step for step in range(400) if has_pictures(step)]
    [0, 1, 3, 10, 30, 100, 300]
    """
    return step == 0 or str(step).rstrip("0") in ("1", "3")


def coefficients(group: str, parameters: dict[str, Any], x: list[str], y: list[str]) -> dict[str, float]:
    """Return coefficients by tag, as ``param/weight`` or ``param/weight/<y>/<x>``; if there are many, only norms.

    >>> coefficients("param", {"weight": [[2.0, 1.0]], "bias": [0.5]}, ["a", "b"], ["c"])
    {'param/weight/a': 2.0, 'param/weight/b': 1.0, 'param/bias': 0.5}
    """
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or len(x) * len(y) > MAX_CURVES:
        tensors = {name: torch.tensor(v, dtype=torch.float64) for name, v in parameters.items() if v is not None}
        return {f"{group}/{name}_norm": tensor.norm().item() for name, tensor in tensors.items()}
    targets = [f"/{name}" for name in y] if len(y) > 1 else [""]
    features = [f"/{name}" for name in x] if len(x) > 1 else [""]
    tags = {
        f"{group}/weight{target}{feature}": weight[row][column]
        for row, target in enumerate(targets)
        for column, feature in enumerate(features)
    }
    return tags | {f"{group}/bias{target}": bias[row] for row, target in enumerate(targets) if bias is not None}


def charts(coefficients: dict[str, float]) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the Custom Scalars page: the losses, the excess loss, each parameter with its optimum."""

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]

    return {
        "loss": {
            "train, val and optimum": chart("train/loss", "val/loss", "optimum/loss"),
            "log10 of the excess loss": chart("train/log10_excess"),
        },
        "parameters and optimum": {
            tag.removeprefix("param/"): chart(tag, tag.replace("param/", "optimum/", 1)) for tag in coefficients
        },
    }


@contextmanager
def evaluation_mode(model: SupervisedModule) -> Iterator[None]:
    """Put a model into evaluation mode; restore the mode of each module and the random state afterwards."""
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
    """Return the norm of the gradient of the loss over all rows, and the norms ``(B,)`` of the gradients of each row.

    Let ``g`` be the derivative of a row's loss by its y_hat. The row's gradient is ``g x^T`` for the weight and ``g``
    for the bias, so its norm is ``|g| sqrt(|x|^2 + 1)``. The norms of rows are None for networks other than nn.Linear.
    The ``grad`` of the parameters does not change.
    """
    linear = model.network if of_rows and is_plain(model) else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype  # Lightning rounds batches to half precision too
    total, norms = torch.zeros((), dtype=torch.float64), []
    with torch.inference_mode(False), torch.enable_grad():  # Lightning disables gradients in a validation
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
