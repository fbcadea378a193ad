"""A search: the trials that Optuna draws, what it remembers of them, and which of them are hopeless."""

import json
import math
import random
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linear_lab import UserError
from linear_lab.runs.atomic import taken
from linear_lab.sweep.space import load_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

DATABASE, LOCK = "search.db", "search.lock"  # in the sweep's folder
REPORTS = "reports.jsonl"  # in a job's folder: a line each validation, [step, value]
STUDY = "search"
DIRECTIONS = {"min": "minimize", "max": "maximize"}
STARTUP = 5  # trials from which something is learned: where to draw, and what is hopeless
WARMUP = 5  # validations of a run before it is judged
PATIENCE = 60  # seconds to wait for another process that writes the database


class Search:
    """A study in ``<folder>/search.db``: draws trials, and learns from their results.

    The parameters of trial k are a function of the seed, of k, and of the results of the trials before its batch, so
    that a search that was killed and goes on draws the very trials of one that was not. A batch is as many trials as
    are asked at once: other numbers of workers draw other trials. The draws are those of the tree-structured Parzen
    estimator (Bergstra et al., *Algorithms for hyper-parameter optimization*, NeurIPS 2011).

    Args:
        folder: of the sweep.
        fixed: overrides that all trials share.
        searched: a distribution for each key that is searched; both as `space` returns them.
        metric: what is compared, one of a record's metrics.
        mode: ``min`` or ``max``.
        trials: how many the study shall have in the end.
        seed: of the draws.

    Raises:
        UserError: if the study in the folder is another one, another process searches there, or the database cannot
            be used; so do the methods for the last.
    """

    def __init__(
        self,
        folder: Path,
        fixed: Sequence[str],
        searched: "Mapping[str, BaseDistribution]",
        *,
        metric: str,
        mode: str,
        trials: int,
        seed: int,
    ) -> None:
        optuna = load_optuna()
        self.folder, self.searched, self.metric, self.mode = folder, searched, metric, mode
        self.trials, self.seed = trials, seed
        self.left: set[int] = set()  # trials that this process does not try again
        asked = {"metric": metric, "mode": mode, "hydra.sweeper.seed": str(seed)}
        asked |= {key: value for key, _, value in (override.partition("=") for override in fixed)}
        asked |= {key: repr(searched[key]) for key in searched}
        self.lock = (folder / LOCK).open("w")  # the kernel frees it when the process ends, however it ends
        try:
            if not taken(self.lock.fileno()):
                raise UserError(f"{folder}: another process searches here; wait until it ends, or choose another name=")
            with mendable(folder):
                self.storage = open_storage(folder)
                self.study = optuna.create_study(
                    storage=self.storage, study_name=STUDY, direction=DIRECTIONS[mode], load_if_exists=True
                )
                before = self.study.user_attrs.get("asked")
                if before is None:  # new, or its process was killed here
                    self.study.set_user_attr("asked", asked)
                    before = asked
            if changed := [key for key in before | asked if before.get(key) != asked.get(key)]:
                then, now = (", ".join(f"{key}={it.get(key, '-')}" for key in changed) for it in (before, asked))
                raise UserError(
                    f"name={folder.name}: its search has {then}, and this command {now}; "
                    "trials of different searches teach each other nothing, so choose another name="
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes search here."""
        if hasattr(self, "storage"):
            self.storage.engine.dispose()
        self.lock.close()

    def ask(self, n: int = 1) -> list[tuple[int, list[str]]]:
        """Return the trials to run now, at most ``n``, as numbers and overrides; none when the search is done.

        Trials without a result come first: of a process that was killed, or failed in an earlier one. The same
        overrides can come more than once, if there are few.
        """
        optuna = load_optuna()
        with mendable(self.folder):
            trials = self.study.get_trials(deepcopy=False)
            first = min((trial.number for trial in trials if self.is_open(trial)), default=len(trials)) // n * n
            for number in range(len(trials), min(first + n, self.trials)):
                trial = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING,
                    params=draw(self.searched, self.mode, f"{self.seed}/{number}", trials[:first], trials[first:]),
                    distributions=self.searched,
                    user_attrs={"batch": first},
                )
                self.study.add_trial(trial)  # at once: none is ever there in part
                trials.append(trial)
            batch = self.study.get_trials(deepcopy=False)[first : min(first + n, self.trials)]
        return [(trial.number, overrides(self.searched, trial.params)) for trial in batch if self.is_open(trial)]

    def is_open(self, trial: "FrozenTrial") -> bool:
        """Tell whether a trial is to be run by this process."""
        return not trial.state.is_finished() and trial.number not in self.left

    def name(self, number: int, job: str) -> None:
        """Note in which folder trial ``number`` runs, so that `prune_check` finds it there."""
        with mendable(self.folder):
            self.note(number, "job", job)

    def note(self, number: int, key: str, value: Any) -> None:
        """Keep a value with a trial."""
        study = self.storage.get_study_id_from_name(STUDY)
        self.storage.set_trial_user_attr(
            self.storage.get_trial_id_from_study_id_trial_number(study, number), key, value
        )

    def tell(self, number: int, record: Mapping[str, Any]) -> None:
        """Learn from a trial's record, as in result.json; a trial that was told already stays as it is.

        One that diverged counts as the worst there is, one that was pruned by the last validation. One without a
        result keeps its number and its parameters, and is asked again by the next process.
        """
        states = load_optuna().trial.TrialState
        status = record["status"]
        worst = math.inf if self.mode == "min" else -math.inf
        if status not in ("completed", "diverged", "pruned"):
            self.left.add(number)
            return
        with mendable(self.folder):
            trial = self.study.get_trials(deepcopy=False)[number]
            if trial.state.is_finished():
                return
            if "job" in trial.user_attrs:
                reports = read_reports(self.folder / trial.user_attrs["job"])
                self.note(number, "reports", [[step, value] for step, value in reports.items()])
            if status == "pruned":
                self.study.tell(number, state=states.PRUNED)
                return
            value = record["metrics"].get(self.metric) if status == "completed" else None
            self.study.tell(number, worst if value is None or not math.isfinite(value) else value)


def draw(
    searched: "Mapping[str, BaseDistribution]",
    mode: str,
    seed: str,
    before: "Iterable[FrozenTrial]",
    beside: "Iterable[FrozenTrial]" = (),
) -> dict[str, Any]:
    """Draw a trial's parameters: from the finished trials ``before`` it, and away from those ``beside`` it.

    The first `STARTUP` trials are uniform draws.
    """
    optuna = load_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP, constant_liar=True, seed=random.Random(seed).getrandbits(32)
        )
        study = optuna.create_study(direction=DIRECTIONS[mode], sampler=sampler)
        study.add_trials(with_reports(trial) for trial in before if trial.state.is_finished())
        study.add_trials(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=trial.params, distributions=trial.distributions
            )
            for trial in beside
        )
        params: dict[str, Any] = study.ask({key: searched[key] for key in sorted(searched)}).params
    return params


def overrides(searched: "Mapping[str, BaseDistribution]", params: Mapping[str, Any]) -> list[str]:
    """Write a trial's parameters as overrides."""
    return [f"{key}={written(params[key])}" for key in searched]


def example(searched: "Mapping[str, BaseDistribution]") -> list[str]:
    """Give overrides as a trial may have them."""
    return overrides(searched, draw(searched, "min", "", ()))


def prune_check(folder: Path, job: str) -> Callable[[int, float], bool]:
    """Return what tells, after each validation of a job, whether to stop it: ``hopeless(step, value)``.

    A job is hopeless if the best it has measured is worse than the median, at the same step, of the trials that
    completed before its batch; so the answer depends on no other process, nor on whether the job was killed and goes
    on. `STARTUP` trials have to have measured at that step, and the job `WARMUP` times. What it measures is kept in
    its own folder: the database is only read, and only here.

    Args:
        folder: of the sweep.
        job: name of the job's folder.
    """
    optuna = load_optuna()
    study = optuna.create_study(direction=DIRECTIONS["min"])
    if (folder / DATABASE).exists():
        with mendable(folder):
            storage = open_storage(folder)
            known = optuna.load_study(study_name=STUDY, storage=storage)
            trials, direction = known.get_trials(deepcopy=False), known.direction
            storage.engine.dispose()
        study = optuna.create_study(direction=direction)
        batch = max((trial.user_attrs["batch"] for trial in trials if trial.user_attrs.get("job") == job), default=0)
        study.add_trials([with_reports(trial) for trial in trials[:batch] if trial.state.is_finished()])
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_min_trials=STARTUP)
    reports = read_reports(folder / job)

    def hopeless(step: int, value: float) -> bool:
        if not math.isfinite(value):
            return False
        with (folder / job / REPORTS).open("a") as file:
            file.write(f"\n{json.dumps([step, value])}")  # on a line of its own, whatever a killed process has left
        report(reports, step, value)
        trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=reports)
        return len(reports) > WARMUP and bool(pruner.prune(study, trial))

    return hopeless


