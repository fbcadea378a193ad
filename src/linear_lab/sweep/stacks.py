"""Trains the planned jobs of a command in stacks, and writes their results."""

import io
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from linear_lab import UserError
from linear_lab.fitting.callbacks import Interrupted, StopOnSignal
from linear_lab.fitting.checks import DataError
from linear_lab.fitting.process import restored_process
from linear_lab.runs import atomic
from linear_lab.stacked.columns import Array, Group
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.outcome import history_of, rows_of, struct
from linear_lab.stacked.prepare import Prepared, device_of, models, prepare
from linear_lab.stacked.step import Stepper, capacity
from linear_lab.sweep import STOP, results
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.plan import job_fields, overrides
from linear_lab.sweep.stackable import groups
from linear_lab.text import first_line

CHECKPOINT = ".stack-{}.ckpt"  # in the sweep's folder while a chunk trains; named by the fingerprint of its first job
SAVE_EVERY = 60.0  # seconds between checkpoints: the most training that a kill can lose
CHUNK = 1 << 16  # most models that are trained at once: more do not fit into the CPU's cache
GPU_CHUNK = 1 << 20  # with fewer, a GPU spends most of the time on starting its kernels
COMPILING = 15.0  # seconds that torch.compile takes: 18 the first time, 6 once its cache is filled
SHOWN = 5  # most reasons that are listed
Progress = Callable[[int, int, int, int], None]

log = logging.getLogger(__name__)


