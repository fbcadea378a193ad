"""Fingerprints of a sweep's jobs: computed as columns, they equal those of each job's config."""

import functools
import itertools
import json
import time

import hydra.errors
import numpy as np
import polars as pl
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from runs import command, composer, load, loader, slow

from linear_lab import UserError
from linear_lab import train as entry
from linear_lab.cli import CONF
from linear_lab.config import make_paths_absolute
from linear_lab.overrides import dotted
from linear_lab.runs import fingerprints
from linear_lab.sweep import plan
from linear_lab.sweep.inventory import is_steering

GROUPS = ("data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")
VALUES = (
    "0", "-3", "1e-4", "0.1", "1.0", "1e22", "nan", "-inf", "true", "false", "null", "adam", "'größe'", "''", "'1'",
    "1", "'yes'", "'a: b'", "' a '", "'???'", "${seed}", "'${optimizer.lr}'", "'x-${seed}'", f"'{'a b ' * 60}'", "[]",
    "[1,2.5]", "[a,'b c',null]", "[[1,2],[3]]", "['${seed}']", "[0.8,'${optimizer.lr}']", "{a:1}", "{_target_:x,b:[1]}",
    "[{a:1}]", "'${oc.env:NOT_SET,${seed}}'", "'=.,\"\\n'",
)  # fmt: skip
NUMBERS = ("0", "-3", "1e-4", "0.1", "1.0", "1", "nan", "true", "null", "'1'", "[0.5,0.9]", "'a: b'")
REFUSED = (OmegaConfBaseException, hydra.errors.HydraException)


shared = functools.cache(composer)  # one for all tests: composing takes 0.2 s


def by_hydra(overrides):
    cfg = load([*overrides, "name=study"])
    with open_dict(cfg):
        cfg.pop("hydra")
    make_paths_absolute(cfg, "/base")
    return cfg


def combinations(*typed, limit=10_000):
    parser = OverridesParser.create(config_loader=loader())
    return plan.grid(parser.parse_overrides(list(typed)), limit, "")


def alone(overrides):
    """Return the fingerprints of one job, computed from its config; None if it cannot be composed."""
    try:
        config, cfg = shared()(overrides), shared().config(overrides)
    except REFUSED:
        return None
    return fingerprints.config_hash(config), plan.group_hash(cfg), fingerprints.problem_hash(config)


def deciding(overrides):
    """Return the parts of a config that affect results, as text, in which 1, 1.0 and true differ."""
    config = {key: value for key, value in shared()(overrides).items() if key not in fingerprints.NOT_HASHED}
    return json.dumps(config, sort_keys=True)


def check(typed):
    """Check that the fingerprints of a grid are those of its jobs; return the table."""
    jobs = plan.overrides(typed).to_list()
    expected = [alone(overrides) for overrides in jobs]
    try:
        assert repr(shared()(jobs[0])) == repr(OmegaConf.to_container(by_hydra(jobs[0]), resolve=True))
    except REFUSED:
        assert expected[0] is None
    if None in expected:
        with pytest.raises(UserError):
            plan.with_fingerprints(typed, shared())
        return None
    found = plan.with_fingerprints(typed, shared())
    assert found.select(typed.columns).equals(typed)  # the rows have kept their order
    assert [*found.select("config_hash", "group", "problem").iter_rows()] == expected
    configs = [deciding(overrides) for overrides in jobs]
    pairs = {*zip(configs, found["config_hash"], strict=True)}
    assert len(pairs) == len({*configs}) == found["config_hash"].n_unique()  # equal exactly for equal configs
    planned = plan.plan_jobs(typed, shared())
    assert planned["config_hash"].to_list() == found["config_hash"].unique(maintain_order=True).to_list()
    assert planned["name"].n_unique() == len(planned)
    return found


@functools.cache
def keys(shape):
    """Return all keys that a job may set, including those of dicts and lists."""
    return [
        key
        for key in dotted(OmegaConf.to_container(by_hydra(shape)))
        if not (CONF / key).is_dir() and not is_steering(key)
    ]


