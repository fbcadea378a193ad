"""Training J models that differ in numbers alone, from their starts to their ends."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linear_lab.data.batches import epoch_order
from linear_lab.fitting.summary import Summary
from linear_lab.stacked.optimizers import OPTIONAL, Numbers
from linear_lab.stacked.step import Models, Parameters, Plan, Stepper


class Loop:
    """The training of J models, which can be stopped after each step, and goes on from a checkpoint.

    Args:
        plan: what the models share.
        models: what differs between them.
        stepper: see `Stepper`.
        watched: steps at which losses and parameters are kept in `history`.
    """

    def __init__(self, plan: Plan, models: Models, stepper: Stepper, watched: tuple[int, ...] = ()) -> None:
        self.plan, self.models, self.stepper = plan, models, stepper
        first = next(iter(models.parameters.values()))
        self.device = first.device
        self.parts = {name: (x.to(self.device), y.to(self.device)) for name, (x, y) in plan.data.parts.items()}
        self.taken, self.seconds, self.rated = 0, 0.0, -1  # `rated`: the epoch whose rates are in `numbers`
        self.parameters = {name: values.clone() for name, values in models.parameters.items()}
        self.numbers = {name: values for name, values in models.numbers.items() if name not in OPTIONAL or values.any()}
        kept = plan.rule.state(plan.modes, self.numbers)
        self.state = {name: {of: torch.zeros_like(values) for of in kept} for name, values in self.parameters.items()}
        self.summary = Summary(len(models), plan.metric, plan.mode, self.device)
        self.history: dict[str, list[Tensor]] = {}
        self.watched = watched
        self.orders: tuple[int, Tensor] = (-1, torch.zeros(0))
        # models that see the rows in one order share it
        self.distinct, self.of_model = torch.unique(models.order_seeds, return_inverse=True)
        self.of_model = self.of_model.to(self.device)

    def run(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        """Train until the end, or until ``after_step``, which is told how many steps were taken, raises."""
        plan, batches = self.plan, self.plan.batches
        if not self.taken:
            self.validate()
        while self.taken < plan.total and bool(self.summary.alive.any()):
            started = time.perf_counter()
            epoch, batch = divmod(self.taken, batches)
            if self.models.schedule and self.rated != epoch:
                self.numbers["lr"], self.rated = self.models.schedule.rates(epoch).to(self.device), epoch
            x, y, own_rows = self.batch(epoch, batch)
            t = torch.tensor(float(self.taken + 1), dtype=torch.float64, device=self.device)
            self.parameters, self.state, losses = self.stepper.step(
                self.parameters, self.state, self.summary.alive, self.numbers, self.models.loss_numbers, t, x, y,
                own_rows,
            )  # fmt: skip
            self.taken += 1
            self.summary.after_step(self.taken, losses)
            ends = batch + 1 == batches
            if self.taken == plan.total or (ends and not (epoch + 1) % plan.every):
                self.validate()
            elif self.taken in self.watched:
                self.keep(self.measure(("train",))["train/loss"])
            self.seconds += time.perf_counter() - started
            after_step(self.taken)

    def attempt(self, steps: int) -> None:
        """Take the first step some times, and keep nothing of it."""
        x, y, own_rows = self.batch(0, 0)
        t = torch.ones((), dtype=torch.float64, device=self.device)
        for _ in range(steps):
            self.stepper.step(
                self.parameters, self.state, self.summary.alive, self.numbers, self.models.loss_numbers, t, x, y,
                own_rows,
            )  # fmt: skip

    def batch(self, epoch: int, batch: int) -> tuple[Tensor, Tensor, bool]:
        """Return x and y of a step: ``(B, F)`` that all models share, or ``(J, B, F)`` where their orders differ."""
        x, y = self.parts["train"]
        size = self.plan.data.batch_size
        if size is None:
            return x, y, False
        if self.orders[0] != epoch:
            orders = [epoch_order(seed, epoch, len(x)) for seed in self.distinct.tolist()]
            self.orders = epoch, torch.stack(orders).to(self.device)
        rows = self.orders[1][:, batch * size : (batch + 1) * size]
        if len(rows) == 1:
            return x[rows[0]], y[rows[0]], False
        rows = rows[self.of_model]
        return x[rows], y[rows], True

    def measure(self, parts: tuple[str, ...], parameters: Parameters | None = None) -> Numbers:
        """Return the metrics of some parts by name, ``(J,)`` float64 each."""
        return {
            f"{part}/{name}": values
            for part in parts
            for name, values in self.stepper.measure(
                parameters or self.parameters, self.models.loss_numbers, self.parts[part]
            ).items()
        }

    def validate(self) -> None:
        """Measure the models as they are, as Lightning's validation does."""
        measured = self.measure(tuple(part for part in self.parts if part != "test"))
        if self.taken and self.models.schedule:
            self.models.schedule.after_validation(measured[self.plan.metric].cpu())
            self.rated = -1
        excess = self.excesses(self.parameters)
        loss = measured["train/loss"] if excess is None else excess
        self.summary.after_validation(self.taken, measured, loss, self.parameters)
        if self.taken in self.watched:
            self.keep(measured["train/loss"])

    def keep(self, losses: Tensor) -> None:
        """Keep losses and parameters of this step."""
        for name, values in {"train/loss": losses, **self.parameters}.items():
            self.history.setdefault(name, []).append(values.detach().clone())

    def excesses(self, parameters: Parameters) -> Tensor | None:
        """Return what each loss exceeds its optimum's by, ``(J,)`` float64; None where that is not known."""
        if not self.models.optima:
            return None
        weight, bias = parameters["network.weight"], parameters.get("network.bias")
        found = torch.zeros(len(weight), dtype=torch.float64, device=self.device)
        for optimum, which in self.models.optima:
            every = len(which) == len(weight)
            of_them = (weight, bias) if every else (weight[which], None if bias is None else bias[which])
            found[which] = optimum.excesses(*of_them)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        schedule = self.models.schedule
        return {
            "taken": self.taken, "seconds": self.seconds, "parameters": self.parameters, "state": self.state,
            "summary": self.summary.state_dict(), "history": self.history,
            "schedule": schedule.state_dict() if schedule else {},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.taken, self.seconds, self.history = state["taken"], state["seconds"], state["history"]
        self.parameters, self.state = state["parameters"], state["state"]
        self.summary.load_state_dict(state["summary"])
        if self.models.schedule:
            self.models.schedule.load_state_dict(state["schedule"])
