"""What a run logs for TensorBoard, and when."""

import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from linear_lab.data import LinearData
from linear_lab.fitting.summary import Summary
from linear_lab.models import SupervisedModule
from linear_lab.theory.reference import Reference
from linear_lab.tracking import hparams
from linear_lab.tracking.figures.selection import Pictures
from linear_lab.tracking.gradients import gradient_norms, untouched
from linear_lab.tracking.graph import graph
from linear_lab.tracking.tensorboard import RunLogger

SINGLY = 16  # coefficients that have a curve each; of more there is the norm
KEPT = ("path", "logged", "drawn", "lr")  # in the checkpoint


class Dashboard(Callback):
    """Logs a run's curves, its HPARAMS row, pictures, histograms, graph and texts.

    Curves go on at each validation, with the weights it measured, from the untouched model at step 0 to the final one.
    Pictures and histograms are made at steps 0, 1, 3, 10, 30, 100 and so on, and of the final model.

    Args:
        logger: where to; its ``pictures`` says whether to log pictures and histograms.
        data: what the model is trained on.
        known: what the run is held against.
        config: the config as plain containers, without references resolved.
        yaml: the config as a text.
        metric: what decides which weights are best.
        summary: what is remembered of the run, kept up to date by whoever acts before.
    """

    def __init__(
        self,
        logger: RunLogger,
        data: LinearData,
        known: Reference,
        config: dict[str, Any],
        yaml: str,
        metric: str,
        summary: Summary,
    ) -> None:
        self.logger, self.data, self.known = logger, data, known
        self.config, self.yaml = config, yaml
        self.metric, self.summary = metric, summary
        self.pictures: Pictures | None = None
        self.path: list[list[float]] = []  # [step, weight, bias] of one-feature models
        self.seen = -1  # the last step that was looked at
        self.caught_up = False  # whether the last numbers are not those of a validation
        self.logged = -1  # the last step whose numbers were logged
        self.drawn = -1  # the last step that has pictures
        self.lr: float | None = None  # of the last step
        self.since: tuple[int, float] | None = None  # step and time when training went on after a validation
        self.speed: float | None = None

    def begin(self, model: SupervisedModule) -> None:
        """Log what does not change, and pictures of the untouched model."""
        self.describe(model, 0)
        self.logger.log_layout(layout(self._coefficients("param", model.learned())))
        with untouched(model):
            traced = graph(model, *(values[:1] for values in self.data.parts["train"]))
        if traced:
            self.logger.log_graph_of(traced)
        if self.logger.pictures:
            self._follow(0, model)
            self._log_pictures(0, model)

    def describe(self, model: SupervisedModule, step: int) -> None:
        """Open the run's row, or open it anew where a run goes on otherwise than it began; and show the config."""
        optimizers: Any = model.configure_optimizers()
        optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
        self.lr = optimizer.param_groups[0].get("lr")  # a scheduler may have set it already
        columns = hparams.hyperparameters(self.config, optimizer, len(self.data.parts["train"][0]))
        hparams.start(Path(self.logger.root_dir), columns)
        self.logger.log_text("config", f"```yaml\n{self.yaml}```", step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time that training took since the last validation."""
        step, now = trainer.global_step, time.perf_counter()
        self.speed = (step - self.since[0]) / (now - self.since[1]) if self.since and step > self.since[0] else None
        self.since = None

    def on_validation_end(self, trainer: Trainer, pl_module: SupervisedModule) -> None:  # type: ignore[override]
        """Log what belongs to the weights that were measured."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            measured = {name: value.item() for name, value in trainer.callback_metrics.items()}
            self._log_scalars(trainer.global_step, pl_module, measured)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock, if a validation has stopped it."""
        self.since = self.since or (trainer.global_step, time.perf_counter())
        self.seen = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the rate of the step; once it is done, a scheduler may have changed it for the next."""
        self.lr = optimizer.param_groups[0].get("lr")

    def on_train_batch_end(self, trainer: Trainer, pl_module: SupervisedModule, *_: Any) -> None:  # type: ignore[override]
        """Follow the optimizer's path, and take pictures at some steps."""
        step = trainer.global_step
        if step == self.seen or not trainer.is_global_zero:  # gradients add up over batches
            return
        self.seen = step
        if self.logger.pictures:
            if on_path(step):
                self._follow(step, pl_module)
            if has_pictures(step):
                started = time.perf_counter()
                self._log_pictures(step, pl_module)
                if self.since:  # drawing is not training
                    self.since = self.since[0], self.since[1] + time.perf_counter() - started

    def finish(self, step: int, model: SupervisedModule, measured: dict[str, float]) -> None:
        """Take pictures of the final model, and log its numbers if no validation came to it, as in a run that diverged.

        Args:
            step: how many steps were taken.
            model: the final one.
            measured: its metrics.
        """
        self.caught_up = step != self.logged
        if self.caught_up:
            excess = self.known.excess(model.network)
            loss = measured["train/loss"] if excess is None else excess
            self.summary.note_small(step, torch.tensor([loss]))
            self._log_scalars(step, model, measured)
        if self.logger.pictures and step != self.drawn:
            self._log_pictures(step, model)

    def state_dict(self) -> dict[str, Any]:
        """Keep in the checkpoint what a resumed run cannot see again."""
        path = torch.tensor(self.path, dtype=torch.float64).reshape(-1, 3)  # one object, for speed
        return {name: getattr(self, name) for name in KEPT} | {"path": path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        for name in KEPT:
            setattr(self, name, state_dict[name])
        path = state_dict["path"]  # a list in the checkpoint of an older version
        self.path = torch.as_tensor(path, dtype=torch.float64).tolist()

    def _log_scalars(self, step: int, model: SupervisedModule, measured: dict[str, float]) -> None:
        known, self.logged = self.known, step
        excess = known.excess(model.network)
        value, small = measured[self.metric], int(self.summary.small_at)
        # of checkpoints; the untouched model has none
        best = float(self.summary.best if self.summary.best_step >= 0 else self.summary.first.get(self.metric, value))
        with untouched(model):
            norm, _ = gradient_norms(model, *self.data.near("train"), of_rows=False)
        parameters = self.data.schema.in_file_units(model.learned())
        scalars: dict[str, float | None] = {
            "train/excess": excess,
            "train/log10_excess": math.log10(excess) if excess else None,
            "optim/lr": self.lr,
            "optim/grad_norm": norm,
            "time/steps_per_second": self.speed,
            **self._coefficients("param", parameters),
            **hparams.metrics(self.metric, measured["train/loss"], excess, value, best, step if small < 0 else small),
        }
        if known.optimum:
            bias = known.optimum.bias
            optimal = {"weight": known.optimum.weight.tolist(), "bias": None if bias is None else bias.tolist()}
            scalars |= {"optimum/loss": known.optimum.loss, **self._coefficients("optimum", optimal)}
        self.logger.log_metrics({name: number for name, number in scalars.items() if number is not None}, step)

    def _coefficients(self, group: str, parameters: dict[str, Any]) -> dict[str, float]:
        schema = self.data.schema
        return coefficients(group, parameters, schema.x, schema.labels or schema.y)

    def _follow(self, step: int, model: SupervisedModule) -> None:
        if self._pictures(model).has_path:
            values = self.data.schema.in_file_units(model.learned())
            self.path.append([float(step), values["weight"][0][0], values["bias"][0]])

    def _pictures(self, model: SupervisedModule) -> Pictures:
        self.pictures = self.pictures or Pictures(self.data, model, self.known)
        return self.pictures

    def _log_pictures(self, step: int, model: SupervisedModule) -> None:
        pictures = self._pictures(model)
        self.drawn = step
        if pictures.has_path and [point[0] for point in self.path[-1:]] != [step]:
            self._follow(step, model)
        with untouched(model):
            drawn = pictures.draw(step, [point[1:] for point in self.path])
            histograms = pictures.residuals()
            _, norms = gradient_norms(model, *self.data.near("train"))
        if norms is not None:
            histograms["gradient_norms"] = norms.numpy()
        for tag, png in drawn.items():
            self.logger.log_picture(f"pictures/{tag}", png, step)
        for tag, values in histograms.items():
            self.logger.log_histogram(f"train/{tag}", values, step)


def on_path(step: int) -> bool:
    """Tell whether a step is a point of the path: all up to 64, then 32 whenever their number has doubled.

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
    """Name coefficients as tags: ``param/weight``, or ``param/weight/<y>/<x>`` where there are several; norms of many.

    >>> coefficients("param", {"weight": [[2.0, 1.0]], "bias": [0.5]}, ["a", "b"], ["c"])
    {'param/weight/a': 2.0, 'param/weight/b': 1.0, 'param/bias': 0.5}
    """
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or len(x) * len(y) > SINGLY:
        norms = {name: torch.tensor(v, dtype=torch.float64).norm() for name, v in parameters.items() if v is not None}
        return {f"{group}/{name}_norm": norm.item() for name, norm in norms.items()}
    of_y = [f"/{name}" for name in y] if len(y) > 1 else [""]
    of_x = [f"/{name}" for name in x] if len(x) > 1 else [""]
    tags = {
        f"{group}/weight{target}{feature}": weight[row][column]
        for row, target in enumerate(of_y)
        for column, feature in enumerate(of_x)
    }
    return tags | {f"{group}/bias{target}": bias[row] for row, target in enumerate(of_y) if bias is not None}


def layout(coefficients: dict[str, float]) -> dict[str, dict[str, list[str]]]:
    """Say what the Custom Scalars page shows: losses together, the excess loss, each parameter with its optimum."""

    def exactly(*tags: str) -> list[str]:
        return [f"^{re.escape(tag)}$" for tag in tags]

    return {
        "loss": {
            "train, val and the least": exactly("train/loss", "val/loss", "optimum/loss"),
            "excess loss, log10": exactly("train/log10_excess"),
        },
        "parameters and optimum": {
            tag.removeprefix("param/"): exactly(tag, tag.replace("param/", "optimum/", 1)) for tag in coefficients
        },
    }
