"""What a stack's training leaves in memory of each of its models."""

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from linear_lab import run
from linear_lab.dashboard.callbacks import SMALL, has_pictures, on_path
from linear_lab.data import LinearData
from linear_lab.divergence import StopOnDivergence
from linear_lab.optimum import Reference
from linear_lab.stacked.model import StackedModule
from linear_lab.stacked.snapshot import Snapshot, columns, kept

SAVE_EVERY = 60.0  # seconds between two checkpoints of a stack that trains for longer
PARTS = ("epoch", "global_step", "pytorch-lightning_version", "loops")  # of a checkpoint, the same for all models


class StackRecorder(Callback):
    """Follows each model of a stack as `Dashboard`, `Checkpoint`, `FirstSteps` and `StopOnDivergence` follow one.

    A model that diverges is kept as it was then; its place in the stack goes on from zeros, and counts no more.

    Args:
        data: what all are trained on.
        known: what each is held against.
        schedulers: of each; may be empty.
        metric: what decides which weights are best.
        mode: ``min`` or ``max``.
        events: whether to follow what TensorBoard shows.
        pictures: whether to keep the weights at the steps that have pictures.
        has_path: whether to follow the optimizers' paths.
    """

    def __init__(
        self,
        data: LinearData,
        known: list[Reference],
        schedulers: list[LRScheduler],
        metric: str,
        mode: str,
        *,
        events: bool,
        pictures: bool,
        has_path: bool,
    ) -> None:
        self.data, self.known, self.schedulers, self.metric, self.mode = data, known, schedulers, metric, mode
        self.events, self.pictures, self.has_path = events, pictures, has_path
        jobs = len(known)
        self.diverged: dict[int, tuple[str, float, int]] = {}  # metric, value, step
        self.bound: Tensor | None = None
        self.initial: dict[str, Any] = {}  # metrics, weight and bias
        self.first_step: dict[str, Tensor] = {}  # loss and gradients
        self.frames: list[dict[str, Any]] = []  # of each validation, what is logged
        self.loops: dict[int, dict[str, Any]] = {}  # of each step with a checkpoint, what all models share in it
        self.path: list[tuple[int, Tensor, Tensor | None]] = []
        self.shown: list[tuple[int, Tensor, Tensor | None]] = []
        self.last: Snapshot | None = None
        self.best: Snapshot | None = None
        self.ended: Snapshot | None = None  # those that diverged, each as it was then
        self.score = torch.full((jobs,), math.inf if mode == "min" else -math.inf, dtype=torch.float64)
        self.dashboard: dict[str, Tensor] = {}  # what `Dashboard` keeps: first, best, small_at
        self.dashboard_of_best: dict[str, Tensor] = {}
        self.since: tuple[int, float] | None = None
        self.speed: float | None = None
        self.rates = torch.zeros(0)
        self.saved = time.monotonic()
        self.started, self.seconds = time.perf_counter(), 0.0  # of training, also before an interruption
        excesses = {id(reference.optimum): reference.optimum for reference in known if reference.optimum}
        self.optima = [
            (optimum, torch.tensor([id(reference.optimum) == key for reference in known]))
            for key, optimum in excesses.items()
        ]

    @property
    def alive(self) -> Tensor:
        """Which models have not diverged, ``(J,)``."""
        alive = torch.ones(len(self.known), dtype=torch.bool)
        alive[list(self.diverged)] = False
        return alive

    def excesses(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return what each model's loss exceeds its optimum's by, ``(J,)``; None where that is not known."""
        if not self.optima:
            return None
        found = torch.zeros(len(weight), dtype=torch.float64)
        for optimum, which in self.optima:
            found[which] = optimum.excesses(weight[which], None if bias is None else bias[which])
        return found

    def measure(self, model: StackedModule, parts: list[str]) -> dict[str, Tensor]:
        """Return the metrics of some parts, ``(J,)`` each, rounded as single training has them."""
        return {
            f"{part}/{name}": values.to(model.dtype).double()
            for part in parts
            for name, values in model.measure(*self.data.parts[part]).items()
        }

    def on_validation_start(self, trainer: Trainer, pl_module: StackedModule) -> None:  # type: ignore[override]
        """Take the time that training took since the last validation."""
        step, now = trainer.global_step, time.perf_counter()
        self.speed = (step - self.since[0]) / (now - self.since[1]) if self.since and step > self.since[0] else None
        self.since = None

    def on_validation_end(self, trainer: Trainer, pl_module: StackedModule) -> None:  # type: ignore[override]
        """Measure, and keep what single training would log and write."""
        with torch.inference_mode(False), torch.no_grad():  # what is kept may be changed while training
            self._measured(trainer, pl_module)

    def _measured(self, trainer: Trainer, pl_module: StackedModule) -> None:
        step, fitting = trainer.global_step, trainer.state.fn == "fit"
        measured = self.measure(pl_module, [part for part in self.data.parts if part != "test"])
        if fitting:
            for job, scheduler in enumerate(self.schedulers):
                if isinstance(scheduler, ReduceLROnPlateau) and job not in self.diverged:
                    scheduler.step(measured[self.metric][job].item())
            if self.schedulers:
                pl_module.optimizer.read_rates()
        for name, values in measured.items():
            self._end(step, pl_module, name, values, ~values.isfinite(), trainer if fitting else None)
        now = self.snapshot(step, pl_module)
        if not fitting:
            self.initial = {"metrics": measured, "weight": now.weight, "bias": now.bias}
            self.rates = pl_module.optimizer.constants["lr"]
            self._follow(0, now.weight, now.bias)
        if self.events:
            self.frames.append(self.frame(step, pl_module, measured, self.speed))
        if fitting:
            self._keep(trainer, now, measured)

    def snapshot(self, step: int, model: StackedModule) -> Snapshot:
        """Return the models as they are."""
        weight, bias = kept(model.weight), None if model.bias is None else kept(model.bias)
        tensors = [{name: kept(t) for name, t in values.items()} for values in model.optimizer.tensors()]
        states = [copy.deepcopy(scheduler.state_dict()) for scheduler in self.schedulers]
        rates = [own.param_groups[0]["lr"] for own in model.optimizer.own] if states else []
        return Snapshot(torch.full((len(weight),), step), weight, bias, tensors, states, rates)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock, if a validation has stopped it."""
        self.since = self.since or (trainer.global_step, time.perf_counter())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: StackedModule, optimizer: Any) -> None:  # type: ignore[override]
        """Take the rates of the step, and the gradients of the first one."""
        rates = pl_module.optimizer.constants["lr"]
        self.rates = torch.where(self.alive, rates, self.rates) if self.diverged else rates
        if trainer.global_step == 0:
            self.first_step = {
                name: kept(parameter.grad)
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            } | {"loss": kept(pl_module.losses)}

    def on_train_batch_end(self, trainer: Trainer, pl_module: StackedModule, *_: Any) -> None:  # type: ignore[override]
        """Look at the losses that the step began with, and follow the models."""
        step, losses = trainer.global_step, pl_module.losses
        if self.bound is None:
            self.bound = StopOnDivergence.GROWTH * losses.double().clamp(min=1.0)
        grown = ~(losses.abs() <= self.bound.to(losses.device))
        if grown.any():
            self._end(step, pl_module, "train/loss", losses.cpu().double(), grown.cpu(), trainer)
        if (self.has_path and (on_path(step) or has_pictures(step))) or (self.pictures and has_pictures(step)):
            self._follow(step, kept(pl_module.weight), None if pl_module.bias is None else kept(pl_module.bias))
        if self.diverged and len(self.diverged) == len(self.known):
            trainer.should_stop = True

    def _follow(self, step: int, weight: Tensor, bias: Tensor | None) -> None:
        if self.has_path and (on_path(step) or has_pictures(step)):
            self.path.append((step, weight, bias))
        if self.pictures and has_pictures(step):
            self.shown.append((step, weight, bias))

    def _end(
        self, step: int, model: StackedModule, name: str, values: Tensor, which: Tensor, trainer: Trainer | None = None
    ) -> None:
        """Keep models that have diverged as they are, and take them out of the training."""
        which = which & self.alive
        if not which.any():
            return
        if self.last is None:
            self.last = self.snapshot(-1, model)
            self.best = copy.deepcopy(self.last)
        now = self.snapshot(step, model)
        finite = now.weight.flatten(1).isfinite().all(1)
        finite &= True if now.bias is None else now.bias.isfinite().all(1)
        if trainer and (unsaved := which & finite & (self.last.step < 0)).any():  # it has no checkpoint yet
            self.loops[step] = shared(trainer)
            self.last.update(now, unsaved)
            if self.events:
                self.dashboard["lr"] = torch.where(unsaved, self.rates, self.dashboard["lr"])
        for job in which.nonzero()[:, 0].tolist():
            self.diverged[job] = (name, values[job].item(), step)
        self.ended = self.ended or copy.deepcopy(now)
        self.ended.update(now, which)
        with torch.no_grad():
            of_optimizer = [values for tensors in model.optimizer.tensors() for values in tensors.values()]
            for values_ in (*model.parameters(), *of_optimizer):
                values_[which.to(values_.device)] = 0

    def frame(
        self, step: int, model: StackedModule, measured: dict[str, Tensor], speed: float | None
    ) -> dict[str, Any]:
        """Return what `Dashboard` would log now: numbers of each model by tag, and which are alive."""
        weight, bias = kept(model.weight), None if model.bias is None else kept(model.bias)
        excess, value, board = self.excesses(weight, bias), measured[self.metric], self.dashboard
        loss = measured["train/loss"] if excess is None else excess
        if step == 0:
            never = torch.full_like(loss, -1, dtype=torch.long)
            self.dashboard = board = {"first": loss, "best": value.clone(), "small_at": never}
        alive = self.alive
        small = alive & (board["small_at"] < 0) & (loss <= SMALL * board["first"])
        board["small_at"] = torch.where(small, step, board["small_at"])
        better = (torch.minimum if self.mode == "min" else torch.maximum)(board["best"], value)
        # of checkpoints, and the untouched model has none
        board["best"] = torch.where(alive, value if len(self.frames) == 1 else better, board["best"])
        board["lr"] = torch.where(alive, self.rates, board.get("lr", self.rates))
        scalars = measured | self.scalars(torch.full_like(loss, step), model, measured, excess)
        if speed is not None:
            scalars["time/steps_per_second"] = torch.full_like(loss, speed)
        scalars |= columns(self.data.schema, weight, bias)
        return {"step": step, "time": time.time(), "scalars": scalars, "alive": alive}

    def scalars(
        self, step: Tensor, model: StackedModule, measured: dict[str, Tensor], excess: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the numbers that belong to the models as they are, ``(J,)`` each."""
        metric, board = self.metric.replace("/", "_"), self.dashboard
        of_excess = {"train/excess": excess, "train/log10_excess": excess.log10()} if excess is not None else {}
        return {
            **of_excess,
            "optim/lr": self.rates,
            "optim/grad_norm": model.gradient_norms(*self.data.parts["train"]),
            "hp/train_loss": measured["train/loss"],
            **({"hp/excess_loss": excess} if excess is not None else {}),
            f"hp/{metric}": measured[self.metric],
            f"hp/best_{metric}": board["best"],
            "hp/steps_above_1_percent": torch.where(board["small_at"] < 0, step, board["small_at"]).double(),
        }

    def _keep(self, trainer: Trainer, now: Snapshot, measured: dict[str, Tensor]) -> None:
        """Keep the last models, and of each the best: what single training writes as checkpoints."""
        alive, value = self.alive, measured[self.metric]
        if self.last is None or self.best is None:
            self.last, self.best = copy.deepcopy(now), copy.deepcopy(now)
            self.last.step[~alive] = self.best.step[~alive] = -1
            better = alive
            self.dashboard_of_best = {name: values.clone() for name, values in self.dashboard.items()}
        else:
            better = alive & ((value < self.score) if self.mode == "min" else (value > self.score))
            for kept_, mask in ((self.last, alive), (self.best, better)):
                kept_.update(now, mask)
            for name, values in self.dashboard.items():
                self.dashboard_of_best.setdefault(name, values.clone())[better] = values[better]
        self.score[better] = value[better]
        self.loops[int(now.step[0])] = shared(trainer)
        wanted = {*self.last.step.tolist(), *self.best.step.tolist()}
        self.loops = {step: loops for step, loops in self.loops.items() if step in wanted}
        if time.monotonic() - self.saved > SAVE_EVERY:
            trainer.save_checkpoint(Path(trainer.default_root_dir, run.LAST))
            self.saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Keep all of it in the stack's checkpoint."""
        self.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()
        found = {name: getattr(self, name) for name in KEPT} | {"fingerprint": self.data.fingerprint}
        snapshots = {name: getattr(self, name) for name in SNAPSHOTS}
        return found | {name: value and value.state_dict() for name, value in snapshots.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        for name in KEPT:
            setattr(self, name, state_dict[name])
        for name in SNAPSHOTS:
            setattr(self, name, state_dict[name] and Snapshot(**state_dict[name]))


SNAPSHOTS = ("last", "best", "ended")
KEPT = (
    "diverged", "bound", "initial", "first_step", "frames", "loops", "path", "shown", "score", "dashboard",
    "dashboard_of_best", "rates", "seconds",
)  # fmt: skip


def shared(trainer: Trainer) -> dict[str, Any]:
    """Return what a checkpoint of single training has beside the model's own: the same for all models."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    return copy.deepcopy({name: checkpoint[name] for name in PARTS})
