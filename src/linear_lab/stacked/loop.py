"""Training J models that differ in numbers alone: one functional step, vectorized over the models."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from linear_lab.data import LinearData
from linear_lab.data.batches import Part, epoch_order
from linear_lab.data.source import EVALUATION_ROWS
from linear_lab.fitting.summary import Summary
from linear_lab.models import SupervisedModule
from linear_lab.optimum import Optimum
from linear_lab.stacked.losses import Loss
from linear_lab.stacked.optimizers import OPTIONAL, Numbers, Rule
from linear_lab.stacked.schedules import Schedule

Parameters = dict[str, Tensor]  # of J models by name, (J, ...)
AT_ONCE = 1 << 24  # predictions that are held at once while measuring: bounds memory, not results


@dataclass
class Plan:
    """What all models of a stack share.

    Attributes:
        module: any one of them; what it computes is asked, its parameters are not.
        data: what they are trained on.
        rule: the optimizer's.
        modes: its switches, such as ``nesterov``.
        loss: of y_hat, y and numbers.
        metric: what decides which weights are best.
        mode: ``min`` or ``max``.
        epochs: of training.
        steps: at most so many, which may end an epoch early.
        every: epochs between two validations; the last step is always followed by one.
    """

    module: SupervisedModule
    data: LinearData
    rule: Rule
    modes: dict[str, Any]
    loss: Loss
    metric: str
    mode: str
    epochs: int
    steps: int
    every: int

    @property
    def batches(self) -> int:
        """Steps an epoch."""
        rows = len(self.data.parts["train"][0])
        return -(-rows // (self.data.batch_size or rows))

    @property
    def total(self) -> int:
        """Steps in all."""
        return min(self.epochs * self.batches, self.steps)


@dataclass
class Models:
    """What differs between the J models of a stack.

    Attributes:
        parameters: where they start.
        numbers: of the optimizer, by name: ``(J,)``, or 0-dimensional where all agree; float64.
            ``lr`` is the rate at the start.
        loss_numbers: likewise.
        schedule: of the rates; None leaves them as they are.
        order_seeds: of the order of the rows, ``(J,)`` int64.
        optima: the least-squares solutions, each with the models that it belongs to; empty where there are none.
    """

    parameters: Parameters
    numbers: Numbers
    loss_numbers: Numbers
    schedule: Schedule | None
    order_seeds: Tensor
    optima: list[tuple[Optimum, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        """J."""
        return len(self.order_seeds)


class Stepper:
    """The step of J models, eager or compiled.

    Args:
        plan: what they share.
        compiled: whether torch.compile makes one kernel of it, for one J.
    """

    def __init__(self, plan: Plan, *, compiled: bool = False) -> None:
        rule, modes, module, loss = plan.rule, plan.modes, plan.module, plan.loss

        def loss_of(parameters: Parameters, x: Tensor, y: Tensor, loss_numbers: Numbers) -> Tensor:
            return loss(functional_call(module, parameters, (x,)), y, loss_numbers)

        def of_one(
            parameters: Parameters, state: dict[str, Parameters], alive: Tensor, n: Numbers, loss_numbers: Numbers,
            x: Tensor, y: Tensor,
        ) -> tuple[Parameters, dict[str, Parameters], Tensor]:  # fmt: skip
            gradients, value = grad_and_value(loss_of)(parameters, x, y, loss_numbers)
            new, kept = {}, {}
            for name, p in parameters.items():
                updated, kept[name] = rule.update(p, gradients[name], state[name], n, modes)
                new[name] = torch.where(alive, updated, p)  # a model that has diverged stays as it was then
            return new, kept, value

        def step(
            parameters: Parameters, state: dict[str, Parameters], alive: Tensor, numbers: Numbers,
            loss_numbers: Numbers, t: Tensor, x: Tensor, y: Tensor, own_rows: bool,
        ) -> tuple[Parameters, dict[str, Parameters], Tensor]:  # fmt: skip
            dtype = next(iter(parameters.values())).dtype
            n = {name: values.to(dtype) for name, values in rule.derive(numbers, t).items()}
            rows = 0 if own_rows else None
            dims = (0, 0, 0, dimensions(n), dimensions(loss_numbers), rows, rows)
            stepped: Any = vmap(of_one, in_dims=dims)(parameters, state, alive, n, loss_numbers, x, y)
            return stepped[0], stepped[1], stepped[2]

        def measure(parameters: Parameters, x: Tensor, y: Tensor, loss_numbers: Numbers) -> dict[str, Tensor]:
            y_hat = functional_call(module, parameters, (x,))
            found = {"loss": loss(y_hat, y, loss_numbers)}
            if not y.is_floating_point():
                found["accuracy"] = (y_hat.argmax(1) == y).double().mean()
            return found

        self.step: Callable[..., Any] = torch.compile(step, dynamic=False) if compiled else step
        self.compiled = compiled
        self.measure_piece = measure

    def measure(self, parameters: Parameters, loss_numbers: Numbers, part: Part) -> dict[str, Tensor]:
        """Return the metrics of a part, ``(J,)`` float64 each, rounded to the dtype of the parameters as one run's."""
        x, y = part
        first = next(iter(parameters.values()))
        dims = (0, None, None, dimensions(loss_numbers))
        rows = max(min(AT_ONCE // (len(first) * (y.shape[1] if y.ndim > 1 else 1)), EVALUATION_ROWS), 1)
        total: dict[str, Tensor] = {}
        with torch.no_grad():
            for inputs, targets in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
                found: Any = vmap(self.measure_piece, in_dims=dims)(parameters, inputs, targets, loss_numbers)
                for name, values in found.items():
                    weighted = values.double() * len(inputs)
                    total[name] = total[name] + weighted if name in total else weighted
        return {name: (values / len(x)).to(first.dtype).double() for name, values in total.items()}


def dimensions(numbers: Numbers) -> dict[str, int | None]:
    """Say to vmap which numbers differ from model to model."""
    return {name: 0 if values.ndim else None for name, values in numbers.items()}


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

    def measure(self, parts: Iterator[str] | tuple[str, ...], parameters: Parameters | None = None) -> Numbers:
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


def capacity(plan: Plan, memory: int, jobs: int) -> int:
    """Say how many models may be trained together within so many bytes; less than one if there is no room for one.

    Counts the parameters, with their gradients, what the optimizer and the summary keep of them; and what one step
    holds of the rows: all that the network computes from them, forward and backward, and copies in an order of its own.
    """
    x, _ = plan.data.parts["train"]
    rows = min(plan.data.batch_size or len(x), len(x))
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
        for module in plan.module.modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad():
            plan.module(x[:1].to(next(plan.module.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    computed = 4 * rows * sum(sizes)
    ordered = 2 * rows * x.shape[1] if plan.data.batch_size else 0
    parameters = 12 * sum(p.numel() for p in plan.module.parameters())
    each = (computed + ordered + parameters) * x.element_size() + 200
    if plan.data.batch_size:
        each += 8 * len(x)  # the order of an epoch
    widest = min(len(x), EVALUATION_ROWS) * sum(sizes) * x.element_size()
    fixed = min(widest * jobs, 2 * AT_ONCE * x.element_size())
    return int(max(memory - fixed, 0) // each) if widest * jobs > fixed else int(memory // (each + widest))


def counted(trainer: dict[str, Any]) -> tuple[int, int]:
    """Return epochs and steps that a trainer's config asks for, each as large as Lightning has it.

    Lightning trains 1,000 epochs where neither is given.
    """
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    unlimited = steps in (-1, None)
    if epochs is None:
        epochs = 1000 if unlimited else -1
    return (1 << 62 if epochs == -1 else epochs), (1 << 62 if unlimited else math.floor(steps))
