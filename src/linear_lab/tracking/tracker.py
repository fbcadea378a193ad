"""What a run logs, and when."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import Optimizer

from linear_lab.data import LinearData
from linear_lab.data.datamodule import EVALUATION_ROWS
from linear_lab.models import SupervisedModule
from linear_lab.runs.fingerprints import decides, leaves
from linear_lab.theory.reference import Reference
from linear_lab.tracking import hparams
from linear_lab.tracking.graph import trace
from linear_lab.tracking.pictures.of_run import Pictures, is_plain
from linear_lab.tracking.summary import Summary
from linear_lab.tracking.tensorboard import RunLogger

MOST_CURVES = 16  # coefficients with a curve each; of more coefficients only the norm is logged
STATE = ("path", "logged", "drawn", "lr")  # attributes that a checkpoint holds


class Tracker(Callback):
    """Logs a run's curves to all loggers; HPARAMS row, pictures, histograms, graph and texts to TensorBoard alone.

    Curves have a point per validation, from the initial model at step 0 to the final one. Pictures and histograms are
    logged at steps 0, 1, 3, 10, 30, 100 and so on, and of the final model, if ``logger.tensorboard.pictures`` is
    true. Other loggers get the config as hyperparameters.
    ``config`` holds plain containers, interpolations not resolved. `StopOnDivergence`, which acts before, updates
    ``summary``.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        data: LinearData,
        model: SupervisedModule,
        reference: Reference,
        config: dict[str, Any],
        summary: Summary,
    ) -> None:
        self.loggers, self.data, self.model, self.reference = loggers, data, model, reference
        self.logger = next((logger for logger in loggers if isinstance(logger, RunLogger)), None)  # for TensorBoard
        self.config, self.summary = config, summary
        self.pictures = Pictures(data, model, reference) if self.logger and self.logger.pictures else None
        self.path: list[list[float]] = []  # [step, weight, bias] of models with one feature and one target
        self.logged = -1  # the last step whose numbers were logged
        self.drawn = -1  # the last step that has pictures
        self.caught_up = False  # whether `finish` logged the last numbers, and not a validation
        self.lr: float | None = None  # of the last step
        self.training_since: tuple[int, float] | None = None  # step and time of the first batch after a validation
        self.speed: float | None = None  # steps per second between the last two validations

    def begin(self) -> None:
        """Log what does not change, and pictures of the initial model."""
        self.describe(0)
        resolved: Any = OmegaConf.to_container(OmegaConf.create(self.config), resolve=True)
        for logger in self.loggers:
            logger.log_hyperparams({".".join(keys): value for keys, value in leaves(resolved) if decides(keys, value)})
        if self.logger:
            self.logger.experiment.add_custom_scalars(charts(self._coefficients("param", self.model.learned())))
            with evaluation_mode(self.model):
                self.logger.log_graph_of(trace(self.model, *(values[:1] for values in self.data.parts["train"])))
        self._log_pictures(0)

    def describe(self, step: int) -> None:
        """Write the hyperparameters into the run's row, and log the config; a resumed run may have changed them."""
        optimizers: Any = self.model.configure_optimizers()
        optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
        if self.lr is None:  # before the first step; a scheduler may have changed it already
            self.lr = optimizer.param_groups[0].get("lr")
        if self.logger is None:
            return
        columns = hparams.hyperparameters(self.config, optimizer, len(self.data.parts["train"][0]))
        hparams.write_start(Path(self.logger.root_dir), columns)
        yaml = OmegaConf.to_yaml(OmegaConf.create(self.config), resolve=True)
        self.logger.log_text("config", f"```yaml\n{yaml}```", step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, now = trainer.global_step, time.perf_counter()
        first, started = self.training_since or (step, now)
        self.speed = (step - first) / (now - started) if step > first else None
        self.training_since = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
            self._log_scalars(trainer.global_step, metrics)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.training_since = self.training_since or (trainer.global_step, time.perf_counter())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.lr = optimizer.param_groups[0].get("lr")  # after the step, a scheduler may set that of the next one

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, started = trainer.global_step, time.perf_counter()
        if not trainer.is_global_zero:
            return
        if on_path(step):
            self._follow(step)
        if has_pictures(step):
            self._log_pictures(step)
            if self.training_since:  # the time of drawing does not count for the speed
                self.training_since = self.training_since[0], self.training_since[1] + time.perf_counter() - started

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Log pictures of the final model, and its numbers if no validation has, as in a run that diverged."""
        self.caught_up = step != self.logged
        if self.caught_up:
            excess = self.reference.excess(self.model.network)
            self.summary.note_small(step, torch.tensor([metrics["train/loss"] if excess is None else excess]))
            self._log_scalars(step, metrics)
        self._log_pictures(step)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in STATE})

    def _log_scalars(self, step: int, metrics: dict[str, float]) -> None:
        self.logged = step
        excess, optimum = self.reference.excess(self.model.network), self.reference.optimum
        summary, metric, small_at = self.summary, self.summary.metric, int(self.summary.small_at)
        # the initial model has no checkpoint, so it counts as best only until there is one
        best = summary.best if summary.best_step >= 0 else summary.first.get(metric, metrics[metric])
        steps_above = step if small_at < 0 else small_at
        with evaluation_mode(self.model):
            norm, _ = gradient_norms(self.model, *self.data.near("train"), of_rows=False)
        scalars: dict[str, float | None] = {
            "train/excess": excess,
            "train/log10_excess": math.log10(excess) if excess else None,
            "optim/lr": self.lr,
            "optim/grad_norm": norm,
            "time/steps_per_second": self.speed,
            **self._coefficients("param", self.data.schema.in_file_units(self.model.learned())),
            **hparams.metrics(metric, metrics["train/loss"], excess, metrics[metric], float(best), steps_above),
        }
        if optimum:
            scalars |= {"optimum/loss": optimum.loss, **self._coefficients("optimum", optimum.learned())}
        numbers = {name: number for name, number in scalars.items() if number is not None}
        for logger in self.loggers:
            logger.log_metrics(numbers, step)

    def _coefficients(self, group: str, parameters: dict[str, Any]) -> dict[str, float]:
        schema = self.data.schema
        return coefficients(group, parameters, schema.x, schema.labels or schema.y)

    def _follow(self, step: int) -> None:
        if self.pictures and self.pictures.surface and [point[0] for point in self.path[-1:]] != [step]:
            values = self.data.schema.in_file_units(self.model.learned())
            self.path.append([float(step), values["weight"][0][0], values["bias"][0]])

    def _log_pictures(self, step: int) -> None:
        if (
            self.pictures is None or self.logger is None or step == self.drawn
        ):  # a batch whose gradient is only accumulated takes no step
            return
        self.drawn = step
        self._follow(step)
        with evaluation_mode(self.model):
            drawn = self.pictures.draw(step, [point[1:] for point in self.path])
            histograms = self.pictures.residuals()
            _, norms = gradient_norms(self.model, *self.data.near("train"))
        if norms is not None:
            histograms["gradient_norms"] = norms.numpy()
        for tag, png in drawn.items():
            self.logger.log_picture(f"pictures/{tag}", png, step)
        for tag, values in histograms.items():
            self.logger.log_histogram(f"train/{tag}", values, step)


def on_path(step: int) -> bool:
    """Tell whether a step is a point of the path: every step up to 64, then 32 steps per doubling.

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
    """Name coefficients as tags: ``param/weight``, or ``param/weight/<y>/<x>`` for several; of many only the norms.

    >>> coefficients("param", {"weight": [[2.0, 1.0]], "bias": [0.5]}, ["a", "b"], ["c"])
    {'param/weight/a': 2.0, 'param/weight/b': 1.0, 'param/bias': 0.5}
    """
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or len(x) * len(y) > MOST_CURVES:
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
            "train, val and the least": chart("train/loss", "val/loss", "optimum/loss"),
            "excess loss, log10": chart("train/log10_excess"),
        },
        "parameters and optimum": {
            tag.removeprefix("param/"): chart(tag, tag.replace("param/", "optimum/", 1)) for tag in coefficients
        },
    }


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
