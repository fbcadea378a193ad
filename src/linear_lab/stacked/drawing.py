"""Pictures of the best runs of stacks: drawn afterwards, from weights that were kept on the way."""

from typing import Any, NamedTuple

import numpy as np
import torch

from linear_lab.dashboard.gradients import gradient_norms
from linear_lab.dashboard.logger import RunLogger
from linear_lab.dashboard.pictures import Pictures
from linear_lab.stacked.measured import ways
from linear_lab.stacked.training import StackedRun, Trained


class Candidate(NamedTuple):
    """A run that may be among the best."""

    value: float
    run: StackedRun
    trained: Trained
    job: int


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
        found = [
            Candidate(record["metrics"][trained.metric], run, trained, job)
            for job, (run, record) in enumerate(zip(runs, records, strict=True))
            if record["status"] == "completed"
        ]
        ranked = sorted([*self.best, *found], key=lambda one: one.value, reverse=self.mode == "max")
        self.best = ranked[: self.wanted]

    def draw(self) -> None:
        """Add the pictures and histograms that single training would have logged."""
        for candidate in self.best:
            draw(candidate)


def draw(candidate: Candidate) -> None:
    """Log pictures and histograms of one run, into an event file of their own."""
    job, trained, recorder = candidate.job, candidate.trained, candidate.trained.recorder
    data, model = trained.data, trained.template
    pictures = Pictures(data, model, trained.known[job])
    path = ways(trained)[job].tolist()
    moments = {step: (weight, bias) for step, weight, bias in recorder.shown}
    if recorder.last is not None:
        moments[int(recorder.last.step[job])] = recorder.last.weight, recorder.last.bias
    logger = RunLogger(str(candidate.run.run.path))
    for step, (weight, bias) in moments.items():
        with torch.no_grad():
            model.linear.weight.copy_(weight[job])
            if bias is not None:
                model.linear.bias.copy_(bias[job])
        way = [point[1:] for point in path if point[0] <= step]
        for tag, png in pictures.draw(step, way).items():
            logger.log_picture(f"pictures/{tag}", png, step)
        histograms: dict[str, np.ndarray[Any, Any]] = pictures.residuals()
        _, norms = gradient_norms(model, *data.parts["train"])
        if norms is not None:
            histograms["gradient_norms"] = norms.numpy()
        for tag, values in histograms.items():
            logger.log_histogram(f"train/{tag}", values, step)
    logger.close()
