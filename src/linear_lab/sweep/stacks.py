"""The stacks of one command: planned jobs in, rows of results out."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from linear_lab import UserError
from linear_lab.fitting.callbacks import Interrupted, StopOnSignal
from linear_lab.fitting.process import restored_process
from linear_lab.runs import atomic
from linear_lab.stacked.columns import Group
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.outcome import history_of, rows_of, struct
from linear_lab.stacked.prepare import Prepared, device_of, models, prepare
from linear_lab.stacked.step import Stepper, capacity
from linear_lab.sweep import results
from linear_lab.sweep.plan import job_fields, overrides
from linear_lab.sweep.sweeper import STOP

CHECKPOINT = ".stack-{}.ckpt"  # in the sweep's folder while a chunk is trained, with the fingerprint of its first job
SAVE_EVERY = 60.0  # seconds that a kill may cost
CHUNK = 1 << 16  # models that are trained at once: more fit into no cache
COMPILING = 15.0  # seconds that torch.compile takes: 6 where it has compiled the like before, 18 at the first time

log = logging.getLogger(__name__)


class Options(NamedTuple):
    """What a user may choose.

    Attributes:
        memory: bytes that a chunk may take.
        compile: True, False, or "auto" where it pays.
        history: at how many steps losses and parameters are kept.
    """

    memory: int
    compile: bool | str
    history: int


class Stacks:
    """Trains groups of jobs, chunk by chunk, and writes their results.

    Args:
        folder: the sweep's.
        options: what a user may choose.
        progress: is told how many jobs have ended, how many train, how many steps these have taken, and of how many.

    Attributes:
        alone: by name why jobs could not be trained in a stack.
        notes: for the terminal.
    """

    def __init__(self, folder: Path, options: Options, progress: Callable[[int, int, int, int], None]) -> None:
        self.folder, self.options, self.progress = folder, options, progress
        self.alone: dict[str, str] = {}
        self.notes: list[str] = []
        self.done = 0
        self.pending: list[pl.DataFrame] = []
        self.watched: list[pl.DataFrame] = []
        self.saved = time.monotonic()

    def train(self, groups: list[Group]) -> None:
        """Train all groups.

        Raises:
            Interrupted: at a signal, after what is done was written.
            UserError: for a full disk.
        """
        with StopOnSignal() as stop:
            try:
                for group in groups:
                    if (self.folder / STOP).exists():
                        return
                    with restored_process(self.folder, group.config["threads"]):
                        self.train_group(group, stop)
            finally:
                self.flush()

    def train_group(self, group: Group, stop: StopOnSignal) -> None:
        """Train a group, or say why its jobs are trained alone."""
        try:
            prepared = prepare(group)
        except UserError as error:
            if str(error).startswith("data"):
                self.fail(group, str(error))
            else:
                self.alone |= dict.fromkeys(group.rows["name"], str(error))
            return
        group, plan = prepared.group, prepared.plan
        if self.has_other_data(prepared):
            source = group.config["data"].get("path") or type(plan.data).__name__
            remedy = "put the old data back, or choose another name="
            self.fail(group, f"data: {source} has changed since other jobs of this sweep were trained; {remedy}")
            return
        self.alone |= prepared.wrong
        room = capacity(plan, self.options.memory, len(group.rows)) if len(group.rows) else 0
        if room < 2:
            why = "hydra.launcher.memory leaves room for one model alone" if len(group.rows) else ""
            self.alone |= dict.fromkeys(group.rows["name"], why)
            return
        watched = self.watched_steps(prepared)
        left = np.arange(len(group.rows))
        for chosen, state in self.interrupted(prepared, watched):
            self.train_chunk(prepared, chosen, Stepper(plan), watched, stop, state)
            left = np.setdiff1d(left, chosen)
        if not len(left):
            return
        count = -(-len(left) // min(room, CHUNK))
        size = -(-len(left) // count)
        chunks = [left[at : at + size] for at in range(0, len(left), size)]
        stepper = self.stepper(prepared, chunks)
        for chunk in chunks:
            self.train_chunk(prepared, chunk, stepper, watched, stop, size=size if stepper.compiled else None)

    def has_other_data(self, prepared: Prepared) -> bool:
        """Tell whether jobs of the same problem were trained on other data: a file may have changed meanwhile."""
        if "data" not in results.schema(self.folder):
            return False
        problems = prepared.group.rows["problem"].unique()
        alike = pl.col("job").struct.field("problem").is_in(problems.implode()) & pl.col("data").is_not_null()
        other = alike & (pl.col("data") != prepared.plan.data.fingerprint)
        found = results.read_results(self.folder, ["name"], other)
        return found is not None and not found.is_empty()

    def stepper(self, prepared: Prepared, chunks: list[np.ndarray[Any, Any]]) -> Stepper:
        """Compile the step, if the eager one would take longer than that and training take together."""
        eager, plan = Stepper(prepared.plan), prepared.plan
        if self.options.compile is False:
            return eager
        seconds = COMPILING
        if self.options.compile == "auto":
            trial = Loop(plan, models(prepared, chunks[0]), eager)
            trial.attempt(1)
            started = time.perf_counter()
            trial.attempt(2)
            seconds = (time.perf_counter() - started) / 2 * plan.total * len(chunks)
        if self.options.compile == "auto" and seconds < COMPILING:
            return eager
        try:
            compiled = Stepper(plan, compiled=True)
            Loop(plan, models(prepared, chunks[0]), compiled).attempt(1)
        except Exception as error:  # of a compiler that is missing, or does not know an operation
            log.info("torch.compile failed", exc_info=True)
            note = f"not compiled  {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            self.notes += [note] * (note not in self.notes)
            return eager
        return compiled

    def train_chunk(
        self,
        prepared: Prepared,
        chosen: np.ndarray[Any, Any],
        stepper: Stepper,
        watched: tuple[int, ...],
        stop: StopOnSignal,
        state: dict[str, Any] | None = None,
        size: int | None = None,
    ) -> None:
        """Train some jobs of a group, and keep their results.

        Args:
            prepared: the group.
            chosen: which jobs.
            stepper: the step.
            watched: steps that `history` keeps.
            stop: tells of signals.
            state: of a checkpoint to go on from.
            size: that the chunk is padded to, since the step was compiled for it.
        """
        hashes = prepared.group.rows["config_hash"][chosen].to_list()
        padding = 0 if size is None else size - len(chosen)
        if state:
            padding = len(state["summary"]["best"]) - len(chosen)
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], padding)])
        loop = Loop(prepared.plan, models(prepared, padded), stepper, watched)
        if state:
            loop.load_state_dict(state)
        path = self.folder / CHECKPOINT.format(hashes[0])

        def after_step(step: int) -> None:
            self.progress(self.done, len(chosen), step, prepared.plan.total)
            due = time.monotonic() - self.saved > SAVE_EVERY
            if due or stop.signum:
                of_chunk = {"hashes": hashes, "data": prepared.plan.data.fingerprint, "watched": list(watched)}
                kept = of_chunk | {"loop": loop.state_dict()}
                with atomic.writing(path, atomic.ROOM_REMEDY) as part:
                    torch.save(kept, part)
                self.flush()
            if stop.signum:
                raise Interrupted(128 + stop.signum)

        stop.training = True  # a signal waits until the step is done
        try:
            loop.run(after_step)
            self.pending.append(rows_of(prepared, chosen, loop).with_columns(job_column(prepared, chosen)))
            if watched:
                self.watched.append(history_of(prepared, chosen, loop))
        finally:
            stop.training = False
        self.done += len(chosen)
        if time.monotonic() - self.saved > SAVE_EVERY or path.exists():
            self.flush()
        path.unlink(missing_ok=True)
        if stop.signum:
            raise Interrupted(128 + stop.signum)

    def flush(self) -> None:
        """Write the results that wait."""
        for waiting, name in ((self.pending, results.RESULTS), (self.watched, results.HISTORY)):
            if waiting:
                results.add(self.folder, pl.concat(waiting, how="diagonal_relaxed"), name)
                waiting.clear()
        self.saved = time.monotonic()

    def interrupted(
        self, prepared: Prepared, watched: tuple[int, ...]
    ) -> Iterator[tuple[np.ndarray[Any, Any], dict[str, Any]]]:
        """Yield the jobs of which an interrupted command has left a checkpoint, and its content."""
        position = {key: at for at, key in enumerate(prepared.group.rows["config_hash"])}
        for path in sorted(self.folder.glob(CHECKPOINT.format("*"))):
            try:
                kept = torch.load(path, weights_only=True, map_location=device_of(prepared.group.config))
                mine = all(key in position for key in kept["hashes"])
                if mine and (kept["data"], kept["watched"]) == (prepared.plan.data.fingerprint, list(watched)):
                    yield np.array([position[key] for key in kept["hashes"]]), kept["loop"]
                elif mine:
                    path.unlink()  # of other data, or without the history that is wanted now
            except Exception as error:  # a file cut in half raises anything
                log.warning("cannot read %s (%r); its jobs are trained from the start", path, error)
                path.unlink(missing_ok=True)

    def watched_steps(self, prepared: Prepared) -> tuple[int, ...]:
        """Return the steps that `history` keeps: the last, the first, and others evenly between them.

        Raises:
            UserError: if they would take more than the memory allowed.
        """
        count, plan = self.options.history, prepared.plan
        if not count:
            return ()
        numbers = 1 + sum(values[0].numel() for values in prepared.parameters.values())
        size = 8 * count * numbers * len(prepared.group.rows)
        if size > self.options.memory:
            raise UserError(
                f"hydra.launcher.history={count}: {len(prepared.group.rows):,} jobs would take {size >> 20:,} MB, more "
                f"than hydra.launcher.memory={self.options.memory >> 20}; keep fewer steps, or allow more memory"
            )
        return tuple(sorted(set(np.linspace(plan.total, 0, count).round().astype(int).tolist())))

    def fail(self, group: Group, message: str) -> None:
        """Note of jobs that share what is wrong that they have failed; under fail_fast of the first one alone."""
        if group.config["fail_fast"]:
            group = group.only(np.arange(1))
            (self.folder / STOP).touch()
        self.pending.append(failed_rows(group, message))
        self.done += len(group.rows)


def failed_rows(group: Group, message: str) -> pl.DataFrame:
    """Return rows of jobs that could not be trained."""
    jobs = len(group.rows)
    return pl.DataFrame({
        "name": group.rows["name"], "status": ["failed"] * jobs, "error": [message] * jobs,
        "config_hash": group.rows["config_hash"], "seconds": [0.0] * jobs,
        "job": struct({"overrides": overrides(group.rows), "group": group.rows["group"]}),
    })  # fmt: skip


def job_column(prepared: Prepared, chosen: np.ndarray[Any, Any]) -> pl.Series:
    """Return what the record of each job says of it for its sweep, see `job_fields`."""
    group = prepared.group.only(chosen)
    rows, constant = group.rows, job_fields(group.config, (), "", "-")
    lr = group.numbers("optimizer", ("lr",), {})["lr"].expand(len(rows)).numpy()
    fields = {name: pl.repeat(value, len(rows), eager=True) for name, value in constant.items() if name != "overrides"}
    fields |= {"lr": pl.Series(lr), "group": rows["group"], "problem": rows["problem"]}
    return struct({"overrides": overrides(rows), **fields}).alias("job")