def read_reports(job: Path) -> dict[int, float]:
    """Read what a job has measured at which step; a line that a killed process has not finished is left out."""
    reports: dict[int, float] = {}
    lines = (job / REPORTS).read_text().splitlines() if (job / REPORTS).exists() else []
    for line in lines:
        with suppress(ValueError, TypeError):
            report(reports, *json.loads(line))
    return reports


def report(reports: dict[int, float], step: int, value: float) -> None:
    """Note a value, and forget what came later: a run that goes on from a checkpoint measures that again."""
    for later in [known for known in reports if known >= step]:
        del reports[later]
    reports[step] = value


def with_reports(trial: "FrozenTrial") -> "FrozenTrial":
    """Return a finished trial with what it has measured on the way."""
    create: Callable[..., FrozenTrial] = load_optuna().trial.create_trial
    return create(
        state=trial.state,
        value=trial.value,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=dict(trial.user_attrs.get("reports", [])),
    )


def written(value: object) -> str:
    """Write a parameter as an override has it; read back it is the same. Categories are written so already."""
    return value if isinstance(value, str) else repr(value)


def open_storage(folder: Path) -> "RDBStorage":
    """Open the sweep's database, whatever its folder is called; make it if there is none."""
    return load_optuna().storages.RDBStorage(  # type: ignore[no-any-return]
        f"sqlite:///{DATABASE}",
        engine_kwargs={
            "creator": lambda: sqlite3.connect(folder / DATABASE, timeout=PATIENCE, check_same_thread=False)
        },
    )


@contextmanager
def mendable(folder: Path) -> Iterator[None]:
    """Say in one line what is wrong with the database, and how to mend it."""
    exceptions = load_optuna().exceptions
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"{folder / DATABASE}: it cannot be used ({cause}); make room if the disk is full, else delete it: "
            "the same command fills it again from the jobs' results"
        ) from error
