"""Builds the objects that the jobs of a stack share, and the tensors in which the jobs differ."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import Optimizer

from linear_lab import UserError
from linear_lab.data import LinearData
from linear_lab.fitting.build import build
from linear_lab.fitting.checks import user_errors
from linear_lab.models import SupervisedModule, supervised
from linear_lab.stacked import losses, optimizers, schedules
from linear_lab.stacked.columns import ORDER, SEED, Array, Group, distinct
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.step import Models, StackSpec, Stepper, epoch_and_step_limits
from linear_lab.text import first_line
from linear_lab.theory.least_squares import Optimum
from linear_lab.theory.reference import Reference, reference

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """A group of jobs that is ready for training."""

    group: Group
    plan: StackSpec
    parameters: dict[str, Tensor]  # initial values, (J, ...), on the CPU
    errors: dict[str, str]  # by name, why the models of the jobs left out of the group could not be built
    references: list[Reference]  # the distinct references
    reference_of: Tensor  # for each job, the index of its reference in `references`, (J,)


def prepare(group: Group) -> Prepared:
    """Build the objects that the jobs of a group share; raise UserError if the jobs cannot be built or stacked."""
    config = group.config
    try:
        data, module = build(OmegaConf.create(config))
    except UserError:
        raise
    except Exception as error:  # the user's classes can raise any exception
        raise UserError(first_line(error)) from error
    assert isinstance(module, SupervisedModule)  # `stackable.obstacles` has refused other models
    if not isinstance(data, LinearData):
        raise UserError(f"data are {type(data).__name__}, which is not a LinearData")
    if module.metrics or module.metric is None:
        raise UserError(f"{type(module).__name__} has metrics of its own" if module.metrics else "metric is null")
    for name in ("training_step", "configure_optimizers"):
        if getattr(type(module), name) is not getattr(SupervisedModule, name):
            raise UserError(f"{type(module).__name__} has a {name} of its own")
    param_group = module.fresh_optimizer().param_groups[0]
    modes = {name: param_group.get(name, False) for name in optimizers.MODES}
    rule, (loss, _) = optimizers.RULES[config["optimizer"]["_target_"]], losses.LOSSES[config["loss"]["_target_"]]
    epochs, steps = epoch_and_step_limits(config["trainer"])
    every = config["trainer"]["check_val_every_n_epoch"]
    metric, mode = module.metric, str(config.get("mode", "min"))
    plan = StackSpec(module, data, rule, modes, loss, metric, mode, epochs, steps, every)
    parameters, wrong = initial_parameters(group, plan)
    if wrong:
        fits = np.flatnonzero(~np.isin(group.rows["name"].to_numpy(), list(wrong)))
        if not len(fits):
            raise UserError(next(iter(wrong.values())))
        group = group.only(fits)
    prepared = Prepared(group, plan, parameters, wrong, *references(group, plan))
    try:
        Loop(plan, models(prepared, np.arange(min(len(group.rows), 2))), Stepper(plan)).dry_run(1)
    except Exception as error:  # vmap can raise any exception for an operation that it does not support
        log.info("vmap failed", exc_info=True)
        raise UserError(f"its model cannot be vectorized: {first_line(error)}") from error
    return prepared


def variants(group: Group, name: str) -> tuple[list[dict[str, Any]], Tensor]:
    """Return the distinct values of a config group, and for each job the index of its value, ``(J,)`` int64."""
    specs: list[dict[str, Any]] = []
    index = torch.zeros(len(group.rows), dtype=torch.int64)
    for spec, which in distinct(group, name):
        index[torch.from_numpy(which)] = len(specs)
        specs.append(spec)
    return specs or [group.config[name]], index


def initial_parameters(group: Group, plan: StackSpec) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Draw the parameters of each model as a single run does: ``(J, ...)`` by name, and errors by the names of jobs."""
    seeds, names = group.columns.get(SEED), group.rows["name"].to_numpy()
    codes = torch.from_numpy(np.zeros(len(names), np.int64) if seeds is None else seeds.codes.astype(np.int64))
    specs, index_of_spec = variants(group, "model")
    wrong: dict[str, str] = {}
    parameters: dict[str, Tensor] = {}
    with DoublePrecision().module_init_context() if plan.data.dtype == torch.float64 else nullcontext():
        for k, spec in enumerate(specs):
            which = index_of_spec == k
            try:
                of_seeds = draw_parameters(spec, seeds.values if seeds else [group.config["seed"]], plan)
            except UserError as error:
                wrong |= dict.fromkeys(names[which.numpy()].tolist(), str(error))
                continue
            for name, values in of_seeds.items():
                if name not in parameters:
                    parameters[name] = torch.zeros((len(names), *values.shape[1:]), dtype=values.dtype)
                parameters[name][which] = values[codes[which]]
    fits = torch.from_numpy(~np.isin(names, list(wrong)))
    expected = dict(plan.module.named_parameters())
    return {name: values[fits] for name, values in parameters.items() if name in expected}, wrong


