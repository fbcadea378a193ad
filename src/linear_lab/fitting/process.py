"""Restores the state of the process after a run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def restored_process(folder: str | Path, threads: int | None = None) -> Iterator[None]:
    """Restore the state of the process afterwards, so that the next job of a sweep equals the same job alone.

    Inside, ``sys.argv`` is the command that resumes the run in ``folder``; DDP starts its other processes with it.
    ``threads`` sets the number of CPU threads, on which the last bits of sums depend; None does not change it.
    """
    arguments, environment = sys.argv, dict(os.environ)
    rng_state, threads_before = torch.get_rng_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    sys.argv = [sys.argv[0], f"resume={Path(folder).resolve()}"]
    try:
        if threads:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(threads_before)
        leave_group()
        sys.argv = arguments
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:  # only what changed: another thread may be reading the environment
                os.environ[name] = value
        torch.set_rng_state(rng_state)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def leave_group() -> None:
    """Leave the group of DDP's processes, which end after training, so that nothing waits for them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
