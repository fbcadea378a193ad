"""Folders from elsewhere build only classes that the user has allowed."""

import shutil
import sys

import polars as pl
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from runs import command, record, slow

from linear_lab import UserError
from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import leaderboard as leaderboard_entry
from linear_lab import predict as predict_entry
from linear_lab import train as train_entry
from linear_lab.config import saved_config
from linear_lab.fitting.trust import check_targets
from linear_lab.models import LinearModule
from linear_lab.runs.folder import Run
from linear_lab.sweep.inventory import read_jobs
from linear_lab.sweep.plan import EMPTY
from linear_lab.sweep.results import VERSION

SHORT = ("trainer.max_epochs=2", "logger=none")
SPAWN = "setuptools._distutils.spawn.spawn"


class OwnModule(LinearModule):
    """A module that conf/ does not name."""


class OwnCallback(Callback):
    """A callback that conf/ does not name."""


@pytest.fixture
def stranger(finished, tmp_path, monkeypatch):
    """Copy a run into the working directory, with a module whose import would leave a file `mark`."""
    folder = tmp_path / "outputs" / "runs" / "r"
    shutil.copytree(finished, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass L: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    assert not (tmp_path / "mark").exists()
    assert not any(name.startswith("outputs") for name in sys.modules)


def change(folder, **groups):
    path = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in groups.items():
        config[key] = config[key] | value if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    path.write_text(yaml.safe_dump(config))


EVIL = {
    "data": {"_target_": SPAWN, "cmd": ["touch", "mark"]},
    "model": {"_target_": "outputs.runs.r.evil.L"},
    "loss": {"_target_": "outputs.runs.r.evil.L"},
    "optimizer": {"_target_": "torch.load", "f": "mark"},
    "scheduler": {"_target_": "pathlib.Path.write_text"},
    "callbacks": {"own": {"_target_": SPAWN, "cmd": ["touch", "mark"]}},
    "logger": {"tensorboard": {"_target_": "linear_lab.runs.folder.Run", "path": "mark"}},
    "trainer": {"plugins": [{"_target_": SPAWN, "cmd": ["touch", "mark"]}]},
}


@pytest.mark.parametrize(
    "group",
    [
        "logger",
        "trainer",
        *slow("the same function checks all", *(name for name in EVIL if name not in ("logger", "trainer"))),
    ],
)
def test_a_config_from_disk_builds_only_classes_of_the_right_kind(group, stranger):
    change(stranger, **{group: EVIL[group]})
    for entry, *arguments in (
        (evaluate_entry, "run={}"), (predict_entry, "run={}", "x=[1]"), (export_entry, "run={}"),
        (train_entry, "resume={}", "trainer.max_epochs=60"),
    ):  # fmt: skip
        code, _, err = command(entry, *(argument.format(stranger) for argument in arguments))
        assert code == 1
        assert "config.yaml: " in err
        assert f"{group}." in err
        assert "Traceback" not in err
    assert record(stranger)["status"] == "completed"


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"data": {"train": {"_target_": SPAWN}}}, f"data.train._target_={SPAWN} comes from this file alone"),
        ({"data": {"a": [[{"_target_": "os.system"}]]}}, "data.a.0.0._target_=os.system comes"),
        ({"loss": {"_target_": "torch.nn.functional.mse_loss"}}, "non-class of type 'function'"),
        ({"loss": {"_target_": "torch.optim.SGD"}}, "loss._target_=torch.optim.SGD is not a Module"),
        ({"loss": {"_target_": "linear_lab.runs.atomic.os.PathLike"}}, "is not a Module"),
        ({"loss": {"_target_": "torch.nothing.Loss"}}, "loss._target_=torch.nothing.Loss: Error loading"),
        ({"loss": {"_target_": "torch"}}, "comes from this file alone"),
        ({"loss": {"_target_": None}}, "loss._target_=None comes"),
        ({"callbacks": {"a": {"b": {"_target_": "torch.utils.tensorboard.SummaryWriter"}}}}, "is not a Module"),
        (
            {"callbacks": {"_target_": "torch.optim.SGD", "_partial_": True}},
            "callbacks._target_=torch.optim.SGD is not a Callback",
        ),
        ({"logger": {"_target_": "torch.optim.SGD"}}, "logger._target_=torch.optim.SGD is not a Logger"),
        ({"logger": {"csv": {"_target_": "torch.optim.SGD"}}}, "logger.csv._target_=torch.optim.SGD is not a Logger"),
        ({"_target_": "torch.nn.MSELoss"}, "_target_=torch.nn.MSELoss is not a part of a run"),
        ({"x": {"_target_": "torch.nn.MSELoss"}}, "x._target_=torch.nn.MSELoss is not a part of a run"),
        ({"loss": {"_target_": "torch.utils.model_dump.__main__.X"}}, "comes from this file alone"),
        (
            {"trainer": {"plugins": [{"_target_": "lightning.pytorch.Trainer"}]}},
            "Trainer is not a Strategy or Precision",
        ),
        (
            {"data": {"x": {"_target_": "linear_lab.data.ToyData"}}},
            "data.x._target_=linear_lab.data.ToyData is not a Module",
        ),
    ],
)
def test_targets_are_refused_before_anything_is_called(node, words, tmp_path):
    with pytest.raises(UserError) as refused:
        check_targets(node, tmp_path / "config.yaml")
    assert str(refused.value).startswith(str(tmp_path / "config.yaml"))
    assert words in str(refused.value)


