"""What the jobs of a stack share, built; and what differs between them, as tensors."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import OmegaConf
from torch import Tensor

from linear_lab import UserError
from linear_lab.fitting.build import build
from linear_lab.fitting.checks import user_errors
from linear_lab.models import SupervisedModule
from linear_lab.stacked import losses, optimizers, schedules
from linear_lab.stacked.columns import ORDER, SEED, Group, distinct
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.step import Models, Plan, Stepper, counted
from linear_lab.theory.least_squares import Optimum
from linear_lab.theory.reference import Reference, reference

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """What the jobs of a group share, built.

    Attributes:
        group: of the jobs that have a start.
        plan: of their training.
        parameters: where they start, ``(J, ...)`` by name, on the CPU.
        wrong: by name why other jobs of the group have no start.
        references: the distinct ones, and which of them each job has, ``(J,)``.
    """

    group: Group
    plan: Plan
    parameters: dict[str, Tensor]
    wrong: dict[str, str]
    references: tuple[list[Reference], Tensor] = field(default_factory=lambda: ([Reference()], torch.zeros(0)))


def prepare(group: Group) -> Prepared:
    """Build what the jobs of a group share, and their starts.

    Raises:
        UserError: what the data, or the classes, refuse; or what cannot be vectorized.
    """
    cfg = OmegaConf.create(group.config)
    try:
        data, module = build(cfg)
    except UserError:
        raise
    except Exception as error:  # whatever a class of one's own raises
        raise UserError((str(error) or repr(error)).splitlines()[0]) from error
    if not isinstance(module, SupervisedModule):
        raise UserError(f"model is {type(module).__name__}, which is no SupervisedModule")
    for name in ("training_step", "configure_optimizers"):
        if getattr(type(module), name) is not getattr(SupervisedModule, name):
            raise UserError(f"{type(module).__name__} has a {name} of its own")
    config = group.config
    rule, (loss, _) = optimizers.RULES[config["optimizer"]["_target_"]], losses.LOSSES[config["loss"]["_target_"]]
    built: Any = module.configure_optimizers()
    modes = (built["optimizer"] if isinstance(built, dict) else built).param_groups[0]
    epochs, steps = counted(config["trainer"])
    every = config["trainer"]["check_val_every_n_epoch"]
    plan = Plan(
        module, data, rule, {name: modes.get(name, False) for name in optimizers.MODES}, loss, str(cfg.metric),
        str(config.get("mode", "min")), epochs, steps, every,
    )  # fmt: skip
    parameters, wrong = starts(group, plan)
    if wrong:
        fits = np.flatnonzero(~np.isin(group.rows["name"].to_numpy(), list(wrong)))
        group = group.only(fits) if len(fits) else Group(group.rows.clear(), config, {})
    prepared = Prepared(group, plan, parameters, wrong)
    if len(group.rows):
        prepared.references = references(prepared)
        try:
            Loop(plan, models(prepared, np.arange(min(len(group.rows), 2))), Stepper(plan)).attempt(1)
        except Exception as error:  # whatever vmap does not know
            log.info("vmap failed", exc_info=True)
            raise UserError(f"its model cannot be vectorized: {str(error).splitlines()[0]}") from error
    return prepared


def starts(group: Group, plan: Plan) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Start each model as single training does, from its seed: by name ``(J, ...)``; and by job why some have none."""
    module, config = plan.module, group.config
    double = plan.data.dtype == torch.float64
    wrong: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    seeds = group.columns.get(SEED)
    codes = np.zeros(len(group.rows), np.int64) if seeds is None else seeds.codes
    specs = list(distinct(group, "model")) or [(config["model"], np.ones(len(group.rows), bool))]
    with DoublePrecision().module_init_context() if double else nullcontext():
        for spec, which in specs:
            try:
                drawn = drawn_from(spec, seeds.values if seeds else [config["seed"]], plan)
            except UserError as error:
                wrong |= dict.fromkeys(group.rows["name"].to_numpy()[which].tolist(), str(error))
                continue
            for name, values in drawn.items():
                if name not in found:
                    found[name] = torch.zeros((len(group.rows), *values.shape[1:]), dtype=values.dtype)
                found[name][torch.from_numpy(which)] = values[torch.from_numpy(codes[which].astype(np.int64))]
    fits = torch.from_numpy(~np.isin(group.rows["name"].to_numpy(), list(wrong)))
    names = {name for name, _ in module.named_parameters()}
    return {name: values[fits] for name, values in found.items() if name in names}, wrong


