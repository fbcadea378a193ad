"""Jobs -> stacks -> what each job leaves."""

import hashlib
import json
import logging
import resource
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from linear_lab import UserError, files
from linear_lab.callbacks import Interrupted, StopOnSignal
from linear_lab.run import LAST, RESULT, HeldError, Run, as_json, is_held, versions
from linear_lab.stacked.drawing import Candidates
from linear_lab.stacked.leaving import Leaving, begin
from linear_lab.stacked.training import StackedRun, capacity, misshapen, prepare, shared_by, train_stack
from linear_lab.sweep import board
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.plan import of_job
from linear_lab.sweep.records import ENDED, ORDER, STACKS, read_record
from linear_lab.sweep.stacked_launcher import Job, tell
from linear_lab.sweep.stacking import stacks
from linear_lab.sweep.sweeper import STOP

LOG = "stacks.log"  # in the sweep's
SPARE = 256  # files that may be open beside the jobs' locks

log = logging.getLogger(__name__)


class Stacks:
    """Trains the jobs of a launch that fit together.

    Args:
        jobs: all of the launch.
        composer: which has composed them.
        limit: how many jobs a stack may have.
        memory: bytes that it may take.
        pictures: how many of the best jobs get pictures.
    """

    def __init__(self, jobs: list[Job], composer: Composer, limit: int, memory: int, pictures: int) -> None:
        self.jobs, self.composer, self.memory = jobs, composer, memory
        self.folder = jobs[0].folder.parent
        self.limit = min(limit, open_files() - SPARE)
        self.best = Candidates(pictures, jobs[0].config["mode"])
        self.done: dict[int, JobReturn] = {}
        self.alone: dict[int, str] = {}
        self.fresh: set[str] = set()  # keys of jobs that have not begun

    def train(self) -> None:
        """Train stack after stack; what is in none, or goes on from a checkpoint of its own, is left.

        Raises:
            Interrupted: at a signal, after the stack's checkpoint was saved.
        """
        begun = [position for position, job in enumerate(self.jobs) if has_begun(job.folder)]
        self.alone = dict.fromkeys(begun, "it goes on from its own checkpoint")
        fresh = [position for position in range(len(self.jobs)) if position not in self.alone]
        self.fresh = {self.key(position) for position in fresh}
        found, alone = stacks([self.jobs[position].config for position in fresh])
        self.alone |= {fresh[position]: reason for position, reason in alone.items()}
        try:
            with StopOnSignal() as stop:
                for positions in found:
                    self.train_kind([fresh[position] for position in positions], stop)
        except Interrupted:
            self.best.draw()  # those that go on later know nothing of these
            raise
        self.best.draw()

    def train_kind(self, positions: list[int], stop: StopOnSignal) -> None:
        """Train jobs that fit together, as many at once as may be; those first of which a stack was interrupted."""
        if (self.folder / STOP).exists():
            self.done |= {position: returned(None) for position in positions}
            return
        try:
            prepared = prepare(self.jobs[positions[0]].config, self.folder)
        except Exception as error:  # whatever a class of one's own raises
            if isinstance(error, UserError) and str(error).startswith("data"):  # else it may be of one job alone
                self.fail(positions, error)
            else:
                self.alone |= dict.fromkeys(positions, (str(error) or repr(error)).splitlines()[0])
            return
        size = min(self.limit, capacity(prepared[0], self.jobs[positions[0]].config, self.memory))
        if size <= 1:
            why = "hydra.launcher.memory" if self.limit > 1 else "hydra.launcher.jobs, or ulimit -n,"
            self.alone |= dict.fromkeys(positions, f"{why} leaves room for one model alone")
            return
        configs = [self.jobs[position].config for position in positions]
        wrong = shared_by(configs, ("model",), lambda config: misshapen(prepared[0], config["model"]))
        self.alone |= {position: text for position, text in zip(positions, wrong, strict=True) if text}
        by_key = {self.key(position): position for position in positions if position not in self.alone}
        chunks = [[by_key.pop(key) for key in keys] for keys in self.interrupted(by_key, size)]
        rest = list(by_key.values())
        chunks += [rest[first : first + size] for first in range(0, len(rest), size)]
        for chunk in chunks:
            try:
                self.train_chunk(chunk, prepared, stop)
            except Exception as error:  # each job alone says what is wrong with it
                if str(error).startswith("cannot write"):
                    raise
                log.warning("a stack of %d jobs could not be trained", len(chunk), exc_info=True)
                self.alone |= dict.fromkeys(chunk, f"its stack could not be trained: {error}".splitlines()[0])

    def key(self, position: int) -> str:
        """Name a job and its config."""
        job = self.jobs[position]
        return f"{job.folder.name} {job.hash}"

    def interrupted(self, keys: Collection[str], size: int) -> list[list[str]]:
        """Return the stacks that an interrupted command has left a checkpoint of.

        Others of these jobs, or of jobs that are none any more, are forgotten.
        """
        found = []
        for path in self.folder.glob(f"{STACKS}/*/{ORDER}"):
            order = json.loads(path.read_bytes())
            if (path.parent / LAST).exists() and len(order) <= size and all(key in keys for key in order):
                found.append(order)
            elif any(key in keys or key not in self.fresh for key in order) and not any(
                is_held(self.folder / key.partition(" ")[0]) for key in order
            ):
                shutil.rmtree(path.parent, ignore_errors=True)
        return found

    def train_chunk(self, positions: list[int], prepared: Any, stop: StopOnSignal) -> None:
        """Train one stack, holding the folders of its jobs."""
        with ExitStack() as held:
            runs: dict[int, StackedRun] = {}
            for position in positions:
                try:
                    if run := self.begin(position, held, prepared[2]):
                        runs[position] = run
                except HeldError:
                    self.done[position] = returned(None)
            if not runs:
                return
            running = {run.run.path / RESULT: as_json(run.run.record) for run in runs.values()}
            files.replace_all(running)
            board.write_sparingly(self.folder)
            own = self.own_folder([self.key(position) for position in runs])
            stack = list(runs.values())
            try:
                trained = train_stack(stack, prepared, own, stop, begin=begin, pictures=self.best.wanted > 0)
                stop.training = True  # a signal waits until all is written
                records = Leaving(stack, trained).write()
            except (KeyboardInterrupt, SystemExit):
                left = [run.run for run in stack if run.run.record["status"] == "running"]
                for one in left:
                    one.record["status"] = "interrupted"
                files.replace_all({one.path / RESULT: as_json(one.record) for one in left})
                raise
            except Exception:
                for each in stack:
                    if each.run.record["status"] == "running":
                        each.run.clear()
                shutil.rmtree(own, ignore_errors=True)
                raise
            finally:
                stop.training = False
            self.best.offer(stack, trained, records)
        shutil.rmtree(own, ignore_errors=True)
        for position, record in zip(runs, records, strict=True):
            value = record["metrics"].get(trained.metric) if record["status"] == "completed" else None
            self.done[position] = returned(value)
        if stop.signum:
            raise Interrupted(128 + stop.signum)

    def begin(self, position: int, held: ExitStack, metric: str | None = None) -> StackedRun | None:
        """Take a job's folder, and make room for its run; None if it has ended already.

        Args:
            position: the job's.
            held: keeps the folder.
            metric: what decides which weights are best, where the data have changed it.

        Raises:
            HeldError: if another process trains in it.
        """
        job = self.jobs[position]
        if is_held(job.folder):  # to try for its lock would take half a second
            raise HeldError(f"{job.folder}: another process trains in this folder")
        (job.folder / ".hydra").mkdir(parents=True, exist_ok=True)
        run = held.enter_context(Run(job.folder).lock())
        if run.record and run.record.get("config_hash") != job.hash:
            raise UserError(f"{job.folder.name}: another command has trained it with another config meanwhile")
        if run.record.get("status") in ENDED:
            ended = run.record["metrics"] if run.record["status"] == "completed" else {}
            self.done[position] = returned(ended.get(metric or job.config["metric"]))
            return None
        if run.record:
            run.clear()
        (job.folder / LAST).parent.mkdir(exist_ok=True)
        fields = {
            "seed": job.config["seed"],
            "config_hash": job.hash,
            "job": of_job(job.config, job.typed, self.composer.group(job.typed)),
        }
        run.record = {"status": "running", "error": None, "versions": versions(), **fields}
        typed = [*job.typed, *([f"metric={metric}"] if metric not in (None, job.config["metric"]) else [])]
        texts = self.composer.yaml(typed), self.composer.resolved_yaml(typed)
        return StackedRun(run, job.config, *texts, job.typed, self.composer.referring(typed), fields)

    def own_folder(self, names: list[str]) -> Path:
        """Make the stack's own folder, or find it again, by its jobs."""
        key = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
        folder = self.folder / STACKS / key
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / ORDER, json.dumps(names).encode())
        return folder

    def fail(self, positions: list[int], error: UserError) -> None:
        """Say of jobs that share what is wrong that they failed."""
        for position in positions:
            with ExitStack() as held:
                try:
                    run = self.begin(position, held)
                except HeldError:
                    continue
                if run:
                    tell(run.run.path, str(error))
                    run.run.write(status="failed", error=str(error), seconds=0.0)
                    self.done[position] = returned(error)
            if self.jobs[position].config["fail_fast"]:
                (self.folder / STOP).touch()
                self.done |= {other: returned(None) for other in positions if other not in self.done}
                return


def train_stacks(
    jobs: list[Job], composer: Composer, limit: int, memory: int, pictures: int
) -> tuple[dict[int, JobReturn], dict[int, str]]:
    """Train what can be stacked; what it returned, and why other jobs are left, by position."""
    trained = Stacks(jobs, composer, limit, memory, pictures)
    with in_log_alone(trained.folder / LOG):
        trained.train()
    return trained.done, trained.alone


@contextmanager
def in_log_alone(path: Path) -> Iterator[None]:
    """Have messages and warnings of the libraries go to a file, and nowhere else."""
    root, handler = logging.getLogger(), logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    others, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = others
        root.setLevel(level)
        handler.close()


def has_begun(folder: Path) -> bool:
    """Tell whether a job was trained alone, and interrupted; what a stack has left unfinished tells no start."""
    record = read_record(folder / RESULT)
    return (folder / LAST).exists() and "initial" in record and record["status"] not in ENDED


def returned(value: Any) -> JobReturn:
    """Return what Hydra wants of a job."""
    status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    return JobReturn(status=status, _return_value=value)


def open_files() -> int:
    """Let this process open as many files as the system allows; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(soft, hard)
