"""A search with Optuna: its study, the draws of trials, and the pruning of jobs."""

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
STARTUP = 5  # trials before the sampler and the pruner use results
WARMUP = 5  # validations of a job before it can be pruned
DATABASE_TIMEOUT = 60  # seconds to wait for another process that writes the database
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # at the end of a journal that makes SQLite delete the file it names
Space = dict[str, BaseDistribution]  # the distribution of each searched key

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """An Optuna study in ``<folder>/search.db`` that draws trials and learns from their results.

    The parameters of trial k depend only on the seed, on k, and on the results of the trials before its batch. So a
    search that was killed and resumed draws the same trials as one that was not. A batch is the trials that one call of
    `ask` requests, so another number of workers draws other trials. Trials are drawn by the tree-structured Parzen
    estimator (Bergstra et al., *Algorithms for hyper-parameter optimization*, NeurIPS 2011).

    ``fixed`` and ``searched`` are those that `space` returns. Raises UserError if the folder holds another study,
    another process searches in it, or the database cannot be used.
    """

    def __init__(
        self, folder: Path, fixed: Sequence[str], searched: Space, *, metric: str, mode: str, trials: int, seed: int
    ) -> None:
        self.folder, self.searched, self.metric, self.mode = folder, searched, metric, mode
        self.trials, self.seed = trials, seed
        self.given_up: set[int] = set()  # trials that this process does not run again
        description = {"metric": metric, "mode": mode, "hydra.sweeper.seed": str(seed)}
        description |= {key: value for key, _, value in (override.partition("=") for override in fixed)}
        description |= {key: repr(searched[key]) for key in searched}
        with ExitStack() as resources:
            # the kernel frees the lock when the process ends
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
                if "description" not in self.study.user_attrs:  # new, or the process was killed before this line
                    self.study.set_user_attr("description", description)
                before = dict(self.study.user_attrs["description"])
            if changed := [key for key in before | description if before.get(key) != description.get(key)]:
                both = (before, description)
                then, now = (", ".join(f"{key}={values.get(key, '-')}" for key in changed) for values in both)
                remedy = "choose another name= for another search"
                raise UserError(f"name={folder.name}: its search has {then}, but this command has {now}; {remedy}")
            self.close = resources.pop_all().close  # frees the lock and the database

    def ask(self, n: int = 1) -> list[tuple[int, list[str]]]:
        """Return at most ``n`` trials to run now, as numbers and overrides; an empty list when the search is done.

        Trials that have no result come first: those of a killed process, and those that failed in an earlier one. Two
        trials can have the same overrides.
        """
        with database_errors(self.folder):
            trials = read_trials(self.folder, self.study, self.searched)
            first = min((trial.number for trial in trials if self._is_open(trial)), default=len(trials)) // n * n
            for number in range(len(trials), min(first + n, self.trials)):
                params = draw(self.searched, self.mode, f"{self.seed}/{number}", trials[:first], trials[first:])
                trial = create_trial(
                    state=TrialState.RUNNING, params=params, distributions=self.searched, user_attrs={"batch": first}
                )
                self.study.add_trial(trial)  # one transaction, so a kill leaves no incomplete trial
                trials.append(trial)
            batch = self.study.get_trials(deepcopy=False)[first : min(first + n, self.trials)]
        return [(trial.number, as_overrides(self.searched, trial.params)) for trial in batch if self._is_open(trial)]

    def _is_open(self, trial: FrozenTrial) -> bool:
        return not trial.state.is_finished() and trial.number not in self.given_up

    def name(self, number: int, job: str) -> None:
        """Store the name of the job that runs trial ``number``, by which `prune_check` finds the trial."""
        with database_errors(self.folder):
            self._note(number, "job", job)

    def _note(self, number: int, key: str, value: Any) -> None:
        study = self.storage.get_study_id_from_name(STUDY)
        trial = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        self.storage.set_trial_user_attr(trial, key, value)

    def tell(self, number: int, record: Mapping[str, Any]) -> None:
        """Store the result of a trial, given as ``status`` and ``metrics``; a trial that has a result is not changed.

        A diverged trial gets the value infinity, or minus infinity if the mode is max. A pruned trial is judged by its
        last validation. Any other trial without a result keeps its parameters, and the next process runs it again.
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
    """Draw the parameters of a trial, given the finished trials ``before`` it and the running ones ``beside`` it.

    The sampler draws away from the running ones. The first `STARTUP` trials are uniform draws.
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
    """Return the parameters of a trial, by default those of an example, as overrides."""
    params = draw(searched, "min", "", ()) if params is None else params
    return [f"{key}={as_text(params[key])}" for key in searched]


