"""What happens beside training: checkpoints, the measure of the last step, stopping at a signal."""

import io
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from linear_lab import files, run


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, written in the run folder after each validation.

    Args:
        kind: ``best`` keeps the weights with the best ``monitor``, ``last`` those of the last validation.
        monitor: the metric that decides what is best.
        mode: ``min`` or ``max``: whether a lower or a higher metric is better.
    """

    def __init__(self, kind: str, monitor: str | None = None, mode: str = "min") -> None:
        self.file = Path(run.CHECKPOINTS[kind])
        super().__init__(
            filename=self.file.stem,
            monitor=monitor,
            mode=mode,
            every_n_epochs=1,
            save_on_train_epoch_end=False,  # after validation, whatever check_val_every_n_epoch says
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the run folder, and make its checkpoints folder, which Lightning would find "not empty" later."""
        self.dirpath = str(Path(trainer.default_root_dir, self.file.parent).resolve())
        if stage != "fit":  # Lightning warns of files in the folder, which a resumed run has
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score so far, also where the folder was moved since."""
        here = str(Path(str(self.dirpath), self.file.name))
        scores = list(state_dict["best_k_models"].values())
        moved = {"dirpath": self.dirpath, "best_k_models": dict.fromkeys([here], *scores) if scores else {}}
        moved |= {key: here for key in ("best_model_path", "kth_best_model_path") if state_dict[key]}
        super().load_state_dict(state_dict | moved)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        for logger in trainer.loggers:
            logger.save()  # first, so that the curves reach as far as the checkpoint after a kill
        super()._save_checkpoint(trainer, filepath)


class WholeFileIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step and on disk; Lightning's own goes through another folder and may be cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(exist_ok=True)
        files.replace(Path(path), content.getvalue())


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
        last_step = trainer.global_step == trainer.max_steps
        trainer.should_stop |= last_step  # Lightning validates in the middle of an epoch only when told to stop
        if is_last_of_all(trainer) or trainer.should_stop:
            trainer.check_val_every_n_epoch = 1
            if is_last_of_all(trainer) and trainer.enable_validation:
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
            if last.exists():
                self.step = trainer.global_step
            raise Interrupted(128 + (self.signum or signal.SIGTERM))
