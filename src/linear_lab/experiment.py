"""Assembly: config -> data, model, trainer -> fit -> result."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from linear_lab import UserError, console
from linear_lab.callbacks import Interrupted, MeasureLastStep, StopOnSignal
from linear_lab.checks import check, check_accelerator, user_errors
from linear_lab.data import LinearData
from linear_lab.run import LAST, Run, config_hash, git_revision, release
from linear_lab.steps import FirstSteps

log = logging.getLogger(__name__)
logging.getLogger("lightning").handlers.clear()  # its own handler puts tips on the terminal; train.log has all messages


def train(cfg: DictConfig, folder: str | Path, overrides: Sequence[str] = ()) -> float:
    """Train one composed config in its run folder, or go on there if ``cfg.resume`` is set.

    Args:
        cfg: what conf/train.yaml composes to.
        folder: the run folder; it exists.
        overrides: what the user typed, for the record of a resumed run.

    Returns:
        The final model's ``cfg.metric``.

    Raises:
        UserError: for all that the user can mend; the record says the same.
        Interrupted: at SIGINT and SIGTERM, after last.ckpt was saved.
    """
    if getattr(rank_zero_only, "rank", 0):  # a process that DDP added: it computes; the first one records and shows
        with restored_process(folder), StopOnSignal() as stop:
            fit(cfg, Run(Path(folder)), stop, Console(quiet=True))
        return 0.0
    run = Run.open(folder, "resume") if cfg.resume else Run(Path(folder))
    screen = console.terminal()
    with run.recording(), StopOnSignal() as stop:
        check(cfg, overrides)
        try:
            with restored_process(folder):
                data, model, trainer = fit(cfg, run, stop, screen, overrides)
            steps = trainer.global_step
            result = outcome(cfg, run, data, model, steps)
        except Interrupted:
            console.show_interrupted(screen, stop.step, run.path)
            raise
        if run.record.get("steps") != steps:  # else it stands there already
            for logger in trainer.loggers:
                logger.log_metrics({k: v for k, v in result["metrics"].items() if k == "test/loss"}, steps)
                logger.save()
        diverged = not all(math.isfinite(value) for value in result["metrics"].values())
        run.write(**result, status="diverged" if diverged else "completed")
        if diverged:
            raise UserError(
                f"diverged: {result['metrics']} after {steps} steps; "
                f"try a smaller rate than optimizer.lr={cfg.optimizer.get('lr')}"
            )
        console.show_outcome(screen, run.record, run.path, dashboard=bool(trainer.loggers))
        metric: float = result["metrics"][cfg.metric]
        return metric


def fit(
    cfg: DictConfig, run: Run, stop: StopOnSignal, screen: Console, overrides: Sequence[str] = ()
) -> tuple[LightningDataModule, LightningModule, Trainer]:
    """Build all from the config, and train; the initial model and the first step go into the run's record."""
    plain = as_dict(cfg)
    data, model = build(cfg)
    path, checkpoint = readable_checkpoint(run, "last") if cfg.resume else (None, {})
    limit = cfg.trainer.max_epochs
    if limit not in (None, -1) and checkpoint.get("epoch", 0) > limit:
        raise UserError(
            f"trainer.max_epochs={limit}: {path} is from epoch {checkpoint['epoch'] + 1} already; give a larger one"
        )
    first_steps = FirstSteps(screen, cfg.console.steps, plain)
    bar = console.ProgressBar(screen)
    step = checkpoint.get("global_step", 0)
    purge_step = step + (path is not None) if cfg.resume else None  # what comes after the checkpoint is logged again
    trainer = build_trainer(cfg, run.path, [first_steps, bar, stop], purge_step)
    kept = OmegaConf.merge(cfg, {"scheduler": plain["scheduler"]})  # cosine: its T_max does not follow max_epochs later
    run.begin(
        OmegaConf.to_yaml(kept),
        overrides if cfg.resume else (),
        config_hash=config_hash(plain),
        seed=cfg.seed,
        git=git_revision(),
    )
    console.show_plan(screen, plain, data, model, trainer, run.path, step)
    try:
        if path is None:
            initial = console.parameters(model)
            trainer.validate(model, data, verbose=False)  # so that curves start with the untouched model
            run.write(initial=initial | measured(trainer))
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
    except (MisconfigurationException, ValueError) as error:  # all else may be a defect, and keeps its traceback
        raise UserError(f"trainer: {error}") from error
    if first_steps.recorded:
        run.write(first_step=first_steps.recorded)
    path, last = readable_checkpoint(run, "last")
    trainer.strategy.barrier()  # all processes have looked before the first one writes
    if (path != run.path / LAST or last["global_step"] != trainer.global_step) and not cfg.trainer.fast_dev_run:
        trainer.save_checkpoint(run.path / LAST)  # there was no validation to save it after, or it was cut
    return data, model, trainer


