"""Configs of jobs, composed by templates: as Hydra composes each of them."""

import functools

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from linear_lab import cli
from linear_lab.cli import CONF
from linear_lab.run import config_hash
from linear_lab.sweep.composer import Composer, absolute_paths
from linear_lab.sweep.plan import group_hash

GROUPS = ("data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")
VALUES = (
    "0", "-3", "1e-4", "0.1", "1e22", "nan", "-inf", "true", "null", "adam", "größe", "''", "'1'", "'yes'", "'a: b'",
    "' a '", "'???'", "${seed}", "'${optimizer.lr}'", "'x-${seed}'", f"'{'a b ' * 60}'", "[]", "[1,2.5]",
    "[a,'b c',null]", "[[1,2],[3]]", "['${seed}']", "{a:1}", "{_target_:x,b:[1]}", "[{a:1}]", "value-1-is-put-in-here",
)  # fmt: skip


@functools.cache
def loader():
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@functools.cache
def composer():
    """One for all tests: templates are there for what comes later."""
    made = Composer(lambda lines: load(lines), loader().get_group_options, lambda group: "", "/base")
    made.steering = ["name=study"]
    return made


def load(overrides):
    return loader().load_configuration("train", list(overrides), run_mode=RunMode.RUN)


def by_hydra(overrides):
    cfg = load([*overrides, "name=study"])
    with open_dict(cfg):
        cfg.pop("hydra")
    absolute_paths(cfg, "/base")
    return cfg


def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=True)


def saved(cfg):
    """As `experiment.fit` has a run keep it."""
    return OmegaConf.to_yaml(OmegaConf.merge(cfg, {"scheduler": plain(cfg)["scheduler"], "resume": None}))


def referring(cfg):
    """Groups and keys of values with a reference in them."""
    groups = {name: values for name, values in OmegaConf.to_container(cfg).items() if isinstance(values, dict)}
    return [(name, key) for name, values in groups.items() for key in values if "${" in str(values[key])]


def tried(function, *arguments):
    """What a function returns, as text, so that 1 is not true; or that it refuses."""
    try:
        return repr(function(*arguments))
    except (OmegaConfBaseException, HydraException):
        return "refused"


def check(overrides, times=1):
    try:
        cfg = by_hydra(overrides)
    except (OmegaConfBaseException, HydraException):
        expected = ["refused"] * 3
    else:
        expected = [tried(plain, cfg), tried(saved, cfg), repr(cfg)]
        assert composer().referring(overrides) == referring(cfg)
    for _ in range(times):
        assert [tried(function, overrides) for function in (composer(), composer().yaml, composer().config)] == expected


@functools.cache
def keys(shape):
    """All keys that a job may set, those of containers among them."""
    cfg = by_hydra(shape)
    return [key for key in cli.keys(cfg) if not (CONF / key).is_dir()]


@st.composite
def jobs(draw):
    """Jobs that set the same keys."""
    chosen = {group: draw(st.sampled_from([None, *cli.options(group)])) for group in GROUPS}
    shape = tuple(f"{group}={option}" for group, option in chosen.items() if option)
    typed = draw(st.lists(st.sampled_from(keys(shape)), max_size=3))
    rows = draw(st.lists(st.tuples(*(st.sampled_from(VALUES) for _ in typed)), min_size=2, max_size=2))
    return [[*shape, *(f"{key}={value}" for key, value in zip(typed, row, strict=True))] for row in rows]


@settings(max_examples=12)
@given(jobs())
def test_configs_are_as_hydra_composes_them(rows):
    for overrides in rows:
        check(overrides)


ROWS = {
    "what follows": ("scheduler=cosine trainer.max_epochs=7 seed=1", "scheduler=cosine trainer.max_epochs=9 seed=2"),
    "numbers": [f"optimizer.lr={value}" for value in ("0.1", "1e-05", "1", "1e22", "-inf", "nan")],
    "kinds": [f"model.bias={value}" for value in ("true", "1", "1.0", "'1'", "null")],
    "lists": ("optimizer=adam optimizer.betas=[0.9,0.99]", "optimizer=adam optimizer.betas=[]"),
    "paths": [f"data=table data.path={path}" for path in ("a.csv", "/b.csv", "null")],
    "one key twice": ("seed=1 seed=2", "seed=3 seed=4"),
    "one in another": ("console.steps=1 console={steps:2}", "console={steps:2} console.steps=1"),
    "additions": ("+note=a seed=1", "+note=a seed=2", "+note=c seed=2", "~console seed=1"),
    "a part of a text": ("+note='lr-${seed}' seed=1", "+note='lr-${seed}' seed=2"),
    "a function": [f"+n='${{gpus:${{trainer.accelerator}},1}}' trainer.accelerator={kind}" for kind in ("cpu", "gpu")],
    "references": [f"model.bias={value}" for value in ("1", "${seed}", "'???'", "[1]", "['${seed}']")],
    "a list where a group of values is": ("console=1", "console=[1]"),
    "no such key": ("optimizer=adam optimizer.momentum=1", "optimizer.momentum=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_each_kind_of_value(name):
    for overrides in ROWS[name]:
        check(overrides.split(), times=2)


def test_fingerprints_are_those_that_jobs_record():
    rows = [[f"seed={seed}", f"optimizer.lr={lr}", "data.batch_size=2"] for seed in (0, 1) for lr in (0.1, 0.2)]
    for overrides in rows:
        assert composer().group(overrides) == group_hash(by_hydra(overrides))
        assert config_hash(composer()(overrides)) == config_hash(plain(by_hydra(overrides)))
    assert len({composer().group(overrides) for overrides in rows}) == 2


def test_jobs_that_differ_in_a_value_share_the_rest_and_are_composed_once():
    loaded = []
    made = Composer(lambda lines: (loaded.append(lines), load(lines))[1], loader().get_group_options, str, "/base")
    first, second, third = (made([f"optimizer.lr={lr}", "optimizer=adam"]) for lr in (1, 2, 3))
    assert loaded == [["optimizer=adam"]]
    assert [second["optimizer"]["lr"], third["optimizer"]["lr"]] == [2, 3]
    assert second["trainer"] is third["trainer"]
    assert first["optimizer"] == second["optimizer"] | {"lr": 1}
