"""Measures the checkpoint of a run again."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from linear_lab import UserError
from linear_lab.config import as_dict, saved_config
from linear_lab.fitting.build import build
from linear_lab.fitting.checks import check_accelerator, check_same
from linear_lab.fitting.measure import measure
from linear_lab.fitting.process import restored_process
from linear_lab.fitting.trust import check_targets
from linear_lab.runs.checkpoints import readable_checkpoint
from linear_lab.runs.folder import CONFIG, Run, Trust
from linear_lab.terminal import layout, report

log = logging.getLogger(__name__)


def evaluate(folder: str, which: str = "best", accelerator: str | None = None, trust: Trust = None) -> dict[str, float]:
    """Measure a run's checkpoint on all parts of its data, and print the metrics next to the recorded ones.

    Args:
        folder: the run folder.
        which: the checkpoint, ``best`` or ``last``; if it cannot be read, the other one is taken, with a warning.
        accelerator: ``cpu``, ``gpu`` or ``auto``; by default that of the run.
        trust: names of other classes that the run's config may build; see `check_targets`.

    Returns:
        The metrics by name, such as ``val/loss``.

    Raises:
        UserError: if the run does not exist, no checkpoint can be read, or the accelerator is not available.
    """
    run, cfg, path, checkpoint = open_checkpoint(folder, which, trust)
    cfg.trainer.accelerator = accelerator or cfg.trainer.accelerator
    check_accelerator(cfg)
    state, step = checkpoint["state_dict"], checkpoint["global_step"]
    with restored_process(folder, cfg.get("threads")):
        data, model = build(cfg)
        check_same(cfg, data, model, checkpoint)
        floating = (values.dtype for values in state.values() if values.is_floating_point())
        model.to(next(floating, None)).load_state_dict(state)  # else float64 values would be rounded to float32
        metrics = measure(cfg, data, model)
    recorded = {run.record.steps: run.record.metrics}
    if best := run.record.best:
        recorded.setdefault(best.step, best.metrics)
    # while a resumed run trains, its checkpoint is newer than its record, so no recorded metrics have its step
    columns: dict[str, dict[str, Any]] = {f"{path.stem}, step {step}": metrics, "recorded": recorded.get(step) or {}}
    report.show_losses(layout.screen(), columns)
    return metrics


def open_checkpoint(folder: str, which: str, trust: Trust = None) -> tuple[Run, DictConfig, Path, dict[str, Any]]:
    """Return a run, its config, after checking the classes in it, and the path and content of a checkpoint."""
    run = Run.open(folder)
    cfg = saved_config(run)
    check_targets(as_dict(cfg), run.path / CONFIG, trust)
    path, checkpoint = readable_checkpoint(run, which)
    if path is None and run.record.status == "failed":
        raise UserError(f"run={folder}: it failed before its first checkpoint ({run.record.error}); train a new run")
    if path is None:
        raise UserError(f"run={folder}: it has no checkpoint yet; continue it with resume={folder}, or train a new run")
    if run.record.status == "diverged":
        log.warning("This run %s", run.record.error)
    return run, cfg, path, checkpoint