def drawn_from(spec: dict[str, Any], seeds: list[int], plan: Plan) -> dict[str, Tensor]:
    """Draw the starts of a model from some seeds, ``(S, ...)`` by name.

    A model is built anew from each seed, unless resetting the layers of one draws the same numbers, ten times as fast.

    Raises:
        UserError: what the class refuses.
    """

    def model() -> SupervisedModule:
        arguments = {**plan.module.hparams, **{key: value for key, value in spec.items() if key != "_target_"}}
        with user_errors("model"):
            return type(plan.module)(**arguments)

    def built(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return {name: p.detach().clone() for name, p in model().named_parameters()}

    first, module = built(seeds[0]), model()
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "reset_parameters")]

    def reset(seed: int) -> dict[str, Tensor]:
        torch.default_generator.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()
        return dict(module.named_parameters())

    same = all(torch.equal(values, first[name]) for name, values in reset(seeds[0]).items())
    stacked = {name: torch.empty((len(seeds), *values.shape), dtype=values.dtype) for name, values in first.items()}
    with torch.no_grad():
        for at, seed in enumerate(seeds):
            for name, values in (reset if same else built)(seed).items():
                stacked[name][at] = values
    return stacked


def references(prepared: Prepared) -> tuple[list[Reference], Tensor]:
    """Return what the jobs are held against: each once, and which of them each job has, ``(J,)``."""
    group, plan = prepared.group, prepared.plan
    jobs = len(group.rows)
    if not group.config["optimum"]:
        return [Reference()], torch.zeros(jobs, dtype=torch.int64)
    kind: Any = plan.rule.kind
    deciding = ("momentum", "dampening", "weight_decay")  # the rate decides neither optimum nor largest stable rate
    columns = {path: column for path, column in group.columns.items() if path[0] == "optimizer" and path[1] in deciding}
    of_job = torch.zeros(jobs, dtype=torch.int64)
    found: list[Reference] = []
    solved: dict[float, Optimum] = {}
    only = Group(group.rows, group.config, columns)
    data, units = plan.data, (plan.data.schema.x_units, plan.data.schema.y_units)
    for spec, which in list(distinct(only, "optimizer")) or [(group.config["optimizer"], np.ones(jobs, bool))]:
        optimizer = kind(plan.module.parameters(), **{k: v for k, v in spec.items() if k != "_target_"})
        of_job[torch.from_numpy(which)] = len(found)
        found.append(reference(plan.module.network, plan.module.loss, optimizer, *data.raw["train"], *units, solved))
    return found, of_job


def models(prepared: Prepared, chosen: "np.ndarray[Any, Any]") -> Models:
    """Make the models of some jobs of a group, on the device where they are trained."""
    group, plan = prepared.group.only(chosen), prepared.plan
    device, jobs = device_of(group.config), len(chosen)
    names = plan.rule.numbers
    kind: Any = plan.rule.kind
    given = kind([torch.zeros(1, requires_grad=True)]).defaults
    defaults = {name: given[name] for name in names if name in given}
    defaults |= {f"betas.{k}": beta for k, beta in enumerate(given.get("betas", ()))}
    numbers = group.numbers("optimizer", names, defaults)
    of_loss = losses.LOSSES[group.config["loss"]["_target_"]][1]
    loss_numbers = group.numbers("loss", tuple(of_loss), of_loss)
    seeds = group.columns.get(ORDER)
    order = torch.full((jobs,), group.config["data"].get("order_seed", 0)) if seeds is None else seeds.of_jobs()
    which = prepared.references[1][torch.from_numpy(chosen)]
    optima = []
    for k, one in enumerate(prepared.references[0]):
        if one.optimum and (mine := (which == k).nonzero()[:, 0]).numel():
            optima.append((one.optimum, mine.to(device)))
    return Models(
        {name: values[torch.from_numpy(chosen)].to(device) for name, values in prepared.parameters.items()},
        {name: values.to(device) for name, values in numbers.items()},
        {name: values.to(device) for name, values in loss_numbers.items()},
        schedule_of(group, plan, numbers["lr"]), order.long(), optima,
    )  # fmt: skip


def schedule_of(group: Group, plan: Plan, base: Tensor) -> schedules.Schedule | None:
    """Make the schedule of the rates; None if they stay."""
    config, jobs = group.config["scheduler"], len(group.rows)
    if not config:
        return None
    if config["_target_"] == schedules.PLATEAU:
        numbers = group.numbers("scheduler", tuple(schedules.PLATEAU_NUMBERS), schedules.PLATEAU_NUMBERS)
        return schedules.PlateauSchedule(base, numbers, config, jobs)
    specs: list[dict[str, Any]] = []
    which = torch.zeros(jobs, dtype=torch.int64)
    for spec, jobs_of_it in list(distinct(group, "scheduler")) or [(config, np.ones(jobs, bool))]:
        which[torch.from_numpy(jobs_of_it)] = len(specs)
        specs.append(spec)
    return schedules.AffineSchedule(base, specs, which, -(-plan.total // plan.batches))


def device_of(config: dict[str, Any]) -> torch.device:
    """Return the device that a trainer's config asks for."""
    device: torch.device = Fabric(accelerator=config["trainer"]["accelerator"], devices=1).device
    return device