def draw_parameters(spec: dict[str, Any], seeds: list[int], plan: StackSpec) -> dict[str, Tensor]:
    """Draw the parameters of a model from S seeds: ``(S, ...)`` by name.

    The model is built once per seed, unless resetting its layers draws the same numbers, which is ten times as fast.
    """
    arguments = {**plan.module.hparams} | {key: value for key, value in spec.items() if key != "_target_"}

    def built(seed: int) -> SupervisedModule:
        torch.default_generator.manual_seed(seed)
        with user_errors("model"):
            return type(plan.module)(**arguments)

    def reset(seed: int) -> SupervisedModule:
        torch.default_generator.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()
        return module

    module = built(seeds[0])
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "reset_parameters")]
    with torch.no_grad():
        first = {name: values.clone() for name, values in module.named_parameters()}
        same = all(torch.equal(values, first[name]) for name, values in reset(seeds[0]).named_parameters())
        stacked = {name: values.new_empty((len(seeds), *values.shape)) for name, values in first.items()}
        for at, seed in enumerate(seeds):
            for name, values in (reset if same else built)(seed).named_parameters():
                stacked[name][at] = values
    return stacked


def references(group: Group, plan: StackSpec) -> tuple[list[Reference], Tensor]:
    """Return the distinct references of the jobs, and for each job the index of its reference, ``(J,)`` int64."""
    if not group.config["optimum"]:
        return [Reference()], torch.zeros(len(group.rows), dtype=torch.int64)
    # other numbers, such as lr, change neither the optimum nor the largest stable learning rate
    names = [("optimizer", name) for name in ("momentum", "dampening", "weight_decay")]
    relevant = Group(group.rows, group.config, {path: group.columns[path] for path in names if path in group.columns})
    data, network, optima = plan.data, plan.module.network, dict[float, Optimum]()
    rows = (*data.raw["train"], data.schema.x_units, data.schema.y_units)
    specs, index = variants(relevant, "optimizer")
    built = (supervised.build_from_spec(spec, Optimizer, network.parameters()) for spec in specs)
    return [reference(network, plan.module.loss, optimizer, *rows, optima) for optimizer in built], index


def models(prepared: Prepared, chosen: Array) -> Models:
    """Return the models of the ``chosen`` jobs, on the device on which they are trained."""
    group, plan, which = prepared.group.only(chosen), prepared.plan, torch.from_numpy(chosen)
    device, config = device_of(group.config), group.config
    defaults = supervised.build_from_spec(config["optimizer"], Optimizer, [torch.zeros(1, requires_grad=True)]).defaults
    defaults |= {f"betas.{k}": beta for k, beta in enumerate(defaults.get("betas", ()))}
    loss_defaults = losses.LOSSES[config["loss"]["_target_"]][1]
    numbers = group.numbers("optimizer", plan.rule.numbers, defaults)
    numbers |= group.numbers("loss", tuple(loss_defaults), loss_defaults)
    seeds, order_seed = group.columns.get(ORDER), config["data"].get("order_seed", 0)
    order_seeds = torch.full((len(chosen),), order_seed) if seeds is None else seeds.of_jobs().long()
    optima = []
    for k, one in enumerate(prepared.references):
        jobs = (prepared.reference_of[which] == k).nonzero()[:, 0]
        if one.optimum and len(jobs):
            optima.append((one.optimum, jobs.to(device)))
    parameters = {name: values[which].to(device) for name, values in prepared.parameters.items()}
    on_device = {name: values.to(device) for name, values in numbers.items()}
    return Models(parameters, on_device, schedule_of(group, plan, numbers["lr"]), order_seeds, optima)


def schedule_of(group: Group, plan: StackSpec, base: Tensor) -> schedules.Schedule | None:
    config = group.config["scheduler"]
    if not config:
        return None
    if config["_target_"] == schedules.PLATEAU:
        numbers = group.numbers("scheduler", tuple(schedules.PLATEAU_NUMBERS), schedules.PLATEAU_NUMBERS)
        return schedules.PlateauSchedule(base, numbers, config, len(group.rows))
    return schedules.AffineSchedule(base, *variants(group, "scheduler"), -(-plan.total // plan.batches))


def device_of(config: dict[str, Any]) -> torch.device:
    """Return the device that the config of the trainer selects."""
    device: torch.device = Fabric(accelerator=config["trainer"]["accelerator"], devices=1).device
    return device
