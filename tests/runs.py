"""Composing a config, training it in this process, and reading what it left."""

import json
from pathlib import Path

import hydra
from omegaconf import OmegaConf

from linear_lab import experiment, run
from linear_lab.cli import CONF


def compose(*overrides, name="train"):
    """The config that the command line would compose."""
    OmegaConf.register_new_resolver("new_folder", run.new, replace=True)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def train(folder, *overrides):
    """Train in a folder, in this process; the record."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    experiment.train(compose(*overrides), folder)
    return record(folder)


def resume(folder, *overrides):
    """Go on in a folder; the record."""
    saved = OmegaConf.create((Path(folder) / ".hydra" / "config.yaml").read_text())
    changes = OmegaConf.from_dotlist([f"resume={folder}", *overrides])
    experiment.train(OmegaConf.merge(saved, changes), folder, [f"resume={folder}", *overrides])
    return record(folder)


def record(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def scalars(folder):
    """What TensorBoard shows of a run: tag -> [(step, value), ...]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
