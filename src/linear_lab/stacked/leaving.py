"""What each run of a stack leaves: the folder that single training would have left."""

import math
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

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

AT_ONCE = 1000  # runs whose files are in memory together, some 40 KB each


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
        reference: Any = OmegaConf.to_container(OmegaConf.create(runs[0].yaml))
        self.references = list(references(reference))

    def write(self) -> list[dict[str, Any]]:
        """Write all folders; the records, in the order of the stack.

        A record says that its run has ended only when all else of it is on disk.
        """
        found = [self.record(job) for job in range(len(self.runs))]
        for first in range(0, len(self.runs), AT_ONCE):
            jobs = range(first, min(first + AT_ONCE, len(self.runs)))
            contents: dict[Path, bytes] = {}
            payloads: list[bytes] = []
            counts: list[int] = []
            for job in jobs:
                contents |= self.contents(job, found[job])
                events = self.events.of(job, found[job]) if self.events else []
                payloads += events
                counts.append(len(events))
            framed = iter(records(payloads))
            for job, count in zip(jobs, counts, strict=True):
                if count:
                    path = self.runs[job].run.path / event_file_name(job)
                    contents[path] = b"".join(next(framed) for _ in range(count))
                    contents[path.with_name(path.name + hparams.END)] = hparams.end_events(found[job]["status"])
            files.write_all(contents)
            for folder in (self.runs[job].run.path for job in jobs if self.best_is_last(job)):
                os.link(folder / LAST, folder / BEST)  # one content; who writes one of them later replaces it
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
        """Return all files but events and record."""
        one, folder, recorder = self.runs[job], self.runs[job].run.path, self.recorder
        found = {
            folder / CONFIG: one.yaml.encode(),
            folder / OVERRIDES: as_yaml(one.typed),
            folder / LOG: self.log(job, record),
        }
        if recorder.last is not None and recorder.last.step[job] >= 0:
            found[folder / LAST] = self.checkpoints.content(job, recorder.last, record)
        if recorder.best is not None and recorder.best.step[job] >= 0 and not self.best_is_last(job):
            found[folder / BEST] = self.checkpoints.content(job, recorder.best, record)
        if one.config["logger"]:
            rows = len(self.trained.data.parts["train"][0])
            columns = hparams.hyperparameters(self._unresolved(job), self.trained.own[job], rows)
            found[folder / hparams.START] = hparams.start_events(columns)
        return found

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
        written = "".join(f"[{stamp},000][linear_lab.stacked][INFO] {line}\n" for line in lines)
        before = self.runs[job].run.path / LOG
        return (before.read_bytes() if before.exists() else b"") + written.encode()

    def _unresolved(self, job: int) -> dict[str, Any]:
        """Return a run's config less the values that refer to others, which have no column of their own."""
        config = {
            name: dict(value) if isinstance(value, dict) else value for name, value in self.runs[job].config.items()
        }
        for group, key in self.references:
            config[group].pop(key, None)
        return config

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


def references(config: Any) -> list[tuple[str, str]]:
    """Find the values that refer to others: group and key."""
    return [
        (group, key)
        for group, values in config.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if isinstance(value, str) and value.startswith("${")
    ]


def event_file_name(job: int) -> str:
    """Name an event file as TensorBoard's writer does, but as it names none: pictures may follow in one of its own."""
    return f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.stacked.{job}"


PLAIN = re.compile(r"[A-Za-z][\w./]*=[\w.+-]+", re.ASCII)  # what YAML writes as it stands


def as_yaml(typed: list[str]) -> bytes:
    """Write a list of texts as YAML."""
    lines = (
        f"- {item}\n" if PLAIN.fullmatch(item) else yaml.safe_dump([item], allow_unicode=True, width=sys.maxsize)
        for item in typed
    )
    return "".join(lines).encode() or b"[]\n"
