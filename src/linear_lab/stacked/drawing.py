"""Pictures of the best runs of stacks: drawn afterwards, from weights that were kept on the way."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from linear_lab.dashboard.gradients import gradient_norms
from linear_lab.dashboard.logger import RunLogger
from linear_lab.dashboard.pictures import Pictures
from linear_lab.data import LinearData
from linear_lab.models import LinearModule
from linear_lab.models.supervised import build
from linear_lab.optimum import Reference
from linear_lab.stacked.measured import ways
from linear_lab.stacked.training import StackedRun, Trained


class Candidate(NamedTuple):
    """A run that may be among the best, with what its pictures show: no more of its stack is kept.

    Attributes:
        value: of its metric.
        run: where it lies.
        data: what it was trained on.
        template: a model of its kind, whose weights and loss are put in.
        known: what it is held against.
        path: step, weight and bias along its way.
        moments: weight and bias at the steps that have pictures.
    """

    value: float
    run: StackedRun
    data: LinearData
    template: LinearModule
    known: Reference
    path: list[list[float]]
    moments: dict[int, tuple[Tensor, Tensor | None]]


class Candidates:
    """The best runs of several stacks.

    Args:
        wanted: how many get pictures.
        mode: ``min`` or ``max`` of the metric.
    """

    def __init__(self, wanted: int, mode: str) -> None:
        self.wanted, self.mode = wanted, mode
        self.best: list[Candidate] = []

    def offer(self, runs: list[StackedRun], trained: Trained, records: list[dict[str, Any]]) -> None:
        """Take a stack's runs into account."""
        if not (runs[0].config["logger"] or {}).get("pictures"):
            return
        values = [(record["metrics"][trained.metric], job) for job, record in enumerate(records) if ended_well(record)]
        highest = self.mode == "max"
        found = [candidate(value, job, runs, trained) for value, job in sorted(values, reverse=highest)[: self.wanted]]
        self.best = sorted([*self.best, *found], key=lambda one: one.value, reverse=highest)[: self.wanted]

    def draw(self) -> None:
        """Add the pictures and histograms that single training would have logged."""
        for candidate in self.best:
            draw(candidate)


def ended_well(record: dict[str, Any]) -> bool:
    """Tell whether a run has a value to compare."""
    return bool(record["status"] == "completed")


def candidate(value: float, job: int, runs: list[StackedRun], trained: Trained) -> Candidate:
    """Take out of a stack what the pictures of one run show."""
    recorder, own = trained.recorder, ways(trained)[job].tolist()
    moments = {
        step: (weight[job].clone(), None if bias is None else bias[job].clone())
        for step, weight, bias in recorder.shown
    }
    if (last := recorder.last) is not None:
        bias = None if last.bias is None else last.bias[job].clone()
        moments[int(last.step[job])] = last.weight[job].clone(), bias
    return Candidate(value, runs[job], trained.data, trained.template, trained.known[job], own, moments)


def draw(candidate: Candidate) -> None:
    """Log pictures and histograms of one run, into an event file of their own."""
    data, model = candidate.data, candidate.template
    model.loss = build(candidate.run.config["loss"], nn.Module)
    pictures = Pictures(data, model, candidate.known)
    logger = RunLogger(str(candidate.run.run.path))
    for step, (weight, bias) in candidate.moments.items():
        with torch.no_grad():
            model.network.weight.copy_(weight)
            if bias is not None:
                model.network.bias.copy_(bias)
        way = [point[1:] for point in candidate.path if point[0] <= step]
        for tag, png in pictures.draw(step, way).items():
            logger.log_picture(f"pictures/{tag}", png, step)
        histograms: dict[str, np.ndarray[Any, Any]] = pictures.residuals()
        _, norms = gradient_norms(model, *data.parts["train"])
        if norms is not None:
            histograms["gradient_norms"] = norms.numpy()
        for tag, values in histograms.items():
            logger.log_histogram(f"train/{tag}", values, step)
    logger.close()