class Stacks:
    """Trains groups of jobs, chunk by chunk, and writes their results.

    ``memory`` is the most bytes that a chunk may take. ``progress`` is called with the numbers of jobs that have ended
    and of jobs that train, and with the steps that these have taken, and will take in all.
    """

    def __init__(self, folder: Path, memory: int, compile: bool | str, history: int, progress: Progress) -> None:
        self.folder, self.memory, self.compile, self.history = folder, memory, compile, history
        self.progress, self.stop = progress, StopOnSignal()
        self.not_stacked: dict[str, str] = {}  # by name, why a job is not trained in a stack
        self.notes: list[str] = []
        self.done = 0
        self.unwritten: dict[str, list[pl.DataFrame]] = {results.RESULTS: [], results.HISTORY: []}  # rows, by file
        self.saved = time.monotonic()  # the time of the last flush

    def train(self, jobs: pl.DataFrame, composer: Composer) -> None:
        """Train those of the jobs, rows of the sweep's plan, that can be stacked; raise Interrupted after a signal."""
        stackable, self.not_stacked = groups(jobs, composer)
        with self.stop:
            try:
                for group in stackable:
                    if (self.folder / STOP).exists():
                        return
                    with restored_process(self.folder, group.config["threads"]):
                        self.train_group(group)
            finally:
                self.flush()

    def summary(self) -> list[str]:
        """Return lines that say how many jobs are not trained in a stack, and why."""
        reasons = Counter(self.not_stacked.values()).most_common(SHOWN)
        lines = [f"one by one  {count} {'job' if count == 1 else 'jobs'}: {reason}" for reason, count in reasons]
        return [*lines, *self.notes]

    def train_group(self, group: Group) -> None:
        """Train a group; if it cannot be stacked, store the reason in ``not_stacked``."""
        try:
            prepared = prepare(group)
        except DataError as error:
            self.fail(group, str(error))
            return
        except UserError as error:
            self.not_stacked |= dict.fromkeys(group.rows["name"], str(error))
            return
        group, plan = prepared.group, prepared.plan
        if self.has_other_data(prepared):
            source = group.config["data"].get("path") or type(plan.data).__name__
            remedy = "restore the old data, or choose another name="
            self.fail(group, f"data: {source} has changed since other jobs of this sweep were trained; {remedy}")
            return
        self.not_stacked |= prepared.errors
        room = capacity(plan, self.memory, len(group.rows))
        if room < 2:
            self.not_stacked |= dict.fromkeys(group.rows["name"], "hydra.launcher.memory has room for one model only")
            return
        left = np.arange(len(group.rows))
        for chosen, state in self.interrupted(prepared):
            self.train_chunk(prepared, chosen, Stepper(plan), state=state)
            left = np.setdiff1d(left, chosen)
        if not len(left):
            return
        room = min(room, CHUNK if device_of(group.config).type == "cpu" else GPU_CHUNK)
        size = -(-len(left) // -(-len(left) // room))  # chunks of almost equal size
        chunks = [left[at : at + size] for at in range(0, len(left), size)]
        stepper = self.stepper(prepared, chunks)
        for chunk in chunks:
            self.train_chunk(prepared, chunk, stepper, size=size if stepper.compiled else None)

    def has_other_data(self, prepared: Prepared) -> bool:
        """Return whether jobs of the same problem were trained on other data, as when the data file has changed."""
        if "data" not in results.schema(self.folder):
            return False
        problems = prepared.group.rows["problem"].unique()
        alike = pl.col("job").struct.field("problem").is_in(problems.implode()) & pl.col("data").is_not_null()
        other = results.read_results(self.folder, ["name"], alike & (pl.col("data") != prepared.plan.data.fingerprint))
        return other is not None and not other.is_empty()

    def stepper(self, prepared: Prepared, chunks: list[Array]) -> Stepper:
        """Return the step, compiled if training without compiling would take longer than `COMPILING`."""
        eager, plan = Stepper(prepared.plan), prepared.plan
        if self.compile is False:
            return eager
        if self.compile == "auto":
            trial = Loop(plan, models(prepared, chunks[0]), eager)
            trial.dry_run(1)
            started = time.perf_counter()
            trial.dry_run(2)
            if (time.perf_counter() - started) / 2 * plan.total * len(chunks) < COMPILING:
                return eager
        try:
            compiled = Stepper(plan, compiled=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TensorFloat32")  # has fewer digits than single runs
                Loop(plan, models(prepared, chunks[0]), compiled).dry_run(1)
        except Exception as error:  # there is no C++ compiler, or an operation is not supported
            log.info("torch.compile failed", exc_info=True)
            note = f"not compiled  {first_line(error)}"
            self.notes += [note] * (note not in self.notes)
            return eager
        return compiled

    def train_chunk(
        self, prepared: Prepared, chosen: Array, stepper: Stepper, *, state: Any = None, size: int | None = None
    ) -> None:
        """Train a chunk, the ``chosen`` jobs of a group, and collect their results.

        ``state`` comes from a checkpoint. A chunk is padded to ``size`` if the step was compiled for so many models.
        """
        watched, stop = self.watched_steps(prepared), self.stop
        hashes = prepared.group.rows["config_hash"][chosen].to_list()
        size = len(state["summary"]["best"]) if state else size or len(chosen)
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], size - len(chosen))])
        loop = Loop(prepared.plan, models(prepared, padded), stepper, watched)
        if state:
            loop.load_state_dict(state)
        path = self.folder / CHECKPOINT.format(hashes[0])

        def after_step(step: int) -> None:
            self.progress(self.done, len(chosen), step, prepared.plan.total)
            if stop.signum or time.monotonic() - self.saved > SAVE_EVERY:
                chunk = {"hashes": hashes, "data": prepared.plan.data.fingerprint, "watched": list(watched)}
                content = io.BytesIO()
                torch.save(chunk | {"loop": loop.state_dict()}, content)
                atomic.replace(path, content.getbuffer())
                self.flush()
            if stop.signum:
                raise Interrupted(128 + stop.signum)

        stop.training = True  # a signal takes effect at the end of a step
        try:
            loop.run(after_step)
            rows = rows_of(prepared, chosen, loop).with_columns(job_column(prepared, chosen))
            self.unwritten[results.RESULTS].append(rows)
            if watched:
                self.unwritten[results.HISTORY].append(history_of(prepared, chosen, loop))
        finally:
            stop.training = False
        self.done += len(chosen)
        if time.monotonic() - self.saved > SAVE_EVERY or path.exists():
            self.flush()
        path.unlink(missing_ok=True)
        if stop.signum:
            raise Interrupted(128 + stop.signum)

    def flush(self) -> None:
        for name, rows in self.unwritten.items():
            if rows:
                results.add(self.folder, pl.concat(rows, how="diagonal_relaxed"), name)
                rows.clear()
        self.saved = time.monotonic()

    def interrupted(self, prepared: Prepared) -> Iterator[tuple[Array, dict[str, Any]]]:
        """Yield the positions of jobs that an interrupted command was training, and the state of their checkpoint."""
        watched = list(self.watched_steps(prepared))
        position = {key: at for at, key in enumerate(prepared.group.rows["config_hash"])}
        for path in sorted(self.folder.glob(CHECKPOINT.format("*"))):
            try:
                chunk = torch.load(path, weights_only=True, map_location=device_of(prepared.group.config))
                if not all(key in position for key in chunk["hashes"]):
                    continue  # a checkpoint of another group
                if (chunk["data"], chunk["watched"]) == (prepared.plan.data.fingerprint, watched):
                    yield np.array([position[key] for key in chunk["hashes"]]), chunk["loop"]
                else:
                    path.unlink()  # the data have changed, or the history has other steps
            except Exception as error:  # torch.load of a damaged file can raise any exception
                log.warning("cannot read %s (%r); its jobs are trained from the start", path, error)
                path.unlink(missing_ok=True)

    def watched_steps(self, prepared: Prepared) -> tuple[int, ...]:
        """Return the steps of history.parquet: ``history`` steps at equal distances, from 0 to the last one."""
        if not self.history:
            return ()
        numbers = 1 + sum(values[0].numel() for values in prepared.parameters.values())
        jobs = len(prepared.group.rows)
        size = 8 * self.history * numbers * jobs  # bytes
        if size > self.memory:
            raise UserError(
                f"hydra.launcher.history={self.history}: the history of {jobs:,} jobs takes {size >> 20:,} MB, more "
                f"than hydra.launcher.memory={self.memory >> 20}; store fewer steps, or allow more memory"
            )
        return tuple(sorted(set(np.linspace(prepared.plan.total, 0, self.history).round().astype(int).tolist())))

    def fail(self, group: Group, message: str) -> None:
        """Record that all jobs of a group have failed with one error; with fail_fast=true, only the first one."""
        if group.config["fail_fast"]:
            group = group.only(np.arange(1))
            atomic.replace(self.folder / STOP, b"")
        rows = group.rows.select("name", "config_hash", status=pl.lit("failed"), error=pl.lit(message), seconds=0.0)
        job = struct({"overrides": overrides(group.rows), "group": group.rows["group"]})
        self.unwritten[results.RESULTS].append(rows.with_columns(job=job))
        self.done += len(group.rows)


def job_column(prepared: Prepared, chosen: Array) -> pl.Series:
    """Return the column ``job`` of the results: the fields of `job_fields` for each job."""
    group = prepared.group.only(chosen)
    constant = job_fields(group.config, (), "", "-")
    lr = group.numbers("optimizer", ("lr",), {})["lr"].expand(len(chosen)).numpy()
    fields = {name: pl.repeat(value, len(chosen), eager=True) for name, value in constant.items()}
    fields |= {"lr": pl.Series(lr), "group": group.rows["group"], "problem": group.rows["problem"]}
    return struct(fields | {"overrides": overrides(group.rows)}).alias("job")
