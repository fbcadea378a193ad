"""A search with Optuna: the study, its draws, and which jobs are hopeless."""

import json
import logging
import math
import random
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from linear_lab import UserError
from linear_lab.runs.atomic import no_link, refuse_link, try_lock
from linear_lab.text import first_line

DATABASE, LOCK = "search.db", "search.lock"  # in the sweep's folder
REPORTS = "reports.jsonl"  # in a job's folder: one line per validation, [step, value]
STUDY = "search"
DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
STARTUP = 5  # trials from which something is learned: where to draw, and what is hopeless
WARMUP = 5  # validations of a run before it is judged
DATABASE_TIMEOUT = 60  # seconds to wait for another process that writes the database
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another file, which SQLite deletes
Space = dict[str, BaseDistribution]  # by key

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """A study in ``<folder>/search.db``: draws trials, and learns from their results.

    The parameters of trial k are a function of the seed, of k, and of the results of the trials before its batch, so
    that a search that was killed and resumed draws the very trials of one that was not. A batch is as many trials as
    are asked for at once: other numbers of workers draw other trials. The draws are those of the tree-structured Parzen
    estimator (Bergstra et al., *Algorithms for hyper-parameter optimization*, NeurIPS 2011).

    ``fixed`` and ``searched`` are as `space` returns them. Another study in the folder, another process that searches
    there, and a database that cannot be used raise UserError.
    """

    def __init__(
        self, folder: Path, fixed: Sequence[str], searched: Space, *, metric: str, mode: str, trials: int, seed: int
    ) -> None:
        self.folder, self.searched, self.metric, self.mode = folder, searched, metric, mode
        self.trials, self.seed = trials, seed
        self.given_up: set[int] = set()  # trials that this process does not try again
        description = {"metric": metric, "mode": mode, "hydra.sweeper.seed": str(seed)}
        description |= {key: value for key, _, value in (override.partition("=") for override in fixed)}
        description |= {key: repr(searched[key]) for key in searched}
        with ExitStack() as resources:
            # released when the process ends, however it ends
            lock = resources.enter_context(open(folder / LOCK, "a", opener=no_link))
            if not try_lock(lock.fileno()):
                raise UserError(f"{folder}: another process searches here; wait until it ends, or choose another name=")
            with database_errors(folder, Exception):
                self.storage = open_storage(folder)
                resources.callback(self.storage.engine.dispose)
                self.study = optuna.create_study(
                    storage=self.storage, study_name=STUDY, direction=DIRECTIONS[mode], load_if_exists=True
                )
                if self.study.direction not in DIRECTIONS.values():
                    raise ValueError("it has no direction")
                if "description" not in self.study.user_attrs:  # new, or its process was killed here
                    self.study.set_user_attr("description", description)
                before = dict(self.study.user_attrs["description"])
            if changed := [key for key in before | description if before.get(key) != description.get(key)]:
                both = (before, description)
                then, now = (", ".join(f"{key}={values.get(key, '-')}" for key in changed) for values in both)
                remedy = "trials of different searches teach each other nothing, so choose another name="
                raise UserError(f"name={folder.name}: its search has {then}, and this command {now}; {remedy}")
            self.close = resources.pop_all().close  # lets other processes search here

    def ask(self, n: int = 1) -> list[tuple[int, list[str]]]:
        """Return the trials to run now, at most ``n``, as numbers and overrides; none when the search is done.

        Trials without a result come first: of a process that was killed, or failed in an earlier one. The same
        overrides can come more than once, if there are few.
        """
        with database_errors(self.folder):
            trials = read_trials(self.folder, self.study, self.searched)
            first = min((trial.number for trial in trials if self._is_open(trial)), default=len(trials)) // n * n
            for number in range(len(trials), min(first + n, self.trials)):
                params = draw(self.searched, self.mode, f"{self.seed}/{number}", trials[:first], trials[first:])
                trial = create_trial(
                    state=TrialState.RUNNING, params=params, distributions=self.searched, user_attrs={"batch": first}
                )
                self.study.add_trial(trial)  # in one write, so that a kill leaves no trial in part
                trials.append(trial)
            batch = self.study.get_trials(deepcopy=False)[first : min(first + n, self.trials)]
        return [(trial.number, as_overrides(self.searched, trial.params)) for trial in batch if self._is_open(trial)]

    def _is_open(self, trial: FrozenTrial) -> bool:
        return not trial.state.is_finished() and trial.number not in self.given_up

    def name(self, number: int, job: str) -> None:
        """Note in which folder trial ``number`` runs, so that `prune_check` finds it there."""
        with database_errors(self.folder):
            self._note(number, "job", job)

    def _note(self, number: int, key: str, value: Any) -> None:
        study = self.storage.get_study_id_from_name(STUDY)
        trial = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        self.storage.set_trial_user_attr(trial, key, value)

    def tell(self, number: int, record: Mapping[str, Any]) -> None:
        """Learn from a trial's record, as in result.json; a trial that was told already stays as it is.

        One that diverged counts as the worst there is, one that was pruned by the last validation. One without a
        result keeps its number and its parameters, and the next process runs it again.
        """
        status = record["status"]
        if status not in ("completed", "diverged", "pruned"):
            self.given_up.add(number)
            return
        with database_errors(self.folder):
            trial = self.study.get_trials(deepcopy=False)[number]
            if trial.state.is_finished():
                return
            if "job" in trial.user_attrs:
                reports = read_reports(self.folder / trial.user_attrs["job"])
                self._note(number, "reports", [[step, value] for step, value in reports.items()])
            if status == "pruned":
                self.study.tell(number, state=TrialState.PRUNED)
                return
            value = record["metrics"].get(self.metric) if status == "completed" else None
            worst = math.inf if self.mode == "min" else -math.inf
            self.study.tell(number, worst if value is None or not math.isfinite(value) else value)


