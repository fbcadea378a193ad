"""Fixtures of runs that many tests read. Each is trained once, by the first pytest process that needs it."""

import copy
import functools
import gc
import logging
import os
import resource
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background processes so
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.update(NO_COLOR="1", COLUMNS="100", OMP_NUM_THREADS="1")

from runs import command, train

from linear_lab import train as train_entry
from linear_lab.cli import CONF

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
settings.register_profile("quick", deadline=None, max_examples=20)  # a slow machine must not fail a test
settings.register_profile("slow", deadline=None, max_examples=60)


def remember(method):
    """Let a method of Hydra's loader copy its last answer: a command composes three times, each takes 0.07 s."""
    answers = {}

    @functools.wraps(method)
    def answer(self, *options, **more):
        _, main, *others = self.get_search_path().get_path()
        if str(CONF) not in main.path or len(others) > 1 or "searchpath" in str((options, more)):
            return method(self, *options, **more)  # asks for a user's files, which may change
        key = main.path, str(Path.cwd()), str((options, more))
        if key not in answers:
            if len(answers) == 8:  # many would make each garbage collection slow
                answers.clear()
            answers[key] = method(self, *options, **more)
        return copy.deepcopy(answers[key])

    return answer


ConfigLoaderImpl.load_configuration = remember(ConfigLoaderImpl.load_configuration)
ConfigLoaderImpl.get_group_options = remember(ConfigLoaderImpl.get_group_options)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
    settings.load_profile("slow" if config.getoption("--slow") else "quick")


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked slow, unless --slow is given."""
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish():
    """Take what has been imported out of garbage collection: launch=local collects after each job, which took 0.1 s."""
    gc.collect()
    gc.freeze()


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
