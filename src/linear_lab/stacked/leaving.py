"""What each run of a stack leaves: the folder that single training would have left."""

import functools
import math
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from torch.optim import Optimizer

from linear_lab import console, files
from linear_lab.dashboard import hparams
from linear_lab.dashboard.events import records
from linear_lab.divergence import DivergenceError, divergence
from linear_lab.run import BEST, CONFIG, LAST, LOG, OVERRIDES, RESULT, as_json, git_revision, versions
from linear_lab.stacked.checkpoints import Checkpoints
from linear_lab.stacked.events import Events
from linear_lab.stacked.measured import final, measured
from linear_lab.stacked.snapshot import Snapshot
from linear_lab.stacked.training import StackedRun, Trained

AT_ONCE = 30_000  # events that are in memory together, some 500 bytes each, of a thousand runs at most


class Leaving:
    """Writes the folders of a stack's runs.

    Args:
        runs: in the order of the stack.
        trained: what training has left.
    """

    def __init__(self, runs: list[StackedRun], trained: Trained) -> None:
        self.runs, self.trained, self.recorder = runs, trained, trained.recorder
        ended, initial, best = final(trained), self.recorder.initial, self.recorder.best
        self.final = measured(trained, ended)
        self.best = None if best is None else measured(trained, best)
        never = Snapshot(ended.step, initial["weight"], initial["bias"], [], [], [])
        self.start = measured(trained, never, initial["metrics"])
        schema = trained.data.schema
        self.common: dict[str, Any] = {
            "versions": versions(),
            "git": git_revision(),
            "columns": {"x": schema.x, "y": schema.y, "labels": schema.labels},
            "rows": {name: len(x) for name, (x, _) in trained.data.parts.items()},
            "loss_unit": console.loss_unit(runs[0].config["loss"], schema),
        }
        self.checkpoints = Checkpoints(runs, trained)
        self.events = Events(runs, trained, ended, self.final.metrics) if runs[0].config["logger"] else None

    def write(self) -> list[dict[str, Any]]:
        """Write all folders; the records, in the order of the stack.

        A record says that its run has ended only when all else of it is on disk.
        """
        found = [self.record(job) for job in range(len(self.runs))]
        size = max(min(AT_ONCE // (len(self.trained.recorder.frames) + 1), 1000), 1)
        for first in range(0, len(self.runs), size):
            jobs = range(first, min(first + size, len(self.runs)))
            contents: dict[Path, bytes] = {}
            for job in jobs:
                contents |= self.contents(job, found[job])
            if self.events:
                contents |= event_files(self.event_contents(jobs, found))
            files.write_all(contents)
            for folder in (self.runs[job].run.path for job in jobs if self.best_is_last(job)):
                link(folder / LAST, folder / BEST)
            files.replace_all({self.runs[job].run.path / RESULT: as_json(found[job]) for job in jobs})
            for job in jobs:
                self.runs[job].run.record = found[job]
        return found

    def record(self, job: int) -> dict[str, Any]:
        """Return what result.json says."""
        recorder, known = self.recorder, self.trained.known[job]
        steps = int(self.final.step[job])
        record: dict[str, Any] = {
            "status": "completed", "error": None, "versions": self.common["versions"], **self.runs[job].fields,
            **{name: self.common[name] for name in ("git", "columns", "rows", "loss_unit")},
            "stable_lr": known.stable_lr, "weight_decay": known.weight_decay,
        }  # fmt: skip
        if steps or job not in recorder.diverged:
            start = self.start.of(job)
            record["initial"] = start["parameters"] | {"excess_loss": start["excess_loss"]} | start["metrics"]
        if steps:
            first = recorder.first_step
            gradient = {name: first[name][job].tolist() for name in ("weight", "bias") if name in first}
            record["first_step"] = {"loss": first["loss"][job].item(), "gradient": gradient}
        learned = self.final.of(job)
        optimum = known.optimum and {
            "weight": known.optimum.weight.tolist(),
            "bias": None if known.optimum.bias is None else known.optimum.bias.tolist(),
            "train/loss": known.optimum.loss,
        }
        record |= {"steps": steps, "optimum": optimum, **learned, "best": None}
        if self.best is not None and (step := int(self.best.step[job])) >= 0:
            record["best"] = {"step": step, **(learned if step == steps else self.best.of(job))}
        error = self._divergence(job, record)
        seconds = self.trained.seconds / len(self.runs)
        return record | {
            "status": "diverged" if error else "completed", "error": error, "seconds": seconds,
            "stack": {"jobs": len(self.runs), "seconds": self.trained.seconds},
        }  # fmt: skip

    def contents(self, job: int, record: dict[str, Any]) -> dict[Path, bytes]:
        """Return the log and the checkpoints."""
        folder, recorder = self.runs[job].run.path, self.recorder
        found = {folder / LOG: self.log(job, record)}
        if recorder.last is not None and recorder.last.step[job] >= 0:
            found[folder / LAST] = self.checkpoints.content(job, recorder.last, record)
        if recorder.best is not None and recorder.best.step[job] >= 0 and not self.best_is_last(job):
            found[folder / BEST] = self.checkpoints.content(job, recorder.best, record)
        return found

    def event_contents(self, jobs: range, found: list[dict[str, Any]]) -> dict[Path, list[bytes]]:
        """Return the serialized events of all event files of some jobs."""
        assert self.events
        contents = {}
        ends = {status: hparams.end_events(status) for status in {found[job]["status"] for job in jobs}}
        for job, events in zip(jobs, self.events.of(jobs, found), strict=True):
            path = self.runs[job].run.path / event_file_name(job)
            contents[path] = events
            contents[path.with_name(path.name + hparams.END)] = ends[found[job]["status"]]
        return contents

    def best_is_last(self, job: int) -> bool:
        """Tell whether the best weights of a model are those of its last checkpoint."""
        best, last = self.recorder.best, self.recorder.last
        return best is not None and last is not None and bool(0 <= best.step[job] == last.step[job])

    def log(self, job: int, record: dict[str, Any]) -> bytes:
        """Return the log: what trained it, and what came of it."""
        stack = record["stack"]
        metrics = ", ".join(f"{name} {value:.6g}" for name, value in record["metrics"].items())
        lines = [
            f"trained with {stack['jobs'] - 1} others as one stacked model, in {stack['seconds']:.3g} s together",
            f"{record['error'] or record['status']}; step {record['steps']}: {metrics}",
        ]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        written = "".join(f"[{stamp},000][linear_lab.stacked][INFO] {line}\n" for line in lines)
        before = self.runs[job].run.path / LOG
        return (before.read_bytes() if before.exists() else b"") + written.encode()

    def _divergence(self, job: int, record: dict[str, Any]) -> str | None:
        """Say that the run diverged, as single training says it."""
        found, known = self.recorder.diverged.get(job), self.trained.known[job]
        config = self.runs[job].config
        fast = known.stable_lr is not None and config["optimizer"].get("lr", 0) > known.stable_lr
        if not found and not fast and all(map(math.isfinite, record["metrics"].values())):
            return None
        cfg = OmegaConf.create({name: config[name] for name in ("optimizer", "scheduler", "data")})
        diverged = DivergenceError(*found[:2]) if found else None
        return divergence(cfg, known, diverged, record, record.get("initial", {}))


def begin(runs: list[StackedRun], own: list[Optimizer], rows: int) -> None:
    """Write what runs have from their first moment: config, overrides, and a row on the HPARAMS page.

    Args:
        runs: of one stack.
        own: each run's optimizer, as it starts.
        rows: of the train part.
    """
    contents: dict[Path, bytes] = {}
    starts: dict[Path, list[bytes]] = {}
    for one, optimizer in zip(runs, own, strict=True):
        folder = one.run.path
        contents[folder / CONFIG], contents[folder / OVERRIDES] = one.yaml.encode(), as_yaml(one.typed)
        if one.config["logger"]:
            columns = hparams.hyperparameters(unresolved(one), optimizer, rows)
            starts[folder / hparams.START] = hparams.start_events(columns)
    files.write_all(contents | event_files(starts))


def unresolved(one: StackedRun) -> dict[str, Any]:
    """Return a run's config less the values that refer to others, which have no column of their own."""
    config = {name: dict(value) if isinstance(value, dict) else value for name, value in one.config.items()}
    for group, key in one.referring:
        config[group].pop(key, None)
    return config


def link(path: Path, other: Path) -> None:
    """Give a file a second name: one content, until who writes under one of them replaces it."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # not every file system has links
        shutil.copyfile(path, other)


def event_files(events: dict[Path, list[bytes]]) -> dict[Path, bytes]:
    """Turn serialized events into the contents of their files."""
    framed = iter(records([one for of_file in events.values() for one in of_file]))
    return {path: b"".join(next(framed) for _ in of_file) for path, of_file in events.items()}


def event_file_name(job: int) -> str:
    """Name an event file as TensorBoard's writer does, but as it names none: pictures may follow in one of its own."""
    return f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.stacked.{job}"


PLAIN = re.compile(r"[A-Za-z][\w./]*=[\w.+-]+", re.ASCII)  # what YAML writes as it stands


def as_yaml(typed: list[str]) -> bytes:
    """Write a list of texts as YAML."""
    return "".join(map(item_as_yaml, typed)).encode() or b"[]\n"


@functools.cache  # jobs of a sweep repeat them
def item_as_yaml(text: str) -> str:
    """Write a text as an item of a list in YAML."""
    if PLAIN.fullmatch(text):
        return f"- {text}\n"
    return str(yaml.safe_dump([text], allow_unicode=True, width=sys.maxsize))
