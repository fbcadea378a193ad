"""What TensorBoard shows of a stack's runs."""

import math
import time
from typing import Any

import numpy as np
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

NO_BYTE_ZERO = float(np.frombuffer(b"\1\1\1\1", "<f4")[0])


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

    def of(self, jobs: range, records: list[dict[str, Any]]) -> list[list[bytes]]:
        """Return what TensorBoard shows of some jobs, as serialized events of each."""
        framed = [frame.events(jobs) for frame in self.frames]
        return [
            self.of_one(job, records[job], [scalars for row in framed if (scalars := row[number])])
            for number, job in enumerate(jobs)
        ]

    def of_one(self, job: int, record: dict[str, Any], framed: list[bytes]) -> list[bytes]:
        """Return the events of one job, with those of its scalars."""
        now, last = time.time(), record["steps"]
        found = [self.header, event(text("config", f"```yaml\n{self.runs[job].resolved_yaml}```"), 0, now), *self.same]
        found += framed
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
        self.step, self.tags = torch.as_tensor(step).expand(len(of)), list(scalars)
        self.of = of.tolist()
        self.rows = torch.stack(list(scalars.values()), 1).double()
        self.whole = (self.rows.abs() <= LARGEST).all(1).tolist()
        self.wall_time = wall_time

    def events(self, jobs: range) -> list[bytes | None]:
        """Serialize those of some models at a common step; None of a model that has none.

        All have the same bytes but for the values, four bytes each.
        """
        step, alike = int(self.step[jobs.start]), ([value] * len(self.tags) for value in (0.0, NO_BYTE_ZERO))
        empty, full = (np.frombuffer(self.filled(row, step), np.uint8) for row in alike)
        contents = np.tile(empty, (len(jobs), 1))
        contents[:, empty != full] = self.rows[jobs.start : jobs.stop].float().numpy().astype("<f4").view(np.uint8)
        return [
            content.tobytes() if self.of[job] and self.whole[job] else self.event(job)
            for job, content in zip(jobs, contents, strict=True)
        ]

    def event(self, job: int) -> bytes | None:
        """Serialize one model's; None if it has none."""
        if not self.of[job]:
            return None
        return self.filled(self.rows[job].tolist(), int(self.step[job]))

    def filled(self, row: list[float], step: int) -> bytes:
        """Serialize values, but those that are left out."""
        found = zip(self.tags, row, strict=True)
        kept = [Summary.Value(tag=tag, simple_value=value) for tag, value in found if abs(value) <= LARGEST]
        return event(Summary(value=kept), step, self.wall_time)


def text(tag: str, markdown: str) -> Summary:
    """Make what the Text page shows."""
    return untyped_text(tag, markdown)  # type: ignore[no-untyped-call]


def event(summary: Summary, step: int, wall_time: float) -> bytes:
    """Serialize an event."""
    content: bytes = Event(summary=summary, step=step, wall_time=wall_time).SerializeToString()
    return content
