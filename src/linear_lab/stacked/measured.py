"""What the models of a stack have learned, in the units of the file."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linear_lab.stacked.snapshot import Snapshot, in_file_units
from linear_lab.stacked.training import Trained


@dataclass
class Measured:
    """Models, measured.

    Attributes:
        step: of each, ``(J,)``.
        metrics: by name, ``(J,)`` each.
        weight: ``(J, T, F)``, in the units of the file.
        bias: ``(J, T)`` or None, likewise.
        excess: over the least loss, ``(J,)``; None where that is not known.
    """

    step: Tensor
    metrics: dict[str, Tensor]
    weight: Tensor
    bias: Tensor | None
    excess: Tensor | None

    def of(self, job: int) -> dict[str, Any]:
        """Return what one model has learned, as a record says it."""
        return {
            "metrics": {name: values[job].item() for name, values in self.metrics.items()},
            "parameters": self.parameters(job),
            "excess_loss": None if self.excess is None else self.excess[job].item(),
        }

    def parameters(self, job: int) -> dict[str, Any]:
        """Return one model's weight and bias as lists."""
        return {"weight": self.weight[job].tolist(), "bias": None if self.bias is None else self.bias[job].tolist()}


def measured(trained: Trained, snapshot: Snapshot, metrics: dict[str, Tensor] | None = None) -> Measured:
    """Measure models on all parts, unless their metrics are known."""
    recorder = trained.recorder
    if metrics is None:
        load(trained, snapshot)
        metrics = recorder.measure(trained.model, list(trained.data.parts))
    units = in_file_units(trained.data.schema, snapshot.weight, snapshot.bias)
    return Measured(snapshot.step, metrics, *units, recorder.excesses(snapshot.weight, snapshot.bias))


@torch.no_grad()
def load(trained: Trained, snapshot: Snapshot) -> None:
    """Put a snapshot's weights into the stack's model."""
    trained.model.weight.copy_(snapshot.weight)
    if trained.model.bias is not None and snapshot.bias is not None:
        trained.model.bias.copy_(snapshot.bias)


def final(trained: Trained) -> Snapshot:
    """Return each model as it ended: those that diverged as they were then."""
    recorder = trained.recorder
    found = recorder.snapshot(trained.steps, trained.model)
    if recorder.ended is not None:
        found.update(recorder.ended, ~recorder.alive)
    return found


def ways(trained: Trained) -> Tensor:
    """Return the paths of all models as `Dashboard` keeps one, ``(J, N, 3)``: step, weight and bias."""
    points = []
    for step, weight, bias in trained.recorder.path:
        pair = in_file_units(trained.data.schema, weight, bias)
        units = [values.double().flatten(1) for values in pair if values is not None]
        points.append(torch.cat([torch.full_like(units[0], step), *units], 1))
    if not points:
        return torch.zeros(len(trained.known), 0, 3, dtype=torch.float64)
    return torch.stack(points, 1)
