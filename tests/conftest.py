"""One finished run that many tests read."""

import logging
import os

import pytest
from hypothesis import settings

os.environ.update(NO_COLOR="1", COLUMNS="100", OMP_NUM_THREADS="1")

from runs import train

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
settings.register_profile("linear_lab", deadline=None)  # a slow machine is no failure
settings.load_profile("linear_lab")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of one finished run of the default config; read it only."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder
