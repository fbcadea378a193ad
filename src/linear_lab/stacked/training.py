"""One stack: configs that differ in numbers -> one model, one fit -> what each run has learned."""

import copy
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from linear_lab import run
from linear_lab.assembly import build, restored_process
from linear_lab.callbacks import MeasureLastStep, StopOnSignal
from linear_lab.data import LinearData
from linear_lab.data.batches import BLOCK
from linear_lab.models import LinearModule
from linear_lab.models.supervised import build as build_class
from linear_lab.optimum import Optimum, Reference, reference
from linear_lab.run import Run
from linear_lab.stacked.losses import stacked_loss
from linear_lab.stacked.model import AT_ONCE, StackedData, StackedModule
from linear_lab.stacked.recorder import SAVE_EVERY, StackRecorder

log = logging.getLogger(__name__)


@dataclass
class StackedRun:
    """A run of a stack.

    Attributes:
        run: its folder, held by this process.
        config: what it composes to, resolved.
        yaml: its config as single training writes it.
        resolved_yaml: the same with all references resolved.
        typed: its overrides.
        referring: groups and keys of values that refer to others.
        fields: what the record says of it from the start.
    """

    run: Run
    config: dict[str, Any]
    yaml: str
    resolved_yaml: str
    typed: list[str]
    referring: list[tuple[str, str]]
    fields: dict[str, Any]


@dataclass
class Trained:
    """What a stack's training leaves in memory.

    Attributes:
        data: what all were trained on.
        template: the first run's model, untrained.
        model: the stack as it ended; what became of those that diverged is of no use.
        recorder: what was followed.
        own: each run's own optimizer, as torch.optim builds it.
        known: what each is held against.
        metric: what decides which weights are best.
        steps: how many were taken.
        seconds: from the first measurement to the last, also before an interruption.
    """

    data: LinearData
    template: LinearModule
    model: StackedModule
    recorder: StackRecorder
    own: list[Optimizer]
    known: list[Reference]
    metric: str
    steps: int
    seconds: float