@pytest.mark.slow("eight commands; test_a_checkpoint_cannot_name_other_classes checks the same list")
def test_classes_that_the_user_names_are_built(tmp_path, monkeypatch):
    own = f"{__name__}.OwnModule"
    code, out, _ = command(train_entry, f"output_root={tmp_path}", f"model._target_={own}", *SHORT)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0
    hints = [line.split("run=")[-1].split("resume=")[-1].split() for line in out.splitlines()[-3:]]
    assert [words[1] for words in hints] == [f"trust={own}"] * 3  # evaluate, predict, go on
    code, _, err = command(evaluate_entry, f"run={folder}")
    assert code == 1
    assert f"model._target_={own} comes from this file alone" in err
    assert f"add trust={own}" in err
    config = tmp_path / "conf" / "model"
    config.mkdir(parents=True)
    (config / "own.yaml").write_text(f"_target_: {own}\n")
    for epochs, allowed in enumerate(((f"trust={own}",), (f"trust=[a.B,{own}]",), ("--config-dir", config.parent)), 4):
        for entry, *arguments in (
            (evaluate_entry, "run={}"), (predict_entry, "run={}", "x=[1]"), (export_entry, "run={}"),
            (train_entry, "resume={}", f"trainer.max_epochs={epochs}"),
        ):  # fmt: skip
            assert command(entry, *(argument.format(folder) for argument in arguments), *allowed)[::2] == (0, "")
    own = f"{__name__}.OwnCallback"
    typed = f"+callbacks.own={{_target_: {own}}}"
    assert (
        command(train_entry, f"resume={folder}", "trainer.max_epochs=8", typed, f"trust={__name__}.OwnModule")[0] == 0
    )
    code, _, err = command(train_entry, f"resume={folder}", "trainer.max_epochs=9", f"trust={__name__}.OwnModule")
    assert (code, f"callbacks.own._target_={own} comes" in err) == (1, True)
    assert saved_config(Run(folder))["trust"] is None  # a config cannot trust itself
    change(folder, trust=own)
    code, _, err = command(train_entry, f"resume={folder}", "trainer.max_epochs=9", f"trust={__name__}.OwnModule")
    assert (code, f"callbacks.own._target_={own} comes" in err) == (1, True)


def test_a_checkpoint_cannot_name_other_classes(stranger):
    for checkpoint in (stranger / "checkpoints").iterdir():
        content = torch.load(checkpoint, weights_only=True)
        content["hyper_parameters"]["loss"] = {"_target_": "outputs.runs.r.evil.L"}
        torch.save(content, checkpoint)
    for entry, *arguments in ((predict_entry, "x=[1]"), (export_entry,)):
        code, _, err = command(entry, f"run={stranger}", *arguments)
        assert code == 1
        assert "best.ckpt: loss._target_=outputs.runs.r.evil.L comes from this file alone" in err


@pytest.mark.parametrize(
    "value", ["${new_folder:made}", *slow("the same", "${oc.env:HOME}", "a${oc.env:HOME}", "${${x}:1}", "${x:${seed}}")]
)
@pytest.mark.parametrize("key", ["data.path", "output_root", "trainer.max_epochs", "callbacks.a.b"])
def test_a_config_from_disk_resolves_no_interpolation(key, value, stranger, tmp_path):
    path = stranger / ".hydra" / "config.yaml"
    config = OmegaConf.load(path)
    config.a = "$"
    OmegaConf.update(config, key, value, force_add=True)
    path.write_text(OmegaConf.to_yaml(config))
    for entry, argument in ((evaluate_entry, "run="), (train_entry, "resume=")):
        code, _, err = command(entry, f"{argument}{stranger}")
        assert code == 1
        assert f"{key}={value.replace('${a}', '$')} is an expression" in err
    assert not (tmp_path / "made").exists()


def test_two_joined_values_name_no_target(stranger):
    path = stranger / ".hydra" / "config.yaml"
    config = OmegaConf.load(path)
    config.a = "$"
    config.data.train = "${a}{oc.create:{_target_:setuptools._distutils.spawn.spawn,cmd:[touch,mark]}}"
    path.write_text(OmegaConf.to_yaml(config))
    for entry, argument in ((evaluate_entry, "run="), (train_entry, "resume=")):
        code, _, err = command(entry, f"{argument}{stranger}")
        assert (code, "is an expression" in err) == (1, True)


