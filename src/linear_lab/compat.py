"""Uses of undocumented names of libraries, one function each, with what it buys."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@contextmanager
def without_collection() -> Iterator[None]:
    """Import torch and Lightning without Python's garbage collector, which then never looks at what they loaded.

    Measured on a default run: 4.0 s instead of 5.3 s.
    """
    if "torch" in sys.modules:  # a job of a sweep: to freeze again would keep its config for ever
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def validation_follows(trainer: "Trainer", batch_idx: int) -> bool:
    """Tell whether Lightning validates after this batch.

    A signal then waits for the checkpoint of that validation: a run resumed from an earlier one would leave it out.
    """
    every, batches = trainer.check_val_every_n_epoch, batch_idx + 1
    if every is None:  # val_check_interval counts over epochs
        batches = trainer.fit_loop.total_batch_idx + 1
    elif (trainer.current_epoch + 1) % every:
        return False
    check = trainer.val_check_batch
    return bool(trainer.enable_validation and check is not None and not batches % check)


def validate_after_batch(trainer: "Trainer", batch_idx: int, *, ends_training: bool) -> bool:
    """Have Lightning validate after this batch, whatever ``check_val_every_n_epoch`` and ``val_check_interval`` say.

    Without it, curves and checkpoints of a run whose length is no multiple of them end before the final model.

    Returns:
        Whether there is anything to validate on.
    """
    trainer.check_val_every_n_epoch = 1
    if ends_training and trainer.enable_validation:
        trainer.val_check_batch = batch_idx + 1
    return trainer.enable_validation


def is_measured_without_validation(trainer: "Trainer") -> bool:
    """Tell whether the end of this epoch stands for a validation, as there is nothing to validate on.

    Without it, a module that logs in training alone would have neither checkpoints nor a best one.
    """
    every = trainer.check_val_every_n_epoch
    due = every is None or not (trainer.current_epoch + 1) % every or trainer.should_stop
    validates = trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))
    return due and not validates and trainer.limit_val_batches != 0


def begin_next_epoch(trainer: "Trainer") -> None:
    """Have a run that goes on from the end of an epoch begin with the next one, also under ``max_steps``.

    Lightning would end that epoch a second time and count it twice, so that the run reaches ``max_epochs`` too early.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    for part in (loop, loop.epoch_loop):
        part._restarting = False
        part.reset_restart_stage()


def resumed_at_last_batch(trainer: "Trainer") -> bool:
    """Tell whether training goes on from a checkpoint that was taken after the last batch of an epoch."""
    return trainer.is_last_batch and not trainer.fit_loop.epoch_loop.restarted_on_train_batch_end


def epochs_begun(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs a checkpoint has begun; its ``epoch`` counts the last one only once it has ended."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])


def runs_omegaconf(frame: FrameType | None) -> bool:
    """Whether OmegaConf is on the stack of a frame.

    A KeyboardInterrupt raised in OmegaConf leaves configs half copied, so that Hydra prints an AttributeError, with
    its traceback, for 1 in 50 of the Ctrl-C that come while a config is composed. Deferred, none does.
    """
    while frame:
        if frame.f_globals.get("__name__", "").startswith("omegaconf"):
            return True
        frame = frame.f_back
    return False
