"""Checkpoints on their way to the disk."""

import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from linear_lab.runs import atomic


class Soon(NamedTuple):
    """How `WholeFileIO` is to write a checkpoint: into several files, soon, and after something else."""

    paths: list[Path]
    first: list[Callable[[], None]]  # so that the curves reach as far as the checkpoint after a kill


def takes_options(strategy: Strategy) -> bool:
    """Tell whether a strategy hands storage options on: those that cut a model into parts refuse them."""
    return type(strategy).save_checkpoint is Strategy.save_checkpoint


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
        if storage_options:
            self.write_due()
        else:
            self.teardown()

    def write_due(self) -> None:
        """Write what is kept, if its time has come."""
        if self.kept and time.monotonic() - self.written >= self.INTERVAL:
            self.teardown()

    def teardown(self) -> None:
        """Write what is kept; what a signal or a full disk leaves unwritten is kept still."""
        for call in self.first if self.kept else ():
            call()
        while self.kept:
            path = next(iter(self.kept))
            path.parent.mkdir(exist_ok=True)
            atomic.replace(path, self.kept[path])
            del self.kept[path]
            self.written = time.monotonic()
