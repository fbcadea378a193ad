"""The package's Python interface, as notebooks and scripts use it."""

import polars as pl
import pytest
import torch
from runs import record, train

import linear_lab
from linear_lab import UserError

SHORT = ["trainer.max_epochs=20", "logger=none"]


def test_a_run_equals_that_of_the_command(tmp_path):
    cfg = linear_lab.compose(["optimizer=adam", "optimizer.lr=0.05", *SHORT])
    result = linear_lab.train_run(cfg, tmp_path / "run")
    expected = train(tmp_path / "typed", "optimizer=adam", "optimizer.lr=0.05", *SHORT)
    assert record(tmp_path / "run")["parameters"] == expected["parameters"]
    assert result.record.status == "completed"
    assert result.history["step"].to_list() == [0, 10, 20]
    assert result.history["val/loss"][-1] == expected["metrics"]["val/loss"]
    assert result.history["train/loss"][0] == expected["initial"]["train/loss"]
    assert isinstance(result.model(torch.ones(1, 1)), torch.Tensor)


def test_a_new_run_lies_in_output_root(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = linear_lab.train_run(linear_lab.compose(["data.batch_size=2", "trainer.max_epochs=1"]))
    assert result.folder.parent == tmp_path / "outputs" / "runs"
    assert result.folder.name.endswith("-sgd")
    assert capsys.readouterr().out == ""
    linear_lab.train_run(linear_lab.compose(SHORT), show=True)
    assert "SGD lr=0.1" in capsys.readouterr().out


def test_the_config_may_be_changed_and_stays_as_it_was(tmp_path):
    cfg = linear_lab.compose(SHORT)
    cfg.optimizer.lr = 0.02
    before = cfg.copy()
    assert linear_lab.train_run(cfg, tmp_path / "run").record.status == "completed"
    assert cfg == before


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["lr=0.1"], r"nothing reads lr; did you mean optimizer\.lr\?"),
        (["optimizer=adm"], r"optimizer=adm: choose one of .* did you mean optimizer=adam\?"),
        (["seed=1,2"], "seed=1,2: several values"),
    ],
)
def test_a_mistake_in_an_override_has_the_message_of_the_command(typed, message):
    with pytest.raises(UserError, match=message):
        linear_lab.compose(typed)


def test_a_run_that_diverges_raises(tmp_path):
    with pytest.raises(UserError, match="diverged at step"):
        linear_lab.train_run(linear_lab.compose(["optimizer.lr=9", *SHORT]), tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "diverged"


def test_a_folder_that_holds_a_run_is_refused(finished):
    with pytest.raises(UserError, match="already holds a run"):
        linear_lab.train_run(linear_lab.compose(SHORT), finished)


def test_options_of_ones_own(tmp_path):
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "nadam.yaml").write_text("_target_: torch.optim.NAdam\nlr: 0.02\n")
    assert linear_lab.compose(["optimizer=nadam"], tmp_path / "conf").optimizer.lr == 0.02


def test_a_sweep_gives_its_leaderboard(tmp_path):
    typed = ["launch=stacked", "optimizer.lr=0.01,0.1,9", "hydra.launcher.keep=0", *SHORT]
    table = linear_lab.train_sweep(typed, "study", output_root=tmp_path)
    assert table["status"].to_list() == ["completed", "completed", "diverged"]
    assert table["optimizer.lr"].to_list() == [0.1, 0.01, 9.0]
    assert isinstance(table, pl.DataFrame)
    with pytest.raises(UserError, match="nothing reads lr"):
        linear_lab.train_sweep(["lr=1,2"], "other", output_root=tmp_path)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        linear_lab.trian  # noqa: B018
