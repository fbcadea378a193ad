"""Callbacks that end training, and the one that measures the last step."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from linear_lab import UserError, compat
from linear_lab.runs.checkpoints import SaveCheckpoints, goes_on_within_epochs
from linear_lab.runs.folder import LAST
from linear_lab.terminal.signals import hang_up, present_handlers


class MeasureLastStep(Callback):
    """Validates after the last step, so that curves and checkpoints end with the final model, whatever ends training.

    ``check_val_every_n_epoch=10`` alone would leave out the last five of 15 epochs, and ``max_steps`` all steps since
    the last validation. ReduceLROnPlateau and early stopping do not count this validation, so that a run that is
    resumed with more epochs equals a run that had them from the start.
    """

    def __init__(self) -> None:
        self.configured: list[int | None] = []  # check_val_every_n_epoch of the config, while 1 replaces it
        self.early_stopping_states: list[tuple[EarlyStopping, dict[str, Any]]] = []  # states before an extra validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if compat.resumed_at_last_batch(trainer):  # that epoch has been validated
            self.configured, trainer.check_val_every_n_epoch = [trainer.check_val_every_n_epoch], 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.configured:
            trainer.check_val_every_n_epoch = self.configured.pop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # otherwise Lightning does not validate within an epoch
        last = is_last_of_all(trainer)
        extra = (last or trainer.should_stop) and not compat.validation_follows(trainer, batch_idx)
        pl_module.extra_validation = extra  # type: ignore[assignment]
        self.early_stopping_states = [(c, c.state_dict()) for c in trainer.early_stopping_callbacks if extra]
        if last or trainer.should_stop:
            validates = compat.validate_after_batch(trainer, batch_idx, ends_training=last)
            if not validates and not trainer.is_last_batch and goes_on_within_epochs(trainer):
                # saved here, since after fit Lightning counts the epoch as complete
                trainer.save_checkpoint(Path(trainer.default_root_dir, LAST), weights_only=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback, state in self.early_stopping_states:
            callback.load_state_dict(state)


class GuideEarlyStopping(Callback):
    """Makes early stopping use the patience of this command, and keeps a run that it has ended from training on.

    Lightning would take the patience from the checkpoint, and train until the next validation. If the metric is not
    logged, Lightning's error would be a traceback.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for monitor in [c.monitor for c in trainer.early_stopping_callbacks if c.strict]:
            if monitor not in trainer.callback_metrics:
                measured = ", ".join(name for name in trainer.callback_metrics if name != "step") or "none"
                raise UserError(
                    f"callbacks: early stopping monitors {monitor}, which is not measured; choose "
                    f"callbacks.early_stopping.monitor from the metrics: {measured}"
                )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.patience = {c: c.patience for c in trainer.early_stopping_callbacks}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback, patience in self.patience.items():
            callback.patience = patience
            if callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and callback.wait_count < patience:
                callback.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            trainer.should_stop |= callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED


def is_last_of_all(trainer: Trainer) -> bool:
    """Tell whether this is the last batch of the last epoch."""
    return trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs


class StopIfHopeless(Callback):
    """Stops (prunes) a run that is worse than others were at the same epoch.

    After each validation, ``check`` gets the number of epochs and the metric, and returns whether to stop.
    """

    def __init__(self, metric: str, check: Callable[[int, float], bool]) -> None:
        self.metric, self.check = metric, check
        self.hopeless = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == "fit"
        value = trainer.callback_metrics.get(self.metric)
        if value is not None and self.check(trainer.current_epoch + 1 if fitting else 0, value.item()) and fitting:
            self.hopeless = trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if compat.is_measured_without_validation(trainer):
            self.on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= self.hopeless  # it was killed after the decision and before its end

    def state_dict(self) -> dict[str, Any]:
        return {"hopeless": self.hopeless}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.hopeless = state_dict["hopeless"]


class Interrupted(SystemExit):
    """Ends a run at a signal, with the exit code that shells expect: 130 at SIGINT, 143 at SIGTERM, 129 at SIGHUP."""


class StopOnSignal(Callback):
    """Saves last.ckpt at SIGINT, SIGTERM and SIGHUP, then ends the run; a second signal ends it at once.

    If Lightning validates after the batch, the run ends after that validation and resumes from its checkpoint, since a
    run that resumes from an earlier one would skip the validation. If the data cannot resume within an epoch, the run
    resumes from the checkpoint of the last complete epoch.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.step: int | None = None  # step of the saved checkpoint
        self.training = False
        self.handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other thread
            self.handlers = present_handlers()
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()  # again, since Lightning has installed its own handler of SIGTERM
        self.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if compat.validation_follows(trainer, batch_idx) or trainer.should_stop or is_last_of_all(trainer):
            return
        if trainer.is_last_batch and not goes_on_within_epochs(trainer):  # the end of the epoch saves one
            return
        if trainer.is_last_batch or not (batch_idx + 1) % trainer.accumulate_grad_batches:
            self._stop_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if goes_on_within_epochs(trainer):
            self._stop_if_signalled(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_signalled(trainer)

    def _install(self) -> None:
        for signum in self.handlers:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            hang_up()
        if not self.training or self.signum is not None:
            raise Interrupted(128 + signum)
        self.signum = signum

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        # all processes stop after the same batch, otherwise the others would wait for this one
        if trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False):
            saved = [c.step for c in trainer.checkpoint_callbacks if isinstance(c, SaveCheckpoints)]
            self.step = trainer.global_step
            if not goes_on_within_epochs(trainer):
                self.step = max(saved, default=0)
            elif self.step not in saved:
                trainer.save_checkpoint(Path(trainer.default_root_dir, LAST), weights_only=False)
            raise Interrupted(128 + (self.signum or signal.SIGTERM))
