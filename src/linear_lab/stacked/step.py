"""One step of J models that differ only in numbers: written for one model, and vectorized over the models."""

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
State = dict[str, Parameters]  # of the optimizer, by parameter and buffer
Stepped = tuple[Parameters, State, Tensor]  # parameters and state after a step, and the losses before it
AT_ONCE = 1 << 24  # predictions that are held at once while measuring: bounds memory, not results


@dataclass
class StackSpec:
    """What all models of a stack share."""

    module: SupervisedModule  # any one of them, for its structure: its parameters are not used
    data: LinearData
    rule: Rule
    modes: dict[str, Any]  # switches of the optimizer, such as nesterov
    loss: Loss
    metric: str  # decides which weights are best
    mode: str  # min or max
    epochs: int
    steps: int  # at most; they may end an epoch early
    every: int  # epochs between two validations; one more follows the last step

    @property
    def batches(self) -> int:
        """Steps per epoch."""
        rows = len(self.data.parts["train"][0])
        return -(-rows // (self.data.batch_size or rows))

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return min(self.epochs * self.batches, self.steps)


@dataclass
class Models:
    """What differs between the J models of a stack."""

    parameters: Parameters  # initial values
    numbers: Numbers  # of optimizer and loss, (J,), or 0-dimensional where all agree; lr is the initial rate
    schedule: Schedule | None  # None for constant rates
    order_seeds: Tensor  # of the order of the rows, (J,) int64
    optima: list[tuple[Optimum, Tensor]] = field(default_factory=list)  # each with the indices of its models

    def __len__(self) -> int:
        return len(self.order_seeds)


class Stepper:
    """The step of J models; torch.compile compiles it for one J."""

    def __init__(self, plan: StackSpec, *, compiled: bool = False) -> None:
        self.plan, self.compiled = plan, compiled
        self.step: Callable[..., Stepped] = torch.compile(self._step, dynamic=False) if compiled else self._step

    def measure(self, parameters: Parameters, numbers: Numbers, part: Part) -> dict[str, Tensor]:
        """Return the metrics of a part, ``(J,)`` float64 each, rounded to the dtype of the parameters as in one run."""
        x, y = part
        first = next(iter(parameters.values()))
        metrics_of_all: Any = vmap(self._metrics, in_dims=(0, dimensions(numbers), None))
        rows = max(min(AT_ONCE // (len(first) * (y.shape[1] if y.ndim > 1 else 1)), EVALUATION_ROWS), 1)
        total: dict[str, Tensor] = {}
        with torch.no_grad():
            for batch in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
                for name, values in metrics_of_all(parameters, numbers, batch).items():
                    weighted = values.double() * len(batch[0])
                    total[name] = total[name] + weighted if name in total else weighted
        return {name: (values / len(x)).to(first.dtype).double() for name, values in total.items()}

    def _step(
        self, parameters: Parameters, state: State, alive: Tensor, numbers: Numbers, t: Tensor, batch: Part
    ) -> Stepped:
        """Step t, from 1, on x ``(B, F)`` or ``(J, B, F)``; returns new parameters and state, and the losses before."""
        dtype = next(iter(parameters.values())).dtype
        derived = {name: values.to(dtype) for name, values in self.plan.rule.derive(numbers, t).items()}
        dims = (0, 0, 0, dimensions(derived), 0 if batch[0].ndim == 3 else None)
        new: Stepped = vmap(self._step_of_one, in_dims=dims)(parameters, state, alive, derived, batch)
        return new

    def _step_of_one(
        self, parameters: Parameters, state: State, alive: Tensor, derived: Numbers, batch: Part
    ) -> Stepped:
        gradients, loss = grad_and_value(self._loss)(parameters, derived, batch)
        new_parameters, new_state = {}, {}
        for name, p in parameters.items():
            updated, new_state[name] = self.plan.rule.update(p, gradients[name], state[name], derived, self.plan.modes)
            new_parameters[name] = torch.where(alive, updated, p)  # A model that has diverged does not change.
        return new_parameters, new_state, loss

    def _loss(self, parameters: Parameters, numbers: Numbers, batch: Part) -> Tensor:
        return self.plan.loss(functional_call(self.plan.module, parameters, batch[:1]), batch[1], numbers)

    def _metrics(self, parameters: Parameters, numbers: Numbers, batch: Part) -> dict[str, Tensor]:
        y_hat, y = functional_call(self.plan.module, parameters, batch[:1]), batch[1]
        metrics = {"loss": self.plan.loss(y_hat, y, numbers)}
        if not y.is_floating_point():
            metrics["accuracy"] = (y_hat.argmax(1) == y).double().mean()
        return metrics


def dimensions(numbers: Numbers) -> dict[str, int | None]:
    """Return vmap's ``in_dims`` for numbers, of which some differ between models."""
    return {name: 0 if values.ndim else None for name, values in numbers.items()}


def capacity(plan: StackSpec, memory: int, jobs: int) -> int:
    """Return how many models can be trained together within so many bytes; less than one if there is no room for one.

    Counts the parameters, their gradients, their copies in optimizer and summary, and what one step holds of the rows:
    all that the network computes from them, forward and backward, and their copies in each model's order.
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
    per_model = (computed + ordered + parameters) * x.element_size() + 200
    if plan.data.batch_size:
        per_model += 8 * len(x)  # the order of an epoch
    measured = min(len(x), EVALUATION_ROWS) * sum(sizes) * x.element_size()
    fixed = min(measured * jobs, 2 * AT_ONCE * x.element_size())
    if measured * jobs > fixed:
        return int(max(memory - fixed, 0) // per_model)
    return int(memory // (per_model + measured))


def counted(trainer: dict[str, Any]) -> tuple[int, int]:
    """Return the largest numbers of epochs and of steps by a trainer's config; like Lightning, 1,000 epochs of none."""
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    unlimited = steps in (-1, None)
    if epochs is None:
        epochs = 1000 if unlimited else -1
    return (1 << 62 if epochs == -1 else epochs), (1 << 62 if unlimited else math.floor(steps))
