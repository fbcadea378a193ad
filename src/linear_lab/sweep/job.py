"""One job of a sweep, in whichever process: skipped, gone on with, or trained."""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from linear_lab import UserError
from linear_lab.fitting.callbacks import Interrupted, StopIfHopeless
from linear_lab.fitting.run import train_in
from linear_lab.runs.checkpoints import LostError, readable_checkpoint
from linear_lab.runs.fingerprints import config_hash
from linear_lab.runs.folder import HeldError, Run, versions
from linear_lab.sweep import board, results
from linear_lab.sweep.composer import absolute_paths
from linear_lab.sweep.inventory import ENDED, is_steering
from linear_lab.sweep.plan import group_hash, job_fields
from linear_lab.sweep.sweeper import STOP
from linear_lab.sweep.workers import leased_gpu

log = logging.getLogger(__name__)


def train_job(cfg: DictConfig) -> float | None:
    """Train a job in its folder unless it has ended already; what another process trains is left to that.

    Returns:
        The final model's ``cfg.metric``; None for a job that was left out, diverged, or was pruned.

    Raises:
        Exception: what made it fail; the record says so too.
        Interrupted: at a signal, after last.ckpt was saved.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if cfg.fail_fast and (folder.parent / STOP).exists():
        return None
    absolute_paths(cfg, hydra.runtime.cwd)
    in_worker = multiprocessing.current_process().name.startswith("LokyProcess")
    if in_worker and cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.device_count():
        if cfg.trainer.devices not in (1, [0]):
            raise UserError(
                f"trainer.devices={cfg.trainer.devices}: launch=joblib gives each job one GPU; try launch=local"
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = leased_gpu()
    run = Run(folder)
    try:
        with in_log_alone() as screen, run.lock():
            typed: Any = OmegaConf.to_container(hydra.overrides.task)  # not what references in it stand for
            return train_held(cfg, run, typed, screen)
    except HeldError:
        return None
    except Interrupted:
        if in_worker:  # an exit would take the pool with it
            raise UserError("interrupted") from None
        raise
    except BaseException:
        if cfg.fail_fast:
            (folder.parent / STOP).touch()
        raise
    finally:
        board.write_sparingly(folder.parent)


def train_held(cfg: DictConfig, run: Run, typed: list[str], screen: Console) -> float | None:
    """Train a job whose folder this process holds."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    record, fingerprint = run.record, config_hash(config)
    if record and record.get("config_hash") != fingerprint:
        raise UserError(f"{run.path.name}: another command has trained it with another config meanwhile")
    if record.get("status") in ENDED:
        return record["metrics"].get(cfg.metric) if record["status"] == "completed" else None
    if not str(HydraConfig.get().launcher.get("_target_")).endswith("StackedLauncher"):  # it trains its best ones alone
        sweep, name = run.path.parent, run.path.name
        if results.is_stacking(sweep) or results.has_ended(sweep, name, fingerprint):
            return None
    overrides = [item for item in typed if not is_steering(item)]
    if "initial" in record and can_go_on(run):
        cfg.resume, overrides = str(run.path), []  # it has them already
    else:
        run.clear()
        run.write(
            status="running", error=None, versions=versions(), seed=cfg.seed, config_hash=fingerprint,
            job=job_fields(config, overrides, group_hash(cfg)),
        )  # fmt: skip
    board.write_sparingly(run.path.parent)
    try:
        return train_in(run, cfg, overrides, screen, [*stop_if_hopeless(run.path)])
    except Interrupted:
        raise
    except Exception as error:
        if run.record["status"] == "diverged":
            return None  # a result
        if run.record["status"] != "failed":  # it went on, and was refused
            run.write(status="failed", error=str(error) if isinstance(error, UserError) else repr(error))
        raise


def can_go_on(run: Run) -> bool:
    """Tell whether a run has a checkpoint to go on from; one that is lost costs a warning, and the training."""
    try:
        return readable_checkpoint(run, "last")[0] is not None
    except LostError as error:
        log.warning("%s: %s; it is trained from the start", run.path.name, str(error).partition(";")[0])
        return False


def stop_if_hopeless(folder: Path) -> Iterator[StopIfHopeless]:
    """Yield the callback that prunes, where a search wants that."""
    if HydraConfig.get().sweeper.get("prune"):
        from linear_lab.sweep.search import prune_check

        yield StopIfHopeless(prune_check(folder.parent, folder.name))


@contextmanager
def in_log_alone() -> Iterator[Console]:
    """Keep a job off the terminal: what a run shows there, and its warnings, go into its log."""
    root = logging.getLogger()
    of_terminal = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    logs = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    for handler in of_terminal:
        root.removeHandler(handler)
    try:
        if not logs:
            yield Console(quiet=True)
            return
        with open(logs[0].baseFilename, "a", encoding="utf-8") as file:  # noqa: PTH123
            yield Console(file=file, width=120, highlight=False, markup=False)
    finally:
        for handler in of_terminal:
            root.addHandler(handler)
