"""Fixtures of runs that many tests read. Each is trained once, by the first pytest process that needs it."""

import logging
import os
import resource
import signal

import pytest
from filelock import FileLock
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background processes so
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.update(NO_COLOR="1", COLUMNS="100", OMP_NUM_THREADS="1")

from runs import command, train

from linear_lab import train as train_entry

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
settings.register_profile("linear_lab", deadline=None)  # a slow machine must not fail a test
settings.load_profile("linear_lab")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder by calling a function, unless another pytest process has made it; tests must not change it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name, function):
        folder = root / name
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.done").exists():
                function(folder)
                (root / f"{name}.done").touch()
        return folder

    return make


@pytest.fixture
def quota():
    """Limit the size of files, so that writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def finished(once):
    """The folder of one finished run of the default config, with pictures."""
    return once("finished", lambda folder: train(folder, "logger=tensorboard"))


@pytest.fixture(scope="session")
def swept(once):
    """The folder of a sweep of six jobs, one of which diverged, with its page."""
    (folder,) = (once("swept", train_sweep) / "sweeps").iterdir()
    return folder


def train_sweep(root):
    overrides = ("optimizer=sgd,adam", "optimizer.lr=0.01,0.1,0.5", "seed=3", "trainer.max_epochs=60")
    assert command(train_entry, "-m", f"output_root={root}", *overrides)[0] == 0
