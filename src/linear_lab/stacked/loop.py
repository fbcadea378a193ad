"""The training loop for J models that differ in numbers alone."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linear_lab.data.batches import Part, epoch_order
from linear_lab.stacked.optimizers import OPTIONAL, Numbers
from linear_lab.stacked.step import Models, Parameters, StackSpec, Stepper, StepResult
from linear_lab.tracking.summary import Summary

SAVED = ("taken", "seconds", "parameters", "state", "history")  # attributes of the loop that a checkpoint holds


class Loop:
    """Trains J models; can be stopped after each step, and continued from a checkpoint.

    ``history`` holds the losses and parameters at the steps ``watched``; ``taken`` is the number of steps so far.
    """

    def __init__(self, plan: StackSpec, models: Models, stepper: Stepper, watched: tuple[int, ...] = ()) -> None:
        self.plan, self.models, self.stepper, self.watched = plan, models, stepper, watched
        self.device = next(iter(models.parameters.values())).device
        self.parts = {name: (x.to(self.device), y.to(self.device)) for name, (x, y) in plan.data.parts.items()}
        self.taken, self.seconds = 0, 0.0
        self.parameters = {name: values.clone() for name, values in models.parameters.items()}
        self.numbers = {name: values for name, values in models.numbers.items() if name not in OPTIONAL or values.any()}
        self.epoch_of_lr = -1  # the epoch whose learning rates are in `numbers`
        buffers = plan.rule.state(plan.modes, self.numbers)
        self.state = {name: {b: torch.zeros_like(p) for b in buffers} for name, p in self.parameters.items()}
        self.summary = Summary(len(models), plan.metric, plan.mode, self.device)
        self.history: dict[str, list[Tensor]] = {}
        # one order of the rows per distinct seed, and for each model the index of its order, (J,)
        self.order_seeds, order_of_model = torch.unique(models.order_seeds, return_inverse=True)
        self.order_of_model = order_of_model.to(self.device)
        self.orders: tuple[int, Tensor] = (-1, torch.zeros(0))  # an epoch, and its orders

    def run(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        """Train to the end, or until ``after_step`` raises; it is called with the number of steps taken."""
        plan = self.plan
        if not self.taken:
            self.validate()
        while self.taken < plan.total and bool(self.summary.alive.any()):
            started = time.perf_counter()
            epoch, batch = divmod(self.taken, plan.batches)
            if self.models.schedule and self.epoch_of_lr != epoch:
                self.numbers["lr"], self.epoch_of_lr = self.models.schedule.rates(epoch).to(self.device), epoch
            self.parameters, self.state, losses = self.step(epoch, batch)
            self.taken += 1
            self.summary.after_step(self.taken, losses)
            epoch_ends = batch + 1 == plan.batches
            if self.taken == plan.total or (epoch_ends and not (epoch + 1) % plan.every):
                self.validate()
            elif self.taken in self.watched:
                self.record(self.measure(("train",))["train/loss"])
            self.seconds += time.perf_counter() - started
            after_step(self.taken)

    def dry_run(self, steps: int) -> None:
        """Compute the first step ``steps`` times, and discard the results."""
        for _ in range(steps):
            self.step(0, 0)

    def step(self, epoch: int, batch: int) -> StepResult:
        t = torch.tensor(float(self.taken + 1), dtype=torch.float64, device=self.device)
        rows = self.batch(epoch, batch)
        return self.stepper.step(self.parameters, self.state, self.summary.alive, self.numbers, t, rows)

    def batch(self, epoch: int, batch: int) -> Part:
        """Return x and y of a step: x is ``(B, F)`` if all models share the order of the rows, else ``(J, B, F)``."""
        x, y = self.parts["train"]
        size = self.plan.data.batch_size
        if size is None:
            return x, y
        if self.orders[0] != epoch:
            orders = [epoch_order(seed, epoch, len(x)) for seed in self.order_seeds.tolist()]
            self.orders = epoch, torch.stack(orders).to(self.device)
        rows = self.orders[1][:, batch * size : (batch + 1) * size]
        rows = rows[0] if len(rows) == 1 else rows[self.order_of_model]
        return x[rows], y[rows]

    def measure(self, parts: tuple[str, ...], parameters: Parameters | None = None) -> Numbers:
        """Return the metrics of some parts of the data by name, ``(J,)`` float64 each."""
        measured: Numbers = {}
        for part in parts:
            metrics = self.stepper.measure(parameters or self.parameters, self.numbers, self.parts[part])
            measured |= {f"{part}/{name}": values for name, values in metrics.items()}
        return measured

    def validate(self) -> None:
        """Measure the models, update the summary and the schedule, as a validation of a single run does."""
        measured = self.measure(tuple(part for part in self.parts if part != "test"))
        if self.taken and self.models.schedule:
            self.models.schedule.after_validation(measured[self.plan.metric].cpu())
            self.epoch_of_lr = -1
        excess = self.excesses(self.parameters)
        loss = measured["train/loss"] if excess is None else excess
        self.summary.after_validation(self.taken, measured, loss, self.parameters)
        if self.taken in self.watched:
            self.record(measured["train/loss"])

    def record(self, losses: Tensor) -> None:
        """Add the losses and the parameters after the last step to the history."""
        for name, values in {"train/loss": losses, **self.parameters}.items():
            self.history.setdefault(name, []).append(values.detach().clone())

    def excesses(self, parameters: Parameters) -> Tensor | None:
        """Return the excess loss of each model, ``(J,)`` float64; None if there is no optimum."""
        if not self.models.optima:
            return None
        weight, bias = parameters["network.weight"], parameters.get("network.bias")
        excess = torch.zeros(len(weight), dtype=torch.float64, device=self.device)
        for optimum, which in self.models.optima:
            excess[which] = optimum.excesses(weight[which], None if bias is None else bias[which])
        return excess

    def state_dict(self) -> dict[str, Any]:
        schedule = self.models.schedule
        state = {name: getattr(self, name) for name in SAVED}
        return state | {"summary": self.summary.state_dict(), "schedule": schedule.state_dict() if schedule else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({name: state[name] for name in SAVED})
        self.summary.load_state_dict(state["summary"])
        if self.models.schedule:
            self.models.schedule.load_state_dict(state["schedule"])
