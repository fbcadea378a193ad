"""What a process of a pool owes the others. Imports no torch: a pool loads this before Hydra has set its logs up."""

import functools
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from linear_lab import UserError
from linear_lab.runs import atomic


def end_with_parent() -> None:
    """End this process of a pool when the one that started it is gone: nobody would wait for its jobs."""
    starter = multiprocessing.parent_process()
    parent = starter.pid if starter else os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # saves
        time.sleep(10)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache  # for the life of the process: CUDA looks once
def leased_gpu() -> str:
    """Take a GPU that no other process of a pool has; the kernel gives it back when this one ends.

    Raises:
        UserError: if there is none left.
    """
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))  # names, or numbers of all GPUs
    for name in visible.split(",")[:count]:
        lock = Path(tempfile.gettempdir(), f"linear_lab-{os.getuid()}-gpu{atomic.plain(name)}.lock")
        file = os.open(lock, os.O_RDWR | os.O_CREAT)
        if atomic.taken(file):
            return name
        os.close(file)
    raise UserError(f"launch=joblib: all {count} GPUs are taken; try hydra.launcher.n_jobs={max(count, 1)}")
