"""What happens beside training: checkpoints, the measure of the last step, stopping at a signal."""

import io
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from linear_lab import files, run


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
        if kind not in run.CHECKPOINTS or mode not in ("min", "max"):
            raise ValueError(f"kind must be best or last, and mode min or max, got kind={kind}, mode={mode}")
        self.file, self.monitor, self.mode = run.CHECKPOINTS[kind], monitor, mode
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
        if isinstance(trainer.strategy.checkpoint_io, WholeFileIO):
            first = [logger.save for logger in trainer.loggers]
            trainer.save_checkpoint(paths[0], weights_only=False, storage_options=Soon(paths, first))
        else:
            for path in paths:
                trainer.save_checkpoint(path, weights_only=False)

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


class Soon(NamedTuple):
    """How `WholeFileIO` is to write a checkpoint: into several files, soon, and after something else."""

    paths: list[Path]
    first: list[Callable[[], None]]  # so that the curves reach as far as the checkpoint after a kill


class WholeFileIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step and on disk; Lightning's own goes through another folder and may be cut.

    What is to be written `Soon` is kept, and written at most once in `INTERVAL` seconds: a run killed by -9 loses that
    much of its work. Lightning calls `teardown` however else training ends.
    """

    INTERVAL = 1.0

    def __init__(self) -> None:
        self.kept: dict[Path, bytes] = {}
        self.first: list[Callable[[], None]] = []
        self.written = -math.inf

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint, at once or `Soon`."""
        if not (storage_options is None or isinstance(storage_options, Soon)):
            raise TypeError("storage_options are not supported")
        content = io.BytesIO()
        torch.save(checkpoint, content)
        paths, self.first = storage_options or ([Path(path)], self.first)
        for file in paths:
            self.kept.pop(file, None)  # they are written in the order of this dict: best.ckpt is never behind last.ckpt
            self.kept[file] = content.getvalue()
        if not storage_options or time.monotonic() - self.written >= self.INTERVAL:
            self.teardown()

    def teardown(self) -> None:
        """Write what is kept."""
        kept, self.kept = self.kept, {}
        for call in self.first if kept else ():
            call()
        for path, content in kept.items():
            path.parent.mkdir(exist_ok=True)
            files.replace(path, content)
        if kept:
            self.written = time.monotonic()


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
                trainer.save_checkpoint(Path(trainer.default_root_dir, run.LAST))


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
        """From here on a signal ends the run at once: all is saved."""
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
        """Stop after the validation that ends the epoch."""
        self._stop_if_asked(trainer, save=False)

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
            last = Path(trainer.default_root_dir, run.LAST)
            if save:
                trainer.save_checkpoint(last)
            trainer.strategy.checkpoint_io.teardown()  # writes what is kept
            if last.exists():
                self.step = trainer.global_step
            raise Interrupted(128 + (self.signum or signal.SIGTERM))
