"""One step of J models that differ in numbers alone: written for one model, and vectorized by vmap."""

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

Parameters = dict[str, Tensor]  # the parameters of J models by name, (J, ...) each
State = dict[str, Parameters]  # the optimizer's state, by parameter and buffer
StepResult = tuple[Parameters, State, Tensor]  # parameters and state after a step, and the losses before it, (J,)
MAX_PREDICTIONS = 1 << 24  # most predictions in memory while measuring; does not change the results


@dataclass
class StackSpec:
    """The objects and settings that all models of a stack share."""

    module: SupervisedModule  # for the structure of the network; its parameters are not used
    data: LinearData
    rule: Rule
    modes: dict[str, Any]  # flags of the optimizer, such as nesterov
    loss: Loss
    metric: str  # the metric that decides which weights are best
    mode: str  # min or max
    epochs: int
    steps: int  # the largest number of steps, which may end training within an epoch
    every: int  # epochs between two validations; another one follows the last step

    @property
    def batches(self) -> int:
        """Steps per epoch."""
        rows = len(self.data.parts["train"][0])
        return -(-rows // (self.data.batch_size or rows))

    @property
    def total(self) -> int:
        """The total number of steps."""
        return min(self.epochs * self.batches, self.steps)


@dataclass
class Models:
    """The values in which the J models of a stack differ."""

    parameters: Parameters  # initial values
    numbers: Numbers  # numbers of optimizer and loss, (J,), or () if all models agree; lr is the initial one
    schedule: Schedule | None  # None for constant learning rates
    order_seeds: Tensor  # seeds of the order of the rows, (J,) int64
    optima: list[tuple[Optimum, Tensor]] = field(default_factory=list)  # each optimum, with the indices of its models

    def __len__(self) -> int:
        return len(self.order_seeds)


class Stepper:
    """Computes the step of J models; if ``compiled``, by torch.compile, which compiles it for one J."""

    def __init__(self, plan: StackSpec, *, compiled: bool = False) -> None:
        self.plan, self.compiled = plan, compiled
        self.step: Callable[..., StepResult] = torch.compile(self._step, dynamic=False) if compiled else self._step

    def measure(self, parameters: Parameters, numbers: Numbers, part: Part) -> dict[str, Tensor]:
        """Return the metrics of a part, ``(J,)`` float64 each, rounded to the parameters' dtype as in a single run."""
        x, y = part
        first = next(iter(parameters.values()))
        metrics_of_all: Any = vmap(self._metrics, in_dims=(0, dimensions(numbers), None))
        rows = max(min(MAX_PREDICTIONS // (len(first) * (y.shape[1] if y.ndim > 1 else 1)), EVALUATION_ROWS), 1)
        total: dict[str, Tensor] = {}
        with torch.no_grad():
            for batch in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
                for name, values in metrics_of_all(parameters, numbers, batch).items():
                    weighted = values.double() * len(batch[0])
                    total[name] = total[name] + weighted if name in total else weighted
        return {name: (values / len(x)).to(first.dtype).double() for name, values in total.items()}

    def _step(
        self, parameters: Parameters, state: State, alive: Tensor, numbers: Numbers, t: Tensor, batch: Part
    ) -> StepResult:
        """Compute step t, a 0-dimensional tensor that starts at 1, on x of shape ``(B, F)`` or ``(J, B, F)``."""
        dtype = next(iter(parameters.values())).dtype
        derived = {name: values.to(dtype) for name, values in self.plan.rule.derive(numbers, t).items()}
        dims = (0, 0, 0, dimensions(derived), 0 if batch[0].ndim == 3 else None)
        new: StepResult = vmap(self._step_of_one, in_dims=dims)(parameters, state, alive, derived, batch)
        return new

    def _step_of_one(
        self, parameters: Parameters, state: State, alive: Tensor, derived: Numbers, batch: Part
    ) -> StepResult:
        gradients, loss = grad_and_value(self._loss)(parameters, derived, batch)
        new_parameters, new_state = {}, {}
        for name, p in parameters.items():
            updated, new_state[name] = self.plan.rule.update(p, gradients[name], state[name], derived, self.plan.modes)
            new_parameters[name] = torch.where(alive, updated, p)  # a diverged model stays as it is
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
    """Return vmap's ``in_dims`` for numbers: 0 if they differ between models, else None."""
    return {name: 0 if values.ndim else None for name, values in numbers.items()}


def capacity(plan: StackSpec, memory: int, jobs: int) -> int:
    """Return the number of models that can be trained together in ``memory`` bytes, which may be 0.

    The estimate counts the parameters, their gradients, and their copies in optimizer and summary; all that the network
    computes in one step, forward and backward; and the rows of a batch in the order of each model.
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
    fixed = min(measured * jobs, 2 * MAX_PREDICTIONS * x.element_size())
    if measured * jobs > fixed:
        return int(max(memory - fixed, 0) // per_model)
    return int(memory // (per_model + measured))


def epoch_and_step_limits(trainer: dict[str, Any]) -> tuple[int, int]:
    """Return the largest numbers of epochs and of steps; as in Lightning, 1,000 epochs if the config limits neither."""
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    unlimited = steps in (-1, None)
    if epochs is None:
        epochs = 1000 if unlimited else -1
    return (1 << 62 if epochs == -1 else epochs), (1 << 62 if unlimited else math.floor(steps))
