"""One run, in reading order: check, build, train, measure, record, show."""

import functools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from linear_lab import UserError
from linear_lab.config import as_dict, make_paths_absolute, saved_config
from linear_lab.fitting import bookkeeping, build, checks, divergence
from linear_lab.fitting.accumulation import MeanOverRows
from linear_lab.fitting.callbacks import GuideEarlyStopping, Interrupted, MeasureLastStep, StopIfHopeless, StopOnSignal
from linear_lab.fitting.loggers import build_loggers
from linear_lab.fitting.process import leave_group, restored_process
from linear_lab.fitting.seeding import SeedEpochs, seed_all
from linear_lab.fitting.seven_steps import SevenSteps
from linear_lab.fitting.trust import check_targets
from linear_lab.runs.checkpoints import load_weights, readable_checkpoint
from linear_lab.runs.folder import CONFIG, Run
from linear_lab.terminal import layout, report
from linear_lab.terminal.progress import ProgressBar
from linear_lab.tracking import hparams
from linear_lab.tracking.tracker import track


def train(cfg: DictConfig, folder: str | Path, overrides: Sequence[str] = ()) -> float:
    """Train one composed config in its run folder, or resume the run there if ``cfg.resume`` is set.

    Args:
        cfg: the config that conf/train.yaml composes to.
        folder: the run folder, which exists.
        overrides: the overrides that the user typed.

    Returns:
        The final model's ``cfg.metric``.

    Raises:
        UserError: if the user has made a mistake, or if the run diverges; the record has the same message.
        Interrupted: at SIGINT, SIGTERM and SIGHUP, after last.ckpt is saved.
    """
    make_paths_absolute(cfg, layout.here())
    if getattr(rank_zero_only, "rank", 0):  # a process that DDP added; only the first one records and prints
        with ExitStack() as at_the_end, restored_process(folder, cfg.get("threads")), StopOnSignal() as stop:
            fit(cfg, Run(Path(folder)), stop, Console(quiet=True), at_the_end)
        return 0.0
    if not cfg.resume:
        with Run(Path(folder)).claimed() as run:
            return train_in(run, cfg, overrides, layout.screen())
    run = Run.open(folder, "resume")
    check_targets(as_dict(saved_config(run)), run.path / CONFIG, cfg.trust)
    if run.record.status == "diverged":
        raise UserError(f"resume={cfg.resume}: the run {run.record.error}; start a new one")
    return train_in(run, cfg, overrides, layout.screen())


def train_in(
    run: Run, cfg: DictConfig, overrides: Sequence[str], screen: Console, callbacks: Sequence[Callback] = ()
) -> float:
    """Train like `train`, in an open run folder, with callbacks in addition to those of the config."""
    with ExitStack() as at_the_end:
        at_the_end.callback(lambda: hparams.write_end(run.path, run.record.status))  # whatever ends the run
        at_the_end.enter_context(run.recording())
        stop = at_the_end.enter_context(StopOnSignal())
        checks.check(cfg, overrides)
        try:
            with restored_process(run.path, cfg.get("threads")):
                fitted = fit(cfg, run, stop, screen, at_the_end, overrides, callbacks)
                result = bookkeeping.outcome(run, fitted)
        except Interrupted:
            layout.show_interrupted(screen, stop.step, run.path)
            raise
        error = divergence.divergence(fitted.cfg, fitted.reference, fitted.diverged, result, run.record.initial or {})
        pruned = any(isinstance(callback, StopIfHopeless) and callback.hopeless for callback in callbacks)
        result |= {"status": "diverged" if error else "pruned" if pruned else "completed", "error": error}
        if run.record.steps != result["steps"]:  # a resumed run without further steps has logged it
            bookkeeping.log_outcome(fitted, run.record.updated(**result))
        hparams.write_end(run.path, result["status"])  # before the record has the end state
        run.write(**result)
    if error:
        raise UserError(error)
    divergence.warn_if_useless(fitted.cfg, fitted.data, fitted.model, run.record)
    limits = bookkeeping.limits_reached(fitted.trainer)
    limits = limits or {"trainer.max_time" if cfg.trainer.get("max_time") else "trainer.max_epochs": 0}
    has_events = bool(fitted.tracker and fitted.tracker.logger)
    report.show_outcome(screen, run.record, run.path, has_events, limits, metric=str(fitted.cfg.metric))
    return float(result["metrics"].get(fitted.cfg.metric, math.nan))


