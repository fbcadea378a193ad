"""Every option of every config group, found by listing the folders."""

import inspect

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from runs import command, compose, train

from linear_lab import UserError
from linear_lab import train as train_entry
from linear_lab.cli import CONF
from linear_lab.fitting.build import build
from linear_lab.fitting.checks import check

GROUPS = [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"]
OPTIONS = [f"{group}={path.stem}" for group in sorted(GROUPS) for path in sorted((CONF / group).glob("*.yaml"))]
MARKED = {
    "launch=ray": pytest.mark.cluster,
    "logger=mlflow": pytest.mark.loggers,
    "logger=wandb": pytest.mark.loggers,
}
SHORT = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")


def test_the_groups_are_there():
    assert set(GROUPS) == {
        "callbacks", "data", "experiment", "launch", "logger", "loss", "model", "optimizer", "scheduler", "sweep",
        "trainer",
    }  # fmt: skip
    assert len(OPTIONS) > 25


@pytest.mark.parametrize("option", [pytest.param(option, marks=MARKED.get(option, ())) for option in OPTIONS])
def test_every_option_composes_builds_and_trains(option, tmp_path):
    OmegaConf.to_container(compose(option), resolve=True, throw_on_missing=True)
    if option in ("trainer=gpu",) and not torch.cuda.is_available():
        cfg = compose(option)
        build(cfg)
        assert cfg.trainer.accelerator == "gpu"
        with pytest.raises(Exception, match="run with trainer=cpu"):
            check(cfg)
        return
    if option == "trainer=ddp":  # test_cli.py starts its processes
        cfg = compose(option)
        build(cfg)
        assert (cfg.trainer.strategy, cfg.trainer.devices) == ("ddp", 2)
        return
    lr = ["optimizer.lr=0.01"] if option != "experiment=autograd" else []
    (tmp_path / "my.csv").write_text("a,c\n" + "".join(f"{k},{3 * k - 1}\n" for k in range(20)))
    besides = {
        "data=table": [f"data.path={tmp_path / 'my.csv'}", "data.y=c"],
        "data=toy_classes": ["loss=cross_entropy"],
        "loss=cross_entropy": ["data=toy_classes"],
    }
    result = train(
        tmp_path / "run", option, *besides.get(option, []), *lr, *([] if option.startswith("experiment") else SHORT)
    )
    assert result["status"] == "completed"
    assert result["metrics"]["train/loss"] < result["initial"]["train/loss"]
    assert {name for name in result["metrics"] if name.endswith("/loss")} == {"train/loss", "val/loss", "test/loss"}


def test_all_trainer_arguments_can_be_set_without_a_plus():
    ours = {"self", "callbacks", "logger", "default_root_dir"}
    assert set(inspect.signature(Trainer.__init__).parameters) - ours <= set(compose().trainer)


def test_every_value_says_what_it_is():
    """A YAML comment states effect and range, in the file itself or in the line."""
    for path in CONF.rglob("*.yaml"):
        assert "#" in path.read_text() or path.parent.parent.name == "hydra", path


def test_an_optimizer_is_a_file_of_a_few_lines(tmp_path):
    option = tmp_path / "conf" / "optimizer" / "nadam.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: torch.optim.NAdam\nlr: 0.1\n")
    typed = ("--config-dir", tmp_path / "conf", "optimizer=nadam", f"hydra.run.dir={tmp_path}/run", *SHORT)
    code, out, err = command(train_entry, *typed)
    assert code == 0, err
    assert "NAdam lr=0.1" in out


@pytest.mark.parametrize("lr", [-1, 0, "abc", float("nan"), float("inf"), True, None])
def test_lr_must_be_a_positive_number(lr):
    cfg = compose()
    cfg.optimizer.lr = lr
    with pytest.raises(UserError, match=r"optimizer: lr must be a positive number, got .*; try optimizer\.lr=0\.01"):
        check(cfg)
