"""When training stops: after the last step, which is measured, at a signal, or because a run is hopeless."""

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
    """Validates after the last step too: curves and checkpoints end with the final model, whatever ends the training.

    ``check_val_every_n_epoch=10`` alone would leave out the last five of 15 epochs, and ``max_steps`` all steps since
    the last validation. A plateau scheduler and early stopping do not count such a validation, so that a run that is
    resumed with more epochs goes on as if it had had them from the start.
    """

    def __init__(self) -> None:
        self.every: list[int | None] = []  # the config's check_val_every_n_epoch, while another value is set
        self.uncounted: list[tuple[EarlyStopping, dict[str, Any]]] = []  # states before an extra validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if compat.resumed_at_last_batch(trainer):  # that epoch was validated, and is over
            self.every, trainer.check_val_every_n_epoch = [trainer.check_val_every_n_epoch], 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every:
            trainer.check_val_every_n_epoch = self.every.pop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates in the middle of an epoch only when told to stop
        last = is_last_of_all(trainer)
        extra = (last or trainer.should_stop) and not compat.validation_follows(trainer, batch_idx)
        pl_module.extra_validation = extra  # type: ignore[assignment]
        self.uncounted = [(c, c.state_dict()) for c in trainer.early_stopping_callbacks if extra]
        if last or trainer.should_stop:
            validates = compat.validate_after_batch(trainer, batch_idx, ends_training=last)
            if not validates and not trainer.is_last_batch and goes_on_within_epochs(trainer):
                # after fit, Lightning counts the epoch as done, so the checkpoint is taken here
                trainer.save_checkpoint(Path(trainer.default_root_dir, LAST), weights_only=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback, state in self.uncounted:
            callback.load_state_dict(state)


class GuideEarlyStopping(Callback):
    """Has early stopping follow the patience of this command, and not train on after it has ended a run.

    Lightning takes the patience from the checkpoint, and trains until the next validation. Of a metric that a module
    does not log, its error is a traceback.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for monitor in [c.monitor for c in trainer.early_stopping_callbacks if c.strict]:
            if monitor not in trainer.callback_metrics:
                measured = ", ".join(name for name in trainer.callback_metrics if name != "step") or "none"
                raise UserError(
                    f"callbacks: early stopping by {monitor}, which is not measured; of the metrics ({measured}) "
                    "choose one as callbacks.early_stopping.monitor"
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
    """Prunes a run that is worse than others were at the same epoch.

    ``check`` takes the epochs trained and the metric after each validation, and returns whether to stop.
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
        trainer.should_stop |= self.hopeless  # the run was killed between the decision and its end

    def state_dict(self) -> dict[str, Any]:
        return {"hopeless": self.hopeless}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.hopeless = state_dict["hopeless"]


class Interrupted(SystemExit):
    """Ends a run at a signal, with the exit code that shells expect: 130 at SIGINT, 143 at SIGTERM, 129 at SIGHUP."""


class StopOnSignal(Callback):
    """Saves last.ckpt at SIGINT, SIGTERM and SIGHUP, then ends the run; a second signal ends it at once.

    Where Lightning validates after the batch, the checkpoint of that validation is the one to resume from: a run
    resumed from one that was taken before it would leave the validation out. With data that cannot go on within an
    epoch, the checkpoint to resume from is that of the last epoch that has ended.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.step: int | None = None  # of the checkpoint that was saved
        self.training = False
        self.handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self.handlers = present_handlers()
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()  # again: Lightning has installed its own handler of SIGTERM
        self.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if compat.validation_follows(trainer, batch_idx) or trainer.should_stop or is_last_of_all(trainer):
            return
        if trainer.is_last_batch and not goes_on_within_epochs(trainer):  # the checkpoint comes soon
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
        # all processes stop after the same batch, or the others would wait for this one
        if trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False):
            saved = [c.step for c in trainer.checkpoint_callbacks if isinstance(c, SaveCheckpoints)]
            self.step = trainer.global_step
            if not goes_on_within_epochs(trainer):
                self.step = max(saved, default=0)
            elif self.step not in saved:
                trainer.save_checkpoint(Path(trainer.default_root_dir, LAST), weights_only=False)
            raise Interrupted(128 + (self.signum or signal.SIGTERM))
