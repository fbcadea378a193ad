"""Which jobs of a sweep can be trained together as one stacked model, and why others cannot."""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from linear_lab import CONF, UserError
from linear_lab.checks import check
from linear_lab.models import LinearModule
from linear_lab.stacked.losses import NUMBERS as LOSS_NUMBERS
from linear_lab.stacked.optimizers import MODES, NUMBERS

OPTIMIZERS = {f"torch.optim.{kind.__name__}": {*numbers, *MODES} for kind, numbers in NUMBERS.items()}
SCHEDULERS = tuple(  # which change the rate alone, once an epoch
    f"torch.optim.lr_scheduler.{name}"
    for name in (
        "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts", "ReduceLROnPlateau",
    )
)  # fmt: skip
CALLBACKS = ("linear_lab.callbacks.Checkpoint", "linear_lab.callbacks.MeasureLastStep")
OF_THE_TRAINER = {"devices": (1,), "precision": (None, 32, 64, "32", "64", "32-true", "64-true")}  # and any of these:
ANY_OF_THE_TRAINER = {"accelerator", "max_epochs", "min_epochs", "max_steps", "min_steps", "check_val_every_n_epoch"}


def obstacle(config: dict[str, Any]) -> str | None:
    """Say what of a config stacked training cannot do; None if nothing.

    Args:
        config: as a job's, resolved.
    """
    return next(obstacles(config), None)


def obstacles(config: dict[str, Any]) -> Iterator[str]:
    """Yield the keys, with their values, that stacked training cannot do."""
    model, optimizer, scheduler, loss = (config[name] for name in ("model", "optimizer", "scheduler", "loss"))
    if model["_target_"] != "linear_lab.models.linear.LinearModule" or {*model} - {"_target_", "weight", "bias"}:
        yield f"model is {model['_target_']}"
    for name, spec, known in (("optimizer", optimizer, OPTIMIZERS), ("loss", loss, LOSS_NUMBERS)):
        if spec["_target_"] not in known:
            yield f"{name} is {spec['_target_']}"
        else:
            yield from (f"{name}.{key}" for key in spec if key not in {"_target_", *known[spec["_target_"]]})
    if scheduler and scheduler["_target_"] not in SCHEDULERS:
        yield f"scheduler is {scheduler['_target_']}"
    for name, callback in config["callbacks"].items():
        if callback and callback["_target_"] not in CALLBACKS:
            yield f"callbacks.{name}"
    if {*default_callbacks()} - {name for name, callback in config["callbacks"].items() if callback}:
        yield "callbacks without best, last or measure_last_step"
    if config["logger"] and config["logger"]["_target_"] != "linear_lab.dashboard.logger.RunLogger":
        yield f"logger is {config['logger']['_target_']}"
    for key, value in config["trainer"].items():
        allowed = OF_THE_TRAINER.get(key, (default_trainer().get(key),))
        if key not in ANY_OF_THE_TRAINER and (value not in allowed or (value is True and True not in allowed)):
            yield f"trainer.{key}={value}"
    if config["console"].get("steps"):
        yield f"console.steps={config['console']['steps']}"
    if refusal := refused(json.dumps([optimizer, scheduler or None, loss])):
        yield refusal
    others = {"seed": 0} | dict.fromkeys(
        ("model", "optimizer", "loss", "data")
    )  # which differ most, and are not its own
    if wrong := mistake(json.dumps(config | others)):
        yield wrong
    for key, value in (("seed", config["seed"]), ("data.order_seed", config["data"].get("order_seed", 0))):
        if type(value) is not int or not 0 <= value < 2**32:
            yield f"{key}={value}"
    if 0 in (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]):
        yield "it trains no step"


@functools.cache
def default_trainer() -> dict[str, Any]:
    """Read what the trainer's options are unless one chooses otherwise."""
    found: dict[str, Any] = yaml.safe_load((CONF / "trainer" / "auto.yaml").read_text())
    return found


@functools.cache
def default_callbacks() -> list[str]:
    """Read the names of the callbacks that each run has."""
    return list(yaml.safe_load((CONF / "callbacks" / "default.yaml").read_text()))


@functools.cache  # a grid repeats them
def refused(specs: str) -> str | None:
    """Say what the classes of optimizer, scheduler and loss refuse; None if nothing."""
    optimizer, scheduler, loss = json.loads(specs)
    target = torch.zeros(1, dtype=torch.long) if "CrossEntropy" in str(loss) else torch.zeros(1, 1)
    try:
        module = LinearModule(1, 1, optimizer=optimizer, scheduler=scheduler, loss=loss)
        module.configure_optimizers()
        module.loss(torch.zeros(1, 1), target)  # some refuse their numbers only now
    except Exception as error:  # whatever it is, the job alone fails by it
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def kind(config: dict[str, Any]) -> str:
    """Return what must agree for two configs to be trained together: all but numbers."""
    model, optimizer, data = config["model"], config["optimizer"], config["data"]
    modes = {key: value for key, value in optimizer.items() if key in MODES}
    alike = {
        "optimizer": [optimizer["_target_"], modes, [*optimizer]],
        "scheduler": [*config["scheduler"].items()][:1] and [config["scheduler"]["_target_"], [*config["scheduler"]]],
        "loss": [config["loss"]["_target_"], [*config["loss"]]],
        "model": [model["_target_"], model.get("bias", True) is False],
        "data": {key: value for key, value in data.items() if key != "order_seed"},
    } | {name: config.get(name) for name in ("trainer", "callbacks", "logger", "metric", "mode", "optimum", "threads")}
    return json.dumps(alike, sort_keys=True)


def stacks(configs: Sequence[dict[str, Any]]) -> tuple[list[list[int]], dict[int, str]]:
    """Sort jobs into stacks.

    Args:
        configs: of the jobs, resolved.

    Returns:
        the stacks, as positions in ``configs``, and why the other jobs are in none.
    """
    alone: dict[int, str] = {}
    of_kind: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        try:
            if found := obstacle(config):
                alone[position] = found
            else:
                of_kind.setdefault(kind(config), []).append(position)
        except (LookupError, TypeError, AttributeError) as error:  # of a config that lacks what others have
            alone[position] = repr(error)
    found_stacks = []
    for positions in of_kind.values():
        if len(positions) == 1:
            alone[positions[0]] = "no other job differs from it in numbers alone"
        else:
            found_stacks.append(positions)
    return found_stacks, alone


@functools.cache  # a grid repeats them
def mistake(checked: str) -> str | None:
    """Say what `check` refuses of a config; None if nothing."""
    try:
        check(OmegaConf.create(json.loads(checked)))
    except UserError as error:
        return str(error)
    return None