@st.composite
def typed_grids(draw, values=VALUES):
    """Draw grids of groups and keys, in any order."""
    chosen = {
        group: draw(st.sampled_from([None, *sorted(file.stem for file in (CONF / group).glob("*.yaml"))]))
        for group in GROUPS
    }
    shape = tuple(f"{group}={option}" for group, option in chosen.items() if option)
    typed = draw(st.lists(st.sampled_from([*keys(shape), "seed", "optimizer.lr", "+note"]), max_size=4, unique=True))
    swept = [f"{key}={','.join(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)))}" for key in typed]
    return draw(st.permutations([*shape, *swept]))


@settings(max_examples=settings().max_examples // 4)  # each composes many configs
@example(["seed=[0.8,'${optimizer.lr}']", "optimizer.lr=0"])  # without the seed, no leaf has the rate
@given(typed_grids())
@pytest.mark.slow("draws many grids; test_each_kind_of_value has one of each kind")
def test_fingerprints_of_a_grid_are_those_of_its_jobs(typed):
    check(combinations(*typed))


@settings(max_examples=settings().max_examples // 4)
@given(typed_grids(NUMBERS), st.randoms(use_true_random=False))
@pytest.mark.slow("draws many grids; test_each_kind_of_value has one of each kind")
def test_fingerprints_do_not_depend_on_the_order_in_which_keys_are_typed(typed, order):
    names = [item.partition("=")[0] for item in typed]
    if any(one != other and one.startswith(f"{other}.") for one in names for other in names):
        return  # one key contains the other, so the last one counts
    found = check(combinations(*typed))
    order.shuffle(typed)
    other = check(combinations(*typed))
    assert (found is None) == (other is None)
    if found is not None:
        assert found.sort(sorted(names)).equals(other.select(found.columns).sort(sorted(names)))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "$ {") + "'"


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(TEXT, min_size=1, max_size=4), st.lists(TEXT, min_size=1, max_size=2), st.booleans())
@pytest.mark.slow("draws many texts; test_each_kind_of_value has some")
def test_hostile_texts(ones, others, structural):
    added = "+note" if structural and len(ones) == 1 else "metric"
    lines = [[f"{added}={quoted(one)}", f"data.batch_size=[{quoted(two)}]", "seed=1"] for one in ones for two in others]
    try:
        OverridesParser.create().parse_overrides([line for row in lines for line in row])
    except hydra.errors.HydraException:
        return  # Hydra's grammar refuses the text
    check(plan.listed(lines))


GRIDS = {
    "what follows": "scheduler=cosine trainer.max_epochs=7,9 seed=1,2",
    "the order of batches": "data.order_seed=0,1,${seed} seed=0,1 data.batch_size=null,2",
    "numbers": "optimizer.lr=0.1,1e-05,1,1.0,1e22,-inf,nan,-0.0,0.0",
    "kinds": "model.bias=true,false,1,1.0,'1',null,[1]",
    "lists": "optimizer=adam optimizer.betas=[0.9,0.99],[],[0.9],[0.9,0.99,1]",
    "a reference in a list": "optimizer=adam optimizer.betas=[0.8,'${optimizer.lr}'] optimizer.lr=0.1,0.2",
    "a reference among lists": "optimizer=adam optimizer.betas=[0.8,'${optimizer.lr}'],[0.8,0.1] optimizer.lr=0.1,0.2",
    "paths": "data=table data.path=a.csv,/b.csv,null,a.csv",
    "checkpoints": "data=table data.path=a.csv,b.csv ckpt_path=a.ckpt,/b.ckpt,null",
    "tags": "tags=[a,b] seed=1,2",
    "a path that is referred to": "data=table data.path=a.csv,b.csv +note='${data.path}' seed=1,2",
    "one key twice": "seed=1,2 optimizer.lr=0.1,0.2 seed=3,4",
    "one in another": "console.steps=1,2 console={steps:2}",
    "one in another, the other way": "console={steps:2},{steps:3} console.steps=1,2 model={bias:false}",
    "additions": "+note=a,b seed=1,2 ++seed=1 ++other=2,3",
    "seeds by force": "++seed=1,2 optimizer.lr=0.1,0.2",
    "nothing taken away": "~callbacks.checkpoints seed=1,2",
    "a part of a text": "+note='lr-${seed}' seed=1,2 optimizer.lr=0.1,0.2",
    "parts of a text": "+note='${optimizer.lr}-${seed}','x' seed=1,2 optimizer.lr=0.1,0.2 data.batch_size=2,4",
    "a part of a list": "optimizer=adam +note='${optimizer.betas[0]}' optimizer.betas=[0.9,0.99],[0.8,0.99]",
    "a function": "+n='${gpus:${trainer.accelerator},${trainer.devices}}' trainer.accelerator=cpu,gpu seed=1,2",
    "a function that makes a text": "+n='${oc.env:NOT_SET,${seed}}' seed=1,2",
    "a function within a text": "+n='a-${oc.select:seed,3}-b' seed=1,2",
    "a key by the value of another one": "+which=lr,momentum +n='${optimizer.${which}}' seed=1,2",
    "references": "model.bias=1,${seed},'???',[1],['${seed}']",
    "a list where a group of values is": "console=1,{steps:3}",
    "no such list": "console=1,[1]",
    "no such list in a column": "console=[1],[2]",
    "dots in keys": "+note={a.b:1},{a:{b:1}},{a:{b:1.0}}",
    "groups": "optimizer=sgd,adam data=toy,synthetic optimizer.lr=0.1,0.2 seed=1,2",
    "an experiment": "experiment=debug,notebook seed=1,2",
    "problems": "data.train.x=[1,2,3,4],[1,2,3,5] loss=mse,mae data.batch_size=2,4 model.bias=true,false",
    "what decides nothing": "output_root=a,b resume=null console.steps=0,1 logger=none,tensorboard",
    "no such key": "optimizer=adam,sgd optimizer.momentum=1",
    "no such reference": "+note='${nothing}' seed=1,2",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [*[*GRIDS][::3], *slow("a third of the kinds is quick", *[*GRIDS][1::3], *[*GRIDS][2::3])]
)
def test_each_kind_of_value(name):
    found = check(combinations(*GRIDS[name].split()))
    assert (found is None) == name.startswith("no such")