def draw(
    searched: Space, mode: str, seed: str, before: Iterable[FrozenTrial], beside: Iterable[FrozenTrial] = ()
) -> dict[str, Any]:
    """Draw a trial's parameters: from the finished trials ``before`` it, and away from those ``beside`` it.

    The first `STARTUP` trials are uniform draws.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP, constant_liar=True, seed=random.Random(seed).getrandbits(32)
        )
        study = optuna.create_study(direction=DIRECTIONS[mode], sampler=sampler)
        study.add_trials(with_reports(trial) for trial in before if trial.state.is_finished())
        study.add_trials(
            create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
            for trial in beside
        )
        return study.ask({key: searched[key] for key in sorted(searched)}).params


def as_overrides(searched: Space, params: Mapping[str, Any] | None = None) -> list[str]:
    """Write a trial's parameters as overrides; without parameters, those of an example."""
    params = draw(searched, "min", "", ()) if params is None else params
    return [f"{key}={written(params[key])}" for key in searched]


def prune_check(folder: Path, job: str) -> Callable[[int, float], bool]:
    """Return what tells, after each validation of a job, whether to stop it: ``hopeless(step, value)``.

    A job is hopeless if the best it has measured is worse than the median, at the same step, of the trials that
    completed before its batch; so the answer depends on no other process, nor on whether the job was killed and
    resumed. `STARTUP` trials have to have measured at that step, and the job `WARMUP` times. What it measures is kept
    in its own folder: the database is only read, and only here.
    """
    study = optuna.create_study()
    if (folder / DATABASE).exists():
        with database_errors(folder, Exception):
            storage = open_storage(folder)
            search = optuna.load_study(study_name=STUDY, storage=storage)
            trials, direction = read_trials(folder, search), search.direction
            storage.engine.dispose()
        study = optuna.create_study(direction=direction)
        batch = max((trial.user_attrs["batch"] for trial in trials if trial.user_attrs.get("job") == job), default=0)
        study.add_trials([with_reports(trial) for trial in trials[:batch] if trial.state.is_finished()])
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_min_trials=STARTUP)
    reports = read_reports(folder / job)

    def hopeless(step: int, value: float) -> bool:
        if not math.isfinite(value):
            return False
        with open(folder / job / REPORTS, "a", opener=no_link) as file:
            file.write(f"\n{json.dumps([step, value])}")  # a killed process may have left half of a line before it
        report(reports, step, value)
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=reports)
        return len(reports) > WARMUP and pruner.prune(study, trial)

    return hopeless


def read_reports(job: Path) -> dict[int, float]:
    """Read what a job has measured at which step; a line that is no report, as of a killed process, is left out."""
    reports: dict[int, float] = {}
    for line in (job / REPORTS).read_bytes().splitlines() if (job / REPORTS).is_file() else ():
        with suppress(ValueError, TypeError, OverflowError, RecursionError):
            report(reports, *json.loads(line))
    return reports


def report(reports: dict[int, float], step: int, value: float) -> None:
    """Note a value, and drop those of later steps: a run that is resumed from a checkpoint measures them again."""
    step, value = int(step), float(value)
    for later in [other for other in reports if other >= step]:
        del reports[later]
    reports[step] = value


def read_trials(folder: Path, study: optuna.Study, searched: Space | None = None) -> list[FrozenTrial]:
    """Read the trials, all of the space ``searched``: others may have written values, which are typed as overrides."""
    with database_errors(folder, Exception):
        trials = study.get_trials(deepcopy=False)
        for number, trial in enumerate(trials):
            params = with_reports(trial).params  # raises for a value outside of its space
            spaces, is_text = trial.distributions, [isinstance(value, str) for value in params.values()]
            is_category = [isinstance(spaces[key], CategoricalDistribution) for key in params]
            known = (trial.number, type(trial.user_attrs["batch"])) == (number, int) and is_text == is_category
            if not known or searched not in (None, spaces) or trial.state == TrialState.WAITING:
                raise ValueError(f"trial {number} is of another search")
        return trials


def with_reports(trial: FrozenTrial) -> FrozenTrial:
    """Return a finished trial with what it has measured on the way."""
    reports = {int(step): float(value) for step, value in trial.user_attrs.get("reports", [])}
    options: Any = {"params": trial.params, "distributions": trial.distributions, "intermediate_values": reports}
    return create_trial(state=trial.state, value=trial.value, **options)


def written(value: object) -> str:
    """Write a parameter as an override that is read back as the same value; categories are written so already."""
    return value if isinstance(value, str) else repr(value)


def open_storage(folder: Path) -> optuna.storages.RDBStorage:
    """Open the sweep's database, or make it. A connection of our own takes any path; an SQLite URL does not."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    path = folder / DATABASE
    for suffix in ("", "-journal", "-wal", "-shm"):  # files that SQLite writes
        refuse_link(folder / f"{DATABASE}{suffix}")
    if (journal := folder / f"{DATABASE}-journal").is_file() and journal.read_bytes().endswith(SUPER_JOURNAL):
        raise UserError(f"{journal}: it has SQLite delete another file; delete it")
    connect = {"creator": lambda: sqlite3.connect(path, timeout=DATABASE_TIMEOUT, check_same_thread=False)}
    return optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs=connect)


@contextmanager
def database_errors(folder: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Say in one line what is wrong with the database, and how to mend it; any error is of it while it is read."""
    kinds = kinds or (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error)
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        cause = first_line(error.__cause__ or error)
        remedy = "make room if the disk is full, else delete it: the same command fills it again from the jobs' results"
        raise UserError(f"{folder / DATABASE}: it cannot be used ({cause}); {remedy}") from error
