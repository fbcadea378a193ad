"""What happens beside training: checkpoints, the measure of the last step, stopping at a signal."""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from linear_lab.runs import folder
from linear_lab.runs.checkpoints import Soon, WholeFileIO, takes_options


class Checkpoint(callbacks.Checkpoint):
    """Keeps a checkpoint of the run, taken after a validation, in the run folder.

    Those that are due at the same validation are one content, made once; Lightning's ModelCheckpoint would make each
    anew, and takes several times as long in each step and validation.

    Args:
        kind: ``best`` keeps the weights with the best ``monitor``, ``last`` those of the last validation.
        monitor: the metric that decides what is best; None takes each validation.
        mode: ``min`` or ``max``: whether a lower or a higher metric is better.

    Raises:
        ValueError: for another kind or mode.
    """

    def __init__(self, kind: str, monitor: str | None = None, mode: str = "min") -> None:
        if kind not in folder.CHECKPOINTS or mode not in ("min", "max"):
            raise ValueError(f"kind must be best or last, and mode min or max, got kind={kind}, mode={mode}")
        self.file, self.monitor, self.mode = folder.CHECKPOINTS[kind], monitor, mode
        self.best: Tensor | None = None
        self.step = 0  # of the last one
        self.due = False
        # ModelCheckpoint's, under which checkpoints of older versions have the best score
        every = {"every_n_train_steps": 0, "every_n_epochs": 1, "train_time_interval": None}
        self.key = self._generate_state_key(monitor=monitor, mode=mode, **every)

    @property
    def state_key(self) -> str:
        """Under which name checkpoints hold the best score."""
        return self.key

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether one is due; the last of the callbacks has all of them made."""
        self.due = self._is_due(trainer)
        kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoint)]
        paths = [Path(trainer.default_root_dir, callback.file) for callback in kept if callback.due]
        if self is not kept[-1] or not paths:
            return
        if isinstance(trainer.strategy.checkpoint_io, WholeFileIO) and takes_options(trainer.strategy):
            first = [logger.save for logger in trainer.loggers]
            trainer.save_checkpoint(paths[0], weights_only=False, storage_options=Soon(paths, first))
        else:
            for path in paths:
                trainer.save_checkpoint(path, weights_only=False)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Have written what waits for its second, where the next validation is far."""
        if isinstance(trainer.strategy.checkpoint_io, WholeFileIO):
            trainer.strategy.checkpoint_io.write_due()

    def _is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        dry = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or dry or self.step == step:
            return False
        if self.monitor is not None:
            value = trainer.callback_metrics.get(self.monitor)
            if value is None:
                raise ValueError(f"{self.monitor} is not measured; choose one of {', '.join(trainer.callback_metrics)}")
            better = self.best is None or bool(value < self.best if self.mode == "min" else value > self.best)
            if trainer.world_size > 1:  # all processes take part in making it, or none
                better = trainer.strategy.reduce_boolean_decision(better)
            if not better:
                return False
            self.best = value.clone()
        self.step = step
        return True

    def state_dict(self) -> dict[str, Any]:
        """Keep the best score."""
        return {"best_model_score": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score so far."""
        self.best = state_dict["best_model_score"]


class Unprofiled(PassThroughProfiler):
    """Lightning's profiler for those who want none, without the generator that it enters a hundred times a step."""

    NOTHING: AbstractContextManager[Any] = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Do nothing."""
        return self.NOTHING


class MeasureLastStep(Callback):
    """Validates after the last step too: curves and checkpoints end with the final model, whatever ends the training.

    ``check_val_every_n_epoch=10`` alone would leave out the last five of 15 epochs, and ``max_steps`` all since the
    last validation.
    """

    def __init__(self) -> None:
        self.every: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resumed from a checkpoint of such a step: have Lightning know that its epoch was validated and is over."""
        if trainer.is_last_batch and not trainer.fit_loop.epoch_loop.restarted_on_train_batch_end:
            self.every, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on as the config says."""
        if self.every is not None:
            trainer.check_val_every_n_epoch, self.every = self.every, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have Lightning validate if no batch will follow."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates in the middle of an epoch only when told to stop
        last_of_all = is_last_of_all(trainer)
        if last_of_all or trainer.should_stop:
            trainer.check_val_every_n_epoch = 1
            if last_of_all and trainer.enable_validation:
                trainer.val_check_batch = batch_idx + 1  # whatever val_check_interval says
            if not trainer.enable_validation and not trainer.is_last_batch:  # what fit leaves has its epoch as done
                trainer.save_checkpoint(Path(trainer.default_root_dir, folder.LAST))


def is_last_of_all(trainer: Trainer) -> bool:
    """Tell whether the epoch's last batch ends the last epoch."""
    return trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs


class StopIfHopeless(Callback):
    """Stops a run that is worse than others were at the same epoch.

    Args:
        check: takes the epochs trained and the module's metric after each validation; returns whether to stop.
    """

    def __init__(self, check: Callable[[int, float], bool]) -> None:
        self.check = check
        self.hopeless = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop."""
        fitting = trainer.state.fn == "fit"
        value = trainer.callback_metrics.get(str(pl_module.hparams["metric"]))
        if value is not None and self.check(trainer.current_epoch + 1 if fitting else 0, value.item()) and fitting:
            self.hopeless = trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop again, if the run was killed after that was decided."""
        trainer.should_stop |= self.hopeless

    def state_dict(self) -> dict[str, Any]:
        """Keep the decision in the checkpoint."""
        return {"hopeless": self.hopeless}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.hopeless = state_dict["hopeless"]


class Interrupted(SystemExit):
    """Ends a run at a signal, with the exit code that shells expect: 130 for SIGINT, 143 for SIGTERM."""


class StopOnSignal(Callback):
    """Saves last.ckpt at SIGINT and SIGTERM, then ends the run; a second signal ends it at once.

    Where Lightning validates after the batch, the checkpoint of that validation is the one to go on from: one taken
    before it would let the resumed run do without.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.step: int | None = None  # where last.ckpt was saved
        self.training = False
        self.handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self.handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back: Lightning has put its own handler of SIGTERM in place."""
        self._install()
        self.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal ends the run at once; what is still to be written is written by `teardown`."""
        self.training = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, unless a validation follows or the gradients of some batches wait for their step."""
        if self.signum is None and trainer.world_size == 1:
            return
        every, count = trainer.check_val_every_n_epoch, batch_idx + 1
        due = trainer.enable_validation and (every is None or not (trainer.current_epoch + 1) % every)
        if every is None:
            count = trainer.fit_loop.total_batch_idx + 1
        due = due and trainer.val_check_batch is not None and not count % trainer.val_check_batch
        if due or trainer.should_stop or is_last_of_all(trainer):
            return
        if trainer.is_last_batch or not (batch_idx + 1) % trainer.accumulate_grad_batches:
            self._stop_if_asked(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the validation that ends the epoch; it has left no last.ckpt if no callback keeps one."""
        kept = [callback.file for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoint)]
        self._stop_if_asked(trainer, save=folder.LAST not in kept)

    def _install(self) -> None:
        for signum in self.handlers:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.training or self.signum is not None:
            raise Interrupted(128 + signum)
        self.signum = signum

    def _stop_if_asked(self, trainer: Trainer, *, save: bool) -> None:
        asked = self.signum is not None
        if trainer.world_size > 1:  # all processes stop after the same batch, or the others would wait for this one
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            last = Path(trainer.default_root_dir, folder.LAST)
            if save:
                trainer.save_checkpoint(last)
            trainer.strategy.checkpoint_io.teardown()  # writes what is kept
            if last.exists():
                self.step = trainer.global_step
            raise Interrupted(128 + (self.signum or signal.SIGTERM))
