"""One step of J models that differ in numbers alone: written for one model, and vectorized over the models."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from linear_lab.data import LinearData
from linear_lab.data.batches import Part
from linear_lab.data.datamodule import EVALUATION_ROWS
from linear_lab.models import SupervisedModule
from linear_lab.stacked.losses import Loss
from linear_lab.stacked.optimizers import Numbers, Rule
from linear_lab.stacked.schedules import Schedule
from linear_lab.theory.least_squares import Optimum

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
