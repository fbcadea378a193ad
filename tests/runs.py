"""Functions that compose configs, run commands in this process, and read the files of runs."""

import copy
import functools
import io
import json
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from linear_lab import cli
from linear_lab.cli import CONF
from linear_lab.fitting import run
from linear_lab.sweep.composer import Composer


class Noted(Callback):
    """Does nothing with a value."""

    def __init__(self, note):
        self.note = note


def slow(reason, *cases, several=False):
    """Mark cases for `pytest.mark.parametrize` as slow for a reason; with ``several``, each has several arguments."""
    mark = pytest.mark.slow(reason)
    return [pytest.param(*(case if several else (case,)), marks=mark) for case in cases]


def compose(*overrides, name="train"):
    """Return the config that the command line would compose. Options are composed once, since this takes time."""
    chosen = tuple(o for o in overrides if o[0] in "+~" or (CONF / o.partition("=")[0]).is_dir())
    cfg = copy.deepcopy(composed(name, chosen))
    for override in OverridesParser.create().parse_overrides([o for o in overrides if o not in chosen]):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


@functools.cache
def composed(name, overrides):
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, list(overrides))


@functools.cache
def loader():
    """Hydra's, of conf/."""
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def load(overrides):
    """Return the config that Hydra composes, including the node hydra."""
    return loader().load_configuration("train", list(overrides), run_mode=RunMode.RUN)


def composer(load=load):
    """Return a composer for the jobs of a sweep, which uses a function that composes one config."""
    made = Composer(load, loader().get_group_options, {"optimizer": "sgd", "data": "toy"}.get, "/base")
    made.steering = ["name=study"]
    return made


def train(folder, *overrides):
    """Train in a folder, in this process; return the record. Pictures, which take long, are off by default."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not any(override.startswith("logger") for override in overrides):
        overrides += ("logger.tensorboard.pictures=false",)
    run.train(compose(*overrides), folder)
    return record(folder)


def command(entry, *arguments):
    """Run a command in this process; return its exit code, standard output and standard error."""
    root, before, out, errors, code = logging.getLogger(), sys.argv, io.StringIO(), io.StringIO(), 0
    handlers = root.handlers[:]
    sys.argv = ["linear-lab", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            entry.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        logging.captureWarnings(False)
    return code, out.getvalue(), errors.getvalue()


def resume(folder, *overrides):
    """Resume a run folder; return the record."""
    saved = OmegaConf.create((Path(folder) / ".hydra" / "config.yaml").read_text())
    changes = OmegaConf.from_dotlist([f"resume={folder}", *overrides])
    run.train(OmegaConf.merge(saved, changes), folder, [f"resume={folder}", *overrides])
    return record(folder)


def record(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def events(folder):
    """Return the events that TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(folder):
    """Return the scalars that TensorBoard shows of a run, as tag -> [(step, value), ...]."""
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
