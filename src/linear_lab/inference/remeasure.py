"""A run's checkpoint, measured."""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError
from linear_lab.data import LinearData
from linear_lab.fitting.build import build, restored_process
from linear_lab.fitting.checks import check_accelerator, user_errors
from linear_lab.models import SupervisedModule
from linear_lab.runs.folder import Run, release
from linear_lab.terminal import layout, report

log = logging.getLogger(__name__)


def evaluate(folder: str, which: str = "best", accelerator: str | None = None) -> dict[str, float]:
    """Measure a run's checkpoint on all parts of its own data, and show the numbers beside the recorded ones.

    Args:
        folder: the run folder.
        which: ``best`` or ``last``; if that checkpoint cannot be read, the other one, and it says so.
        accelerator: ``cpu``, ``gpu`` or ``auto``; None takes the run's own.

    Returns:
        The metrics by name, such as ``val/loss``.

    Raises:
        UserError: if there is no such run, it has no checkpoint that can be read, or the accelerator is not there.
    """
    run, cfg, path, checkpoint = open_checkpoint(folder, which)
    cfg.trainer.accelerator = accelerator or cfg.trainer.accelerator
    check_accelerator(cfg)
    state, step = checkpoint["state_dict"], checkpoint["global_step"]
    with restored_process(folder, cfg.get("threads")):
        data, model = build(cfg)
        check_same_data(cfg, data, checkpoint)
        model.to(next(iter(state.values())).dtype).load_state_dict(state)  # float64 would be cut to float32
        metrics = measure(cfg, data, model)
    recorded = {run.record.get("steps"): run.record.get("metrics")}
    if best := run.record.get("best"):
        recorded.setdefault(best["step"], best["metrics"])
    # a run that goes on has a newer checkpoint than its record: then there is nothing to compare with
    columns = {f"{path.stem}, step {step}": metrics, "recorded": recorded.get(step) or {}}
    report.show_losses(layout.screen(), columns)
    return metrics


def measure(cfg: DictConfig, data: LinearData, model: SupervisedModule) -> dict[str, float]:
    """Metrics of all parts, by Lightning's test loop on one device: the same numbers whoever asks."""
    devices = cfg.trainer.devices
    with user_errors("trainer"):
        trainer = Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=list(devices[:1]) if OmegaConf.is_list(devices) else 1,
            precision=cfg.trainer.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    trainer.test(model, data, verbose=False)
    return measured(trainer)


def measured(trainer: Trainer) -> dict[str, float]:
    """Return what the trainer measured last."""
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name != "step"}


class LostError(UserError):
    """A run has checkpoints, of which none can be read."""


def readable_checkpoint(run: Run, which: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the path and content of a run's checkpoint: of the other one if it cannot be read; None if there is none.

    Raises:
        LostError: if there are some, but none can be read.
        UserError: if a newer version of Lightning made them.
    """
    if which not in ("best", "last"):
        raise UserError(f"checkpoint={which}: choose checkpoint=best or checkpoint=last")
    unreadable = []
    for kind in (which, "last" if which == "best" else "best"):
        path = run.checkpoint(kind)
        if path is None:
            continue
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
            step, made_by = checkpoint["global_step"], checkpoint["pytorch-lightning_version"]
        except Exception as error:  # a file cut in half raises anything
            unreadable.append(f"{path} ({str(error).splitlines()[0]})")
            continue
        if release(made_by) > release(version("lightning")):
            raise UserError(f"{path}: made by lightning {made_by}, newer than {version('lightning')}; update lightning")
        if unreadable:
            log.warning("cannot read %s; taking %s instead, of step %d", unreadable[0], path, step)
        return path, checkpoint
    if unreadable:
        raise LostError(f"cannot read {', '.join(unreadable)}; delete the checkpoints to train from the start")
    return None, {}


def open_checkpoint(folder: str, which: str) -> tuple[Run, DictConfig, Path, dict[str, Any]]:
    """Open a run for what comes after training: the run, its config, the path and the content of a checkpoint.

    Raises:
        UserError: if there is no such run, or no checkpoint that can be read.
    """
    run = Run.open(folder)
    cfg = OmegaConf.create(run.config())
    assert isinstance(cfg, DictConfig)
    path, checkpoint = readable_checkpoint(run, which)
    if path is None:
        raise UserError(f"run={folder}: no checkpoint yet; go on with it by resume={folder}, or train anew")
    if run.record["status"] == "diverged":
        log.warning("This run %s", run.record["error"])
    return run, cfg, path, checkpoint


def check_same_data(cfg: DictConfig, data: LinearData, checkpoint: dict[str, Any]) -> None:
    """Refuse other data than those that a checkpoint was trained on.

    Raises:
        UserError: naming the data.
    """
    kept = checkpoint.get(type(data).__qualname__)
    if kept is not None and kept != data.state_dict():
        raise UserError(
            f"data: {cfg.data.get('path') or type(data).__name__} has changed since the run was trained; "
            "put the old data back, or train anew"
        )