def test_one_job_for_which_no_key_was_typed():
    planned = plan.plan_jobs(combinations(), shared())
    assert planned.select("name", "config_hash").rows() == [("sgd", fingerprints.config_hash(shared()([])))]
    assert plan.overrides(planned).to_list() == [[]]


def test_jobs_that_set_other_keys_than_others():
    check(plan.listed([["seed=1"], ["optimizer.lr=0.2"], ["optimizer.lr=0.3", "seed=2"]]))


def test_groups_are_what_differs_in_the_seed_alone():
    found = check(combinations("seed=0,1,2", "optimizer.lr=0.1,0.2", "data.batch_size=2"))
    assert found["config_hash"].n_unique() == 6
    assert found["group"].n_unique() == 2
    assert found["problem"].n_unique() == 1
    assert found.filter(found["group"] == found["group"][0])["optimizer.lr"].unique().to_list() == ["0.1"]


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_rows_are_in_the_order_of_all_combinations(values):
    found = combinations(*(f"+k{number}={','.join(map(str, row))}" for number, row in enumerate(values)))
    assert [*found.iter_rows()] == [*itertools.product(*([str(value) for value in row] for row in values))]
    assert found.columns == [f"+k{number}" for number in range(len(values))]


@pytest.mark.parametrize(
    "text", ["range(0.1,0.4,0.1)", "range(0.001,0.301,0.001)", "range(0,0.99,0.0033)", "range(5,0,-2)", "range(3)",
             "range(1,2,0.3)", "shuffle(range(9))", "range(1,0,-0.1)", "choice(a,b)", "glob(*)"],
)  # fmt: skip
def test_ranges_have_the_values_that_hydra_gives_them_in_decimals(text):
    (override,) = OverridesParser.create(config_loader=loader()).parse_overrides([f"optimizer={text}"])
    found = combinations(f"optimizer={text}", "seed=1,2")
    texts, wanted = {*found["optimizer"]}, {*override.sweep_string_iterator()}
    if "." in text:  # Hydra gives 0.30000000000000004 for 0.3, and may give one more value
        assert all(len(value) <= 6 for value in texts)
        assert all(min(abs(float(value) - float(other)) for other in wanted) < 1e-12 for value in texts)
        assert len(wanted) - 1 <= len(texts) <= len(wanted)
    else:
        assert texts == wanted
    assert len(found) == 2 * len(texts) == 2 * plan.count_of(override)