def prune_check(folder: Path, job: str) -> Callable[[int, float], bool]:
    """Return the function ``hopeless(step, value)``, which says after each validation whether to stop a job.

    A job is hopeless if its best value so far is worse than the median, at the same step, of the trials that completed
    before its batch. At least `STARTUP` trials must have a value at that step, and the job more than `WARMUP` values.
    The answer is the same when other processes run at other speeds, and when the job is killed and resumed: its values
    are stored in its own folder, and the database is read only once, before the job starts.
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
            file.write(f"\n{json.dumps([step, value])}")  # \n first: a killed process may have left half a line
        report(reports, step, value)
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=reports)
        return len(reports) > WARMUP and pruner.prune(study, trial)

    return hopeless


def read_reports(job: Path) -> dict[int, float]:
    """Read the values that a job has measured, by step; skip invalid lines, which a killed process may leave."""
    reports: dict[int, float] = {}
    for line in (job / REPORTS).read_bytes().splitlines() if (job / REPORTS).is_file() else ():
        with suppress(ValueError, TypeError, OverflowError, RecursionError):
            report(reports, *json.loads(line))
    return reports


def report(reports: dict[int, float], step: int, value: float) -> None:
    """Add a value, and drop those of later steps: a run that is resumed from a checkpoint measures them again."""
    step, value = int(step), float(value)
    for later in [other for other in reports if other >= step]:
        del reports[later]
    reports[step] = value


def read_trials(folder: Path, study: optuna.Study, searched: Space | None = None) -> list[FrozenTrial]:
    """Read the trials; raise UserError for one outside of ``searched``, as in the database of another search."""
    with database_errors(folder, Exception):
        trials = study.get_trials(deepcopy=False)
        for number, trial in enumerate(trials):
            params = with_reports(trial).params  # raises for a value outside of its distribution
            spaces, is_text = trial.distributions, [isinstance(value, str) for value in params.values()]
            is_category = [isinstance(spaces[key], CategoricalDistribution) for key in params]
            valid = (trial.number, type(trial.user_attrs["batch"])) == (number, int) and is_text == is_category
            if not valid or searched not in (None, spaces) or trial.state == TrialState.WAITING:
                raise ValueError(f"trial {number} belongs to another search")
        return trials


def with_reports(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a finished trial that includes the values measured while it trained."""
    reports = {int(step): float(value) for step, value in trial.user_attrs.get("reports", [])}
    options: Any = {"params": trial.params, "distributions": trial.distributions, "intermediate_values": reports}
    return create_trial(state=trial.state, value=trial.value, **options)


def as_text(value: object) -> str:
    """Return the text of a parameter, which Hydra reads back as the same value; categories are such texts already."""
    return value if isinstance(value, str) else repr(value)


def open_storage(folder: Path) -> optuna.storages.RDBStorage:
    """Open or create the sweep's database. The path is passed by a ``creator``, since URLs do not accept every path."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    path = folder / DATABASE
    for suffix in ("", "-journal", "-wal", "-shm"):  # files that SQLite writes
        refuse_link(folder / f"{DATABASE}{suffix}")
    if (journal := folder / f"{DATABASE}-journal").is_file() and journal.read_bytes().endswith(SUPER_JOURNAL):
        raise UserError(f"{journal}: it would make SQLite delete another file; delete the journal")
    connect = {"creator": lambda: sqlite3.connect(path, timeout=DATABASE_TIMEOUT, check_same_thread=False)}
    return optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs=connect)


@contextmanager
def database_errors(folder: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Convert errors of the database, or those of the given ``kinds``, to UserError."""
    kinds = kinds or (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error)
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        cause = first_line(error.__cause__ or error)
        remedy = "if the disk is full, make room; else delete it, and the same command restores it from the results"
        raise UserError(f"{folder / DATABASE}: it cannot be used ({cause}); {remedy}") from error