def outcome(cfg: DictConfig, run: Run, data: LightningDataModule, model: LightningModule, steps: int) -> dict[str, Any]:
    """Measure the final and the best model on all parts; the fields of result.json."""
    final = {"steps": steps, "metrics": measure(cfg, data, model), "parameters": console.parameters(model)}
    if run.checkpoint("best") is None:
        return final | {"best": None}
    _, best = readable_checkpoint(run, "best")
    step = best["global_step"]
    if step == steps:
        return final | {"best": {"step": step, **{key: final[key] for key in ("metrics", "parameters")}}}
    model.load_state_dict(best["state_dict"])
    metrics = measure(cfg, data, model)
    return final | {"best": {"step": step, "metrics": metrics, "parameters": console.parameters(model)}}


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
    run = Run.open(folder)
    cfg = OmegaConf.create(run.config())
    assert isinstance(cfg, DictConfig)
    cfg.trainer.accelerator = accelerator or cfg.trainer.accelerator
    check_accelerator(cfg)
    path, checkpoint = readable_checkpoint(run, which)
    if path is None:
        raise UserError(f"run={folder}: no checkpoint yet; go on with it by resume={folder}, or train anew")
    state, step = checkpoint["state_dict"], checkpoint["global_step"]
    with restored_process(folder):
        data, model = build(cfg)
        model.to(next(iter(state.values())).dtype).load_state_dict(state)  # float64 would be cut to float32
        metrics = measure(cfg, data, model)
    recorded = {run.record.get("steps"): run.record.get("metrics")}
    if best := run.record.get("best"):
        recorded.setdefault(best["step"], best["metrics"])
    # a run that goes on has a newer checkpoint than its record: then there is nothing to compare with
    console.show_losses(console.terminal(), f"{path.stem}, step {step}", metrics, recorded.get(step) or {})
    return metrics


def build(cfg: DictConfig) -> tuple[LightningDataModule, LightningModule]:
    """Build data and model; the model takes its features from the data, and its start from the seed."""
    with user_errors("data"):
        data: LightningDataModule = instantiate(cfg.data, _convert_="all")
        data.prepare_data()
        data.setup("fit")
    if not isinstance(data, LinearData):
        raise UserError(f"data._target_={cfg.data.get('_target_')}: derive it from linear_lab.data.LinearData")
    known = [f"{part}/loss" for part in data.parts if part != "test"]
    if cfg.metric not in known:
        raise UserError(
            f"metric={cfg.metric}: while training these data measure {' and '.join(known)}; choose metric={known[0]}"
        )
    plain = as_dict(cfg)
    specs = {name: plain[name] or None for name in ("loss", "optimizer", "scheduler")}
    for name, spec in specs.items():
        if spec:
            with user_errors(name):
                get_class(spec["_target_"])  # imports it: the module itself builds only what is imported
    torch.manual_seed(cfg.seed)
    with user_errors("model"):
        model: LightningModule = instantiate(
            cfg.model,
            in_features=data.in_features,
            out_features=data.out_features,
            metric=cfg.metric,
            **specs,
            _recursive_=False,
            _convert_="all",
        )
    with user_errors("loss", specs["loss"]):
        model.loss(*torch.zeros(2, 1, data.out_features))  # type: ignore[operator]  # says now what it refuses
    with user_errors("optimizer", specs["optimizer"], specs["scheduler"]):
        model.configure_optimizers()  # likewise
    return data, model


def build_trainer(cfg: DictConfig, folder: Path, callbacks: list[Callback], purge_step: int | None) -> Trainer:
    """Build the trainer with the config's callbacks and logger, and ours."""
    with user_errors("callbacks"):
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback] + callbacks
    with user_errors("logger"):
        logger = instantiate(cfg.logger, save_dir=str(folder), purge_step=purge_step) if cfg.logger else False
    with user_errors("trainer"):
        trainer: Trainer = instantiate(cfg.trainer, default_root_dir=str(folder), callbacks=callbacks, logger=logger)
    # What ends the training (Lightning's timer comes after our callbacks) must have said so before the last step is
    # measured, and that before a signal is heeded.
    late = {MeasureLastStep: 1, StopOnSignal: 2}
    trainer.callbacks.sort(key=lambda callback: late.get(type(callback), 0))  # type: ignore[attr-defined]
    return trainer


def measure(cfg: DictConfig, data: LightningDataModule, model: LightningModule) -> dict[str, float]:
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


def readable_checkpoint(run: Run, which: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the path and content of a run's checkpoint: of the other one if it cannot be read; None if there is none.

    Raises:
        UserError: if there are some, but none can be read, or a newer version of Lightning made them.
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
        raise UserError(f"cannot read {', '.join(unreadable)}; delete the checkpoints to train from the start")
    return None, {}


@contextmanager
def restored_process(folder: str | Path) -> Iterator[None]:
    """Leave the process as it was, so that the next job of a sweep equals the same job alone.

    Within, ``sys.argv`` is the command that joins this run: DDP starts its other processes with it.
    """
    arguments, environment = sys.argv, dict(os.environ)
    rng_state = torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    sys.argv = [sys.argv[0], f"resume={Path(folder).resolve()}"]
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        torch.set_rng_state(rng_state)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers, with its interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