def fit(
    cfg: DictConfig, run: Run, stop: StopOnSignal, screen: Console, at_the_end: ExitStack,
    overrides: Sequence[str] = (), callbacks: Sequence[Callback] = (),
) -> bookkeeping.Fit:  # fmt: skip
    """Build everything from the config, and train; record the initial model and the first step."""
    composed = as_dict(cfg)
    cfg = build.without_unread(cfg, () if cfg.resume else overrides)
    data = build.build_data(cfg)
    cfg = build.with_measured_metric(cfg, data)
    plain = as_dict(cfg)
    model = build.build_model(cfg, data)
    path, checkpoint = readable_checkpoint(run, "last") if cfg.resume else (None, {})
    checks.check_resume(cfg, data, model, path, checkpoint)
    if path is None and cfg.get("ckpt_path"):
        load_weights(model, cfg.ckpt_path)
    reference = build.build_reference(cfg, data, model)
    step = checkpoint.get("global_step", 0)
    loggers = build_loggers(cfg, run, step + (path is not None) if cfg.resume else None, at_the_end)
    stop_on_divergence = divergence.StopOnDivergence(reference, cfg.metric, cfg.get("mode", "min"))
    tracker = track(data, model, reference, loggers, OmegaConf.to_container(cfg), stop_on_divergence.summary)
    first_steps = SevenSteps(screen, cfg.console.steps, plain)
    start = functools.cache(lambda: bookkeeping.begin(run, fitted, composed, overrides))  # runs once
    resumed = [LambdaCallback(on_train_batch_end=lambda *_: start())] if cfg.resume else []
    of_config = build.build_callbacks(cfg)
    trainer = build.build_trainer(cfg, run.path, loggers, [
        SeedEpochs(cfg.seed),                 # before an epoch draws random numbers
        MeanOverRows(),                       # without effect if a step has one batch
        *resumed,                             # a resumed run that fails before its first batch is unchanged
        GuideEarlyStopping(),
        *of_config,                           # those of the user, and max_time, may end training
        stop_on_divergence,                   # ends a diverged run before it is logged and saved
        *([tracker] if tracker else []),      # writes logs before the checkpoint is saved
        first_steps, *callbacks, ProgressBar(screen),
        MeasureLastStep(),                    # after all callbacks that may end training
        stop,                                 # a signal waits until the last step is measured
    ])  # fmt: skip
    fitted = bookkeeping.Fit(cfg, data, model, trainer, reference, tracker, stop_on_divergence.losses)
    if not cfg.resume:
        start()
    report.show_plan(screen, plain, run.path, step, data, model, trainer, reference)
    divergence.warn_if_lr_unstable(cfg, reference)
    try:
        with checks.training_errors(trainer):
            if path is None:
                bookkeeping.measure_start(run, fitted)
            checks.check_monitors(cfg, run.record.initial or {}, model)
            seed_all(cfg.seed)  # the user's data may be split at random in setup
            trainer.fit(model, data, ckpt_path=path, weights_only=True)
            start()  # for a resumed run without a batch left
        checks.check_trained(trainer, data)
        if path and trainer.global_step == step:
            bookkeeping.warn_of_nothing_trained(trainer, of_config, cfg.trainer.max_time)
    except divergence.DivergenceError as diverged:
        fitted.diverged = diverged
    if first_steps.recorded:
        run.write(first_step=first_steps.recorded)
    bookkeeping.save_last(run, fitted)
    leave_group()
    return fitted
