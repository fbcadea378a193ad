"""One finished run that many tests read."""

import logging
import os

import pytest

os.environ.update(NO_COLOR="1", COLUMNS="100", OMP_NUM_THREADS="1")

from runs import train

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of one finished run of the default config; read it only."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder
