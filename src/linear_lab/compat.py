"""All uses of undocumented names of libraries, one function each, with the reason for it."""

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
    """Import torch and Lightning in this block without garbage collection, and exempt what they load from it.

    Measured on a default run: 4.0 s instead of 5.3 s.
    """
    if "torch" in sys.modules:  # a job of a sweep: freezing again would keep its config in memory
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def validation_follows(trainer: "Trainer", batch_idx: int) -> bool:
    """Tell whether Lightning validates after this batch; a run resumed from before the validation would skip it."""
    every, batches = trainer.check_val_every_n_epoch, batch_idx + 1
    if every is None:  # val_check_interval counts over epochs
        batches = trainer.fit_loop.total_batch_idx + 1
    elif (trainer.current_epoch + 1) % every:
        return False
    check = trainer.val_check_batch
    return bool(trainer.enable_validation and check is not None and not batches % check)


def validate_after_batch(trainer: "Trainer", batch_idx: int, *, ends_training: bool) -> bool:
    """Have Lightning validate after this batch, in any case; returns whether there is validation data.

    Otherwise, curves and checkpoints of a run whose length is no multiple of the interval end before the final model.
    """
    trainer.check_val_every_n_epoch = 1
    if ends_training and trainer.enable_validation:
        trainer.val_check_batch = batch_idx + 1
    return trainer.enable_validation


def is_measured_without_validation(trainer: "Trainer") -> bool:
    """Tell whether the end of this epoch replaces a validation, as there is no validation data to make checkpoints."""
    every = trainer.check_val_every_n_epoch
    due = every is None or not (trainer.current_epoch + 1) % every or trainer.should_stop
    validates = trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))
    return due and not validates and trainer.limit_val_batches != 0


def begin_next_epoch(trainer: "Trainer") -> None:
    """Make a run that is resumed at the end of an epoch begin with the next epoch, also with ``max_steps``.

    Lightning would end that epoch a second time and count it twice, so the run would reach ``max_epochs`` too early.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    for part in (loop, loop.epoch_loop):
        part._restarting = False
        part.reset_restart_stage()


def resumed_at_last_batch(trainer: "Trainer") -> bool:
    """Tell whether training was resumed from a checkpoint after the last batch of an epoch."""
    return trainer.is_last_batch and not trainer.fit_loop.epoch_loop.restarted_on_train_batch_end


def epochs_begun(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs had begun at a checkpoint; its ``epoch`` counts only those that had ended."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])


def runs_omegaconf(frame: FrameType | None) -> bool:
    """Tell whether OmegaConf is on the stack of a frame.

    A KeyboardInterrupt that is raised in OmegaConf leaves configs half copied: in 1 of 50 interrupted compositions,
    Hydra then printed the traceback of an AttributeError. With a deferred KeyboardInterrupt, it never did.
    """
    while frame:
        if frame.f_globals.get("__name__", "").startswith("omegaconf"):
            return True
        frame = frame.f_back
    return False
