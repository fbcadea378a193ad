"""A callback that makes jobs fail, in any process."""

import os
import signal
import time
from pathlib import Path

from lightning.pytorch import Callback

from linear_lab.fitting.callbacks import StopOnSignal


class Doom(Callback):
    """Raises, kills its process, or waits, depending on the seed, from the third epoch on; notes that it got so far."""

    def __init__(self, seed, folder, raises=None, kills=None, waits=None):
        self.seed, self.folder = seed, Path(folder)
        self.raises, self.kills, self.waits = raises, kills, waits
        self.said = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch < 2 or self.said:
            return
        self.said = True
        with (self.folder / f"begun-{self.seed}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.seed == self.raises:
            raise RuntimeError("doomed")
        if self.seed == self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, StopOnSignal))
        while self.seed == self.waits and not stop.signum and not (self.folder / "open").exists():
            time.sleep(0.02)