def capacity(data: LinearData, config: dict[str, Any], memory: int) -> int:
    """Say how many models may be trained together; at least one.

    Counts what a step holds of each model (its rows where each has an order of its own, predictions, and what the
    gradient of the loss wants of them), and its parameters with what optimizer and recorder keep of them.

    Args:
        data: what they are trained on.
        config: of one of them; each validation keeps some numbers.
        memory: in bytes.
    """
    x, _ = data.parts["train"]
    rows = min(data.batch_size or len(x), len(x))
    epochs, steps = (max(config["trainer"].get(name) or 0, 0) for name in ("max_epochs", "max_steps"))
    epochs = epochs or math.ceil(steps * rows / len(x)) or 1000
    validations = epochs // (config["trainer"]["check_val_every_n_epoch"] or epochs) + 1
    # an order of their own, and a block of rows in that order
    own_rows = 2 * len(x) + min(x.numel(), BLOCK) * 2 + rows * data.in_features if data.batch_size else 0
    measured = min(AT_ONCE, max(len(x) for x, _ in data.parts.values()) * data.out_features)  # of all, cut to pieces
    numbers = (
        own_rows
        + 6 * rows * data.out_features
        + 40 * (data.in_features + 1) * data.out_features
        + measured
        + 200 * validations
    )
    return max(memory // (numbers * x.element_size()), 1)


def prepare(config: dict[str, Any], folder: Path) -> tuple[LinearData, LinearModule, str]:
    """Build the data, the model of one run, and the metric that decides which weights are best."""
    cfg: Any = OmegaConf.create(copy.deepcopy(config))
    with restored_process(folder, config.get("threads")):
        data, model = build(cfg)
    return data, model, str(cfg.metric)


def train_stack(
    runs: list[StackedRun],
    prepared: tuple[LinearData, LinearModule, str],
    folder: Path,
    stop: StopOnSignal,
    *,
    begin: Callable[[list[StackedRun], list[Optimizer], int], None],
    pictures: bool,
) -> Trained:
    """Train runs that differ in numbers alone; go on from the stack's checkpoint if there is one.

    Args:
        runs: in the order of the stack.
        prepared: what `prepare` has built of one of them.
        folder: where the stack keeps its own checkpoint while it trains.
        stop: heeds signals; it saves that checkpoint.
        begin: is told of the runs, their own optimizers and the rows to train on, before anything is measured.
        pictures: whether to keep what pictures of a run want.

    Raises:
        Interrupted: at a signal, after the checkpoint was saved.
    """
    first = runs[0].config
    data, template, metric = prepared
    with restored_process(folder, first.get("threads")):
        weight, bias = initial_parameters(runs, data)
        own, schedulers = own_optimizers(runs, weight, bias)
        begin(runs, own, len(data.parts["train"][0]))
        loss = stacked_loss([one.config["loss"] for one in runs])
        model = StackedModule(weight, bias, loss, own, list({id(one): one for one in schedulers}.values()))
        known = references(runs, data, template, own)
        single = data.in_features == data.out_features == 1 and not data.schema.labels
        events = bool(first["logger"])
        recorder = StackRecorder(
            data,
            known,
            schedulers,
            metric,
            first["mode"],
            events=events,
            pictures=pictures and events,
            has_path=single and bias is not None and events and bool(first["logger"].get("pictures")),
        )
        trainer = instantiate(
            first["trainer"],
            default_root_dir=str(folder),
            callbacks=[recorder, MeasureLastStep(), stop],
            logger=False,
            enable_checkpointing=False,
        )
        served = StackedData(data, [one.config["data"].get("order_seed", 0) for one in runs])
        checkpoint = folder / run.LAST
        if not is_of(checkpoint, data):
            checkpoint.unlink(missing_ok=True)
            trainer.validate(model, served, verbose=False)
        trainer.fit(model, served, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        recorder.state_dict()  # stops the clock
        if recorder.seconds > SAVE_EVERY:  # what is left to do may be interrupted too
            trainer.save_checkpoint(checkpoint)
    seconds = recorder.seconds
    return Trained(data, template, model, recorder, own, known, metric, trainer.global_step, seconds)


def is_of(checkpoint: Path, data: LinearData) -> bool:
    """Tell whether a stack's checkpoint is there, whole, and of these data."""
    if not checkpoint.exists():
        return False
    try:
        kept = torch.load(checkpoint, weights_only=True, map_location="cpu")["callbacks"]["StackRecorder"]
        return bool(kept["fingerprint"] == data.fingerprint)
    except Exception as error:  # a file cut in half raises anything
        log.warning("cannot read %s (%r); its stack is trained from the start", checkpoint, error)
        return False


def misshapen(data: LinearData, model: dict[str, Any]) -> str | None:
    """Say what is wrong with the initial weights that a config gives; None if nothing."""
    try:
        LinearModule(data.in_features, data.out_features, bias=model.get("bias", True), weight=model.get("weight"))
    except ValueError as error:
        return str(error)
    return None


def initial_parameters(runs: list[StackedRun], data: LinearData) -> tuple[Tensor, Tensor | None]:
    """Start each model as single training does, from its seed: weight ``(J, T, F)`` and bias ``(J, T)``."""

    def start(config: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        spec = config["model"]
        torch.manual_seed(config["seed"])
        with DoublePrecision().module_init_context() if data.dtype == torch.float64 else nullcontext():
            linear = LinearModule(
                data.in_features, data.out_features, bias=spec.get("bias", True), weight=spec.get("weight")
            ).network
        return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()

    starts = shared_by([one.config for one in runs], ("seed", "model"), start)
    biases = [bias for _, bias in starts if bias is not None]
    return torch.stack([weight for weight, _ in starts]), torch.stack(biases) if biases else None


def own_optimizers(
    runs: list[StackedRun], weight: Tensor, bias: Tensor | None
) -> tuple[list[Optimizer], list[LRScheduler]]:
    """Build each run's optimizer and scheduler, of parameters that stand in for its own.

    Runs with the same numbers share them, but for a scheduler that looks at the run's metric.
    """

    def optimizer_of(config: dict[str, Any]) -> tuple[Optimizer, LRScheduler | None]:
        parameters = [
            torch.nn.Parameter(torch.zeros_like(values[0])) for values in (weight, bias) if values is not None
        ]
        optimizer = build_class(config["optimizer"], Optimizer, parameters)
        scheduler = build_class(config["scheduler"], LRScheduler, optimizer) if config["scheduler"] else None
        optimizer._opt_called = True  # type: ignore[attr-defined]  # or the scheduler warns that it never steps
        return optimizer, scheduler

    configs = [one.config for one in runs]
    if str(configs[0]["scheduler"].get("_target_")).endswith("ReduceLROnPlateau"):
        built = [optimizer_of(config) for config in configs]
    else:
        built = shared_by(configs, ("optimizer", "scheduler"), optimizer_of)
    return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built if scheduler]


def references(
    runs: list[StackedRun], data: LinearData, template: LinearModule, own: list[Optimizer]
) -> list[Reference]:
    """Return what each run is held against; the optimum is solved once for each weight decay."""
    if not runs[0].config["optimum"]:
        return [Reference()] * len(runs)
    solved: dict[float, Optimum] = {}
    units = data.schema.x_units, data.schema.y_units
    found: dict[int, Reference] = {}
    for optimizer in own:
        if id(optimizer) not in found:
            found[id(optimizer)] = reference(
                template.network, template.loss, optimizer, *data.raw["train"], *units, solved=solved
            )
    return [found[id(optimizer)] for optimizer in own]


def shared_by(configs: list[dict[str, Any]], keys: tuple[str, ...], make: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """Make something of each config, once for those that agree under the keys."""
    made: dict[str, Any] = {}
    found = []
    for config in configs:
        key = repr([config[name] for name in keys])
        if key not in made:
            made[key] = make(config)
        found.append(made[key])
    return found
