"""Builds the loggers of a run, ends them with it, and turns their errors into warnings."""

import fcntl
import functools
import hashlib
import logging
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from linear_lab import UserError
from linear_lab.overrides import takes
from linear_lab.runs.atomic import no_link
from linear_lab.runs.folder import Run
from linear_lab.text import first_line
from linear_lab.tracking.tensorboard import RunLogger

log = logging.getLogger(__name__)


def build_loggers(cfg: DictConfig, run: Run, purge_step: int | None, at_the_end: ExitStack) -> list[Logger]:
    """Build the loggers, and have ``at_the_end`` end them; `RunLogger` drops events from ``purge_step`` on."""
    loggers: list[Logger] = []
    specs: Any = cfg.logger or {}
    for name, spec in ({"tensorboard": specs} if "_target_" in specs else specs).items():  # older runs have one logger
        if not spec:
            continue
        try:
            logger = instantiate(spec, **run_arguments(spec, run, purge_step), _convert_="all")
            if not isinstance(logger, Logger):
                raise TypeError(f"{spec} is not a logger; see conf/logger for examples")
            getattr(logger, "experiment", None)  # a logger that cannot be opened raises here, not during the run
        except Exception as error:  # from any package; Hydra wraps it
            raise UserError(f"logger.{name}: {first_line(error.__cause__ or error)}") from error
        at_the_end.callback(logger.close if isinstance(logger, RunLogger) else guard(name, logger, run))
        loggers.append(logger)
    return loggers


def run_arguments(spec: Any, run: Run, purge_step: int | None) -> dict[str, Any]:
    """Return the arguments that a run sets for a logger, unless its spec sets them."""
    target = str(getattr(spec, "_target_", None))
    kind = target.rpartition(".")[2]
    arguments: dict[str, Any] = {"save_dir": str(run.path)}
    if kind == "RunLogger":
        return arguments | {"purge_step": purge_step}
    if kind in ("WandbLogger", "MLFlowLogger"):
        run.write(token=run.record.token or secrets.token_hex(16))
        # hashed, so that a folder from elsewhere cannot name an existing run
        key = hashlib.sha256(str(run.record.token).encode(errors="replace")).hexdigest()[:16]
        wandb = kind == "WandbLogger"
        arguments |= {"name": run.path.name, "id": key} if wandb else mlflow_run(spec, run, key)
    arguments = {key: value for key, value in arguments.items() if takes(target, key) and spec.get(key) is None}
    if kind == "CSVLogger" and purge_step is not None:  # otherwise it deletes what earlier sessions have written
        arguments["version"] = None
    return arguments


def mlflow_run(spec: DictConfig, run: Run, key: str) -> dict[str, Any]:
    """Return arguments that name the run with this key in MLflow's store, or a new run if there is none."""
    from mlflow import MlflowClient

    with open(run.path.parent / ".mlflow.lock", "a", opener=no_link) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one of the jobs that start together makes the database
        client, name = MlflowClient(spec.tracking_uri), spec.experiment_name
        stored = client.get_experiment_by_name(name)
        experiment = stored.experiment_id if stored else client.create_experiment(name, spec.get("artifact_location"))
    for old in client.search_runs([experiment], f"tags.`linear_lab.run` = '{key}'"):
        client.update_run(old.info.run_id, "RUNNING")
        return {"run_name": run.path.name, "run_id": old.info.run_id}
    return {"run_name": run.path.name, "tags": {"linear_lab.run": key}}


def guard(name: str, logger: Logger, run: Run) -> Callable[[], None]:
    """Turn the first error of a logger into a warning, and ignore others. Return a function that ends the logger."""
    errors: list[Exception] = []

    def attempt(method: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        try:
            method(*arguments, **named)
        except Exception as error:  # from any package
            if not errors:
                what = f"{method.__name__} failed ({type(error).__name__}: {first_line(error)})"
                log.warning("logger.%s: %s; the run goes on", name, what)
            errors.append(error)

    def end() -> None:
        ended = run.record.status in ("completed", "pruned")
        attempt(finalize, "success" if ended else "failed")
        if isinstance(logger, WandbLogger):  # otherwise the next run of this process logs into it
            attempt(logger.experiment.finish, int(not ended))

    finalize = logger.finalize
    for method in ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint"):
        setattr(logger, method, functools.partial(attempt, getattr(logger, method)))
    setattr(logger, "finalize", lambda _: logger.save())  # noqa: B010 - Lightning calls it after validate too
    return end
