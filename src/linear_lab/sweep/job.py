"""Runs one job of a sweep, in the process of a launcher: skips it, resumes it, or trains it from the start."""

import functools
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from linear_lab import UserError
from linear_lab.config import as_dict, described, make_paths_absolute
from linear_lab.fitting.build import without_unread
from linear_lab.fitting.callbacks import Interrupted, StopIfHopeless
from linear_lab.fitting.run import train_in
from linear_lab.runs import atomic
from linear_lab.runs.checkpoints import NoCheckpointError, readable_checkpoint
from linear_lab.runs.fingerprints import config_hash
from linear_lab.runs.folder import LOG, HeldError, Run
from linear_lab.runs.log import log_to_file
from linear_lab.runs.record import ENDED
from linear_lab.sweep import STOP, board, results
from linear_lab.sweep.inventory import is_steering
from linear_lab.sweep.plan import group_hash, job_fields
from linear_lab.terminal import layout

log = logging.getLogger(__name__)


def train_job(cfg: DictConfig) -> float | None:
    """Train a job in its run folder, unless it has ended already or another process trains it.

    Returns the metric ``cfg.metric`` of the final model; None if the job was skipped, diverged, or was pruned.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if cfg.fail_fast and (folder.parent / STOP).exists():
        return None
    make_paths_absolute(cfg, hydra.runtime.cwd)
    in_pool = launcher() == "JoblibLauncher" and multiprocessing.parent_process() is not None
    if in_pool:
        end_with_parent()
    if in_pool and cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.device_count():
        if cfg.trainer.devices not in (1, [0]):
            raise UserError(
                f"trainer.devices={cfg.trainer.devices}: launch=joblib gives each job one GPU; try launch=local"
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = leased_gpu()
    run = Run(folder)
    try:
        with run.lock(), log_to_file(folder / LOG), console_in(folder / LOG) as console:
            return train_locked(cfg, run, console)
    except HeldError:
        return None
    except Interrupted:
        if in_pool:  # SystemExit would end the pool, and with it the other jobs
            raise UserError("interrupted") from None
        raise
    except BaseException:
        if cfg.fail_fast:
            atomic.replace(folder.parent / STOP, b"")
        raise
    finally:
        board.write_if_due(folder.parent)


def train_locked(cfg: DictConfig, run: Run, console: Console) -> float | None:
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    record, fingerprint, sweep = run.record, config_hash(config), run.path.parent
    if record.status and record.config_hash != fingerprint:
        raise UserError(f"{run.path.name}: meanwhile, another command has trained it with another config; try again")
    if record.status in ENDED:
        return record.metrics.get(cfg.metric) if record.status == "completed" else None
    retrains = launcher() == "StackedLauncher"  # which trains the best jobs of its stacks again, alone
    if not retrains and (results.is_stacking(sweep) or results.has_ended(sweep, run.path.name, fingerprint)):
        return None
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # as typed, without resolving references
    overrides = [item for item in typed if not is_steering(item)]
    if record.initial and can_resume(run):
        cfg.resume, overrides = str(run.path), []  # the run folder has the overrides already
        run.write()  # changes the file's stamp: if the process is killed, `Launches` knows that the job had begun
    else:
        run.clear()
        run.describe(described(cfg, overrides))
        with suppress(UserError):  # `train_in` raises the same error
            config = as_dict(without_unread(cfg))
        job = job_fields(config, overrides, group_hash(cfg))
        run.write(status="running", seed=cfg.seed, config_hash=fingerprint, job=job)
    board.write_if_due(sweep)
    callbacks = []
    if HydraConfig.get().sweeper.get("prune"):
        from linear_lab.sweep.search import prune_check  # imports Optuna

        callbacks.append(StopIfHopeless(cfg.metric, prune_check(sweep, run.path.name)))
    try:
        return train_in(run, cfg, overrides, console, callbacks)
    except Exception as error:
        if run.record.status == "diverged":
            return None  # a diverged job has ended, and is no failure of the sweep
        if run.record.status != "failed":  # a resumed run was refused before it began
            run.write(status="failed", error=str(error) if isinstance(error, UserError) else repr(error))
        raise


def launcher() -> str:
    """Return the class name of the launcher that runs this job."""
    return str(HydraConfig.get().launcher.get("_target_")).rpartition(".")[2]


def can_resume(run: Run) -> bool:
    """Return whether a run has a readable checkpoint; warn if it has checkpoints, but none can be read."""
    try:
        return readable_checkpoint(run, "last")[0] is not None
    except NoCheckpointError as error:
        log.warning("%s: %s; it is trained from the start", run.path.name, str(error).partition(";")[0])
        return False


@contextmanager
def console_in(path: Path) -> Iterator[Console]:
    """Yield a console that appends to a file; a job writes there what a single run prints on the terminal."""
    with open(path, "a", encoding="utf-8", opener=atomic.no_link) as file:
        yield layout.screen(file, 120)


@functools.cache  # starts one thread per process
def end_with_parent() -> None:
    """End this worker process when its parent process has ended, since its jobs would continue unnoticed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # the run saves a checkpoint and stops
        time.sleep(10)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache  # CUDA reads CUDA_VISIBLE_DEVICES once per process
def leased_gpu() -> str:
    """Lock a GPU that no other process of the pool has locked, and return its name; the lock ends with the process."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))  # names or numbers
    for name in visible.split(",")[:count]:
        lock = Path(tempfile.gettempdir(), f"linear_lab-{os.getuid()}-gpu{atomic.sanitized(name)}.lock")
        file = atomic.no_link(lock, os.O_RDWR | os.O_CREAT)
        if atomic.try_lock(file):
            return name
        os.close(file)
    raise UserError(f"launch=joblib: all {count} GPUs are in use; try hydra.launcher.n_jobs={max(count, 1)}")
