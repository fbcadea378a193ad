"""What TensorBoard shows of a stack's runs."""

import math
import time
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars
from torch.utils.tensorboard.summary import text as untyped_text

from linear_lab.dashboard.callbacks import coefficients, layout
from linear_lab.dashboard.gradients import untouched
from linear_lab.dashboard.graph import graph
from linear_lab.dashboard.logger import LARGEST
from linear_lab.dashboard.texts import outcome_text
from linear_lab.stacked.measured import load, measured
from linear_lab.stacked.snapshot import Snapshot, columns
from linear_lab.stacked.training import StackedRun, Trained


class Events:
    """Makes the events that `Dashboard` would log of each run, but for pictures and histograms.

    Args:
        runs: in the order of the stack.
        trained: what training has left.
        final: the models as they ended.
        metrics: theirs, on all parts.
    """

    def __init__(self, runs: list[StackedRun], trained: Trained, final: Snapshot, metrics: dict[str, Tensor]) -> None:
        self.runs, self.trained = runs, trained
        template, recorder, now = trained.template, trained.recorder, time.time()
        self.header = Event(file_version="brain.Event:2", wall_time=now).SerializeToString()
        charts = {
            category: {title: ["Multiline", list(tags)] for title, tags in titles.items()}
            for category, titles in layout(
                self._coefficients("param", measured(trained, final, metrics).parameters(0))
            ).items()
        }
        self.same = [event(custom_scalars(charts), 0, now)]  # type: ignore[no-untyped-call]
        with untouched(template):
            traced = graph(template, *(values[:1] for values in self.trained.data.parts["train"]))
        if traced:
            self.same.append(Event(graph_def=traced.SerializeToString(), wall_time=now).SerializeToString())
        optimal = self._optimal()
        self.frames = [
            Frame(
                frame["step"],
                frame["time"],
                frame["scalars"] | optimal,
                frame["alive"],
            )
            for frame in recorder.frames
        ]
        if recorder.diverged:
            load(trained, final)
            excess = recorder.excesses(final.weight, final.bias)
            scalars = recorder.scalars(final.step, trained.model, metrics, excess)
            scalars |= columns(trained.data.schema, final.weight, final.bias) | optimal
            self.caught_up = Frame(final.step, now, scalars, ~recorder.alive)

    def of(self, job: int, record: dict[str, Any]) -> list[bytes]:
        """Return what TensorBoard shows, as serialized events."""
        now, last = time.time(), record["steps"]
        found = [self.header, event(text("config", f"```yaml\n{self.runs[job].resolved_yaml}```"), 0, now), *self.same]
        found += [scalars for frame in self.frames if (scalars := frame.event(job))]
        gone = job in self.trained.recorder.diverged  # nothing else has measured it then
        if gone and (scalars := self.caught_up.event(job)):
            found.append(scalars)
        tests = {name: value for name, value in record["metrics"].items() if gone or name.startswith("test/")}
        kept = [Summary.Value(tag=tag, simple_value=value) for tag, value in tests.items() if abs(value) <= LARGEST]
        return [*found, event(Summary(value=kept), last, now), event(text("outcome", outcome_text(record)), last, now)]

    def _coefficients(self, group: str, values: dict[str, Any]) -> dict[str, float]:
        return coefficients(
            group, values, self.trained.data.schema.x, self.trained.data.schema.labels or self.trained.data.schema.y
        )

    def _optimal(self) -> dict[str, Tensor]:
        """Return the numbers of the models' optima by tag."""
        found: dict[str, Tensor] = {}
        for optimum, which in self.trained.recorder.optima:
            bias = None if optimum.bias is None else optimum.bias.tolist()
            values = self._coefficients("optimum", {"weight": optimum.weight.tolist(), "bias": bias})
            for tag, value in ({"optimum/loss": optimum.loss} | values).items():
                found.setdefault(tag, torch.full((len(which),), math.nan, dtype=torch.float64))[which] = value
        return found


class Frame:
    """Scalars of all models at one moment.

    Args:
        step: of it, or of each model, ``(J,)``.
        wall_time: in seconds.
        scalars: by tag, ``(J,)`` each; NaN, and what is infinite in float32, is left out, as `RunLogger` does.
        of: which models it tells of, ``(J,)``.
    """

    def __init__(self, step: int | Tensor, wall_time: float, scalars: dict[str, Tensor], of: Tensor) -> None:
        self.step, self.tags = step, list(scalars)
        self.of = of.tolist()
        self.rows = torch.stack(list(scalars.values()), 1).double()
        self.whole = (self.rows.abs() <= LARGEST).all(1).tolist()
        self.filled = Event(wall_time=wall_time)
        for tag in self.tags:
            self.filled.summary.value.add(tag=tag)

    def event(self, job: int) -> bytes | None:
        """Serialize one model's; None if it has none."""
        if not self.of[job]:
            return None
        row = self.rows[job].tolist()
        step = int(self.step[job]) if isinstance(self.step, Tensor) else self.step
        if not self.whole[job]:
            found = zip(self.tags, row, strict=True)
            kept = [Summary.Value(tag=tag, simple_value=value) for tag, value in found if abs(value) <= LARGEST]
            return event(Summary(value=kept), step, self.filled.wall_time)
        self.filled.step = step
        for place, value in zip(self.filled.summary.value, row, strict=True):  # in place: making them anew takes longer
            place.simple_value = value
        content: bytes = self.filled.SerializeToString()
        return content


def text(tag: str, markdown: str) -> Summary:
    """Make what the Text page shows."""
    return untyped_text(tag, markdown)  # type: ignore[no-untyped-call]


def event(summary: Summary, step: int, wall_time: float) -> bytes:
    """Serialize an event."""
    content: bytes = Event(summary=summary, step=step, wall_time=wall_time).SerializeToString()
    return content