def test_hydra_composes_once_for_each_choice_of_groups():
    loaded = []
    made = composer(lambda lines: (loaded.append(tuple(lines)), load(lines))[1])
    typed = combinations(
        "optimizer=sgd,adam", "optimizer.lr=range(0.1,0.3,0.01)", "seed=range(20)", "model.bias=true,false"
    )
    found = plan.plan_jobs(typed, made)
    assert len(found) == len(typed) == 2 * 20 * 20 * 2
    assert sorted(loaded) == [("optimizer=adam",), ("optimizer=sgd",)]
    for row in np.random.default_rng(0).choice(len(found), 8, replace=False):
        (overrides,) = plan.overrides(found[int(row)])
        assert found["config_hash"][int(row)] == fingerprints.config_hash(made(overrides.to_list()))
    first, second = (made([f"optimizer.lr={lr}", "optimizer=adam"]) for lr in (1, 2))
    assert second["optimizer"] == first["optimizer"] | {"lr": 2}
    assert len(loaded) == 2


@pytest.mark.parametrize("typed", [("seed=range(10000000)",), ("seed=range(10000)", "data.seed=range(1000)")])
@pytest.mark.parametrize(
    ("launch", "remedy"),
    [
        ("stacked", "more than 2,000,000; set hydra.launcher.limit=<number> to train more"),
        ("local", "more than 100,000; launch=stacked can train more"),
    ],
)
def test_too_many_jobs_are_refused_at_once(typed, launch, remedy, tmp_path):
    data = ("data=synthetic",) if len(typed) > 1 else ()
    started = time.process_time()
    code, out, errors = command(entry, "-m", f"output_root={tmp_path}", f"launch={launch}", "name=study", *data, *typed)
    assert (code, out) == (1, "")
    assert errors == f"error: the sweep has 10,000,000 jobs, which is {remedy}\n"
    assert time.process_time() - started < 5
    assert not [*tmp_path.glob("sweeps/*")]


@pytest.mark.parametrize("text", ["range(0,inf)", "range(0.0,1.0,0)", "range(1,2,0)", "interval(0,1)"])
def test_a_range_without_end_is_refused(text):
    with pytest.raises(UserError, match="has infinitely many values"):
        combinations(f"seed={text}")


def test_the_hash_is_of_what_decides_the_numbers():
    config = {"seed": 0, "optimizer": {"lr": 0.1, "_target_": "SGD"}, "output_root": "a", "console": {"steps": 0}}
    same = {"console": {"steps": 2}, "output_root": "b", "optimizer": {"_target_": "SGD", "lr": 0.1}, "seed": 0}
    assert fingerprints.config_hash(config) == fingerprints.config_hash(same)
    assert fingerprints.config_hash(config) != fingerprints.config_hash(config | {"seed": 1})


def test_a_config_without_checkpoint_and_tags_has_the_fingerprint_of_one_from_before_there_were_any():
    config = shared()(["seed=1"])
    assert (config.pop("ckpt_path"), config.pop("tags")) == (None, [])
    before = fingerprints.config_hash(config)
    assert fingerprints.config_hash(shared()(["seed=1", "tags=[a]"])) == before
    assert fingerprints.config_hash(shared()(["seed=1", "ckpt_path=a.ckpt"])) != before


def test_a_key_and_the_group_that_holds_it_are_composed_together():
    assert shared().places([], ["optimizer", "optimizer.lr", "seed"]) == {"optimizer.lr"}


def test_jobs_for_which_no_key_was_typed_have_no_overrides():
    jobs = pl.DataFrame({"name": ["a", "b"], "config_hash": ["0", "1"]})
    assert plan.overrides(jobs).to_list() == [[], []]
    assert plan.overrides(jobs.with_columns(seed=pl.Series(["3", None]))).to_list() == [["seed=3"], []]


def test_a_problem_is_the_data_the_loss_and_the_form_of_the_model():
    def problem(*overrides):
        return fingerprints.problem_hash(shared()(list(overrides)))

    others = ("data.train.y=[2,4,6,9]", "loss=mae", "model.bias=false", "model=mlp")
    assert len({problem(), *map(problem, others)}) == len(others) + 1
    for same in ("seed=1", "optimizer=adam", "model.bias=3", "data.batch_size=2", "trainer.max_epochs=3"):
        assert problem(same) == problem()