def test_interpolations_in_names_of_columns_stay_text(tmp_path):
    names = ("${sweep_folder:" + str(tmp_path) + ",made}", "${oc.env:HOME}")
    (tmp_path / "my.csv").write_text(
        f'"{names[0]}","{names[1]}",c\n' + "".join(f"{k},{k * k},{k}\n" for k in range(20))
    )
    given = ("data=table", f"data.path={tmp_path / 'my.csv'}", "data.y=[c]", f"output_root={tmp_path / 'out'}", *SHORT)
    assert command(train_entry, *given)[::2] == (0, "")
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    assert record(folder)["columns"]["x"] == [*names]
    assert command(export_entry, f"run={folder}")[::2] == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"my.csv", "out"}


def test_typed_interpolations_are_resolved_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RATE", "0.05")
    typed = "optimizer.lr='${oc.decode:${oc.env:RATE}}'"
    assert command(train_entry, f"output_root={tmp_path}", typed, *SHORT)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    config = OmegaConf.to_container(saved_config(Run(folder)))
    assert config["optimizer"]["lr"] == 0.05
    assert config["data"]["order_seed"] == "${seed}"
    monkeypatch.delenv("RATE")
    assert command(evaluate_entry, f"run={folder}")[::2] == (0, "")


@pytest.mark.parametrize("text", ["", "a: [", "[]", "data: {_target_: 1", "\0", "- 1", "${x}", "a: b: c", "[" * 5000])
@pytest.mark.slow("like test_a_damaged_config")
def test_a_config_that_cannot_be_read(text, stranger):
    (stranger / ".hydra" / "config.yaml").write_text(text)
    for entry, argument in ((evaluate_entry, "run="), (train_entry, "resume=")):
        code, _, err = command(entry, f"{argument}{stranger}")
        assert code == 1
        assert "config.yaml: " in err
        assert "restore the file, or train a new run" in err


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    own = f"model._target_={__name__}.OwnModule"
    code, _, err = command(
        train_entry, "-m", f"output_root={folder}", "name=s", "optimizer.lr=0.1,0.2", own, "trainer.max_epochs=2"
    )
    assert (code, err) == (0, "")  # the page of the user's own sweep needs no trust
    return folder / "sweeps" / "s"


def test_a_page_builds_nothing_that_is_not_allowed(sweep, tmp_path, caplog):
    folder = shutil.copytree(sweep, tmp_path / "s")
    own = f"{__name__}.OwnModule"
    events = {path.name for path in (folder / "_sweep").iterdir()}
    for shown in folder.glob("_sweep/shown"):
        shown.unlink()
    code, out, err = command(leaderboard_entry, f"sweep={folder}", "page=true")
    assert code == 0
    assert f"model._target_={own} comes from this file alone" in out + err + caplog.text
    assert {path.name for path in (folder / "_sweep").iterdir()} == events - {"shown"}
    caplog.clear()
    assert command(leaderboard_entry, f"sweep={folder}", "page=true", f"trust={own}")[0] == 0
    assert "comes from this file alone" not in caplog.text
    assert (folder / "_sweep" / "shown").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../../../x",
        "a\x1b[2J",
        *slow("the same function refuses them", "/tmp/x", "a/b", "..", ".hidden", "_sweep", "-x", "a\nb", ""),
    ],
)
def test_names_of_jobs_in_a_plan_are_checked(name, sweep, tmp_path):
    folder = shutil.copytree(sweep, tmp_path / "a" / "b" / "c" / "s")
    shutil.rmtree(folder / "_sweep")
    before = {*tmp_path.rglob("*")}
    plan = pl.read_parquet(folder / "plan.parquet", memory_map=False)
    plan.with_columns(name=pl.lit(name) + pl.lit("")).head(1).write_parquet(folder / "plan.parquet", metadata=VERSION)
    jobs, notes = read_jobs(folder)
    assert notes == [
        f"plan.parquet cannot be read ({name!r} cannot be the name of a job), so jobs that never started are not listed"
    ]
    assert len(jobs) == 2
    results = pl.concat([EMPTY, pl.DataFrame({"name": [name]})], how="diagonal").with_columns(
        status=pl.lit("completed")
    )
    results.write_parquet(folder / "results.parquet", metadata=VERSION)
    assert f"results.parquet: cannot be read ({name!r} cannot be the name of a job)" in read_jobs(folder)[1][1]
    given = (
        "-m",
        f"output_root={folder.parent.parent}",
        f"hydra.sweep.dir={folder}",
        "overwrite=true",
        "optimizer.lr=0.1",
    )
    command(train_entry, *given, *SHORT)
    assert {path for path in tmp_path.rglob("*") if path.parent not in (folder, *folder.iterdir())} - before <= {
        path for path in tmp_path.rglob("*") if path.is_relative_to(folder)
    }
