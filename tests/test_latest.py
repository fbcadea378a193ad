"""run=latest, resume=latest and sweep=latest: the folder whose record, or checkpoint, was written last."""

import os
import shutil

import pytest
import yaml
from runs import command, record

from linear_lab import UserError
from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import leaderboard as leaderboard_entry
from linear_lab import predict as predict_entry
from linear_lab import train as train_entry
from linear_lab.latest import with_latest


def make(root, second, *names):
    """Make folders with empty records, or without one, written at that second."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        os.utime(path, (second, second))


@pytest.mark.parametrize(
    ("key", "kind", "file"),
    [("run", "runs", "checkpoints/last.ckpt"), ("resume", "runs", "result.json"), ("folder", "sweeps", "sweep.json")],
)
def test_the_record_that_was_written_last_decides(key, kind, file, tmp_path, capsys):
    folder = tmp_path / kind
    make(folder, 3, f"b/{file}")
    make(folder, 2, f"c/{file}")
    make(folder, 4, "without/train.log", f".hidden/{file}", file)
    (folder / "broken" / file).parent.mkdir(parents=True)
    (folder / "broken" / file).symlink_to("nowhere")
    typed = "sweep" if key == "folder" else key
    assert with_latest([f"{key}='latest'", "-m", "seed=1"], str(tmp_path)) == [
        f"{key}='{folder / 'b'}'",
        "-m",
        "seed=1",
    ]
    assert capsys.readouterr().out == f"{typed}=latest is {folder / 'b'}\n"
    make(folder, 5, f"d=e's/{file}")
    assert with_latest([f"{key}=latest", "--cfg", "job"], str(tmp_path))[0] == f"{key}='{folder}/d=e\\'s'"
    assert capsys.readouterr().out == ""  # nothing but YAML


@pytest.mark.parametrize("other", ["run=./latest", "run=outputs/latest", "name=latest", "sweep=latest"])
def test_another_name_or_key_stays(other, tmp_path):
    assert with_latest([other], str(tmp_path)) == [other]


@pytest.mark.parametrize(
    ("entry", "key", "words"),
    [
        (evaluate_entry, "run", "outputs/runs has a checkpoints/last.ckpt"),
        (predict_entry, "run", "outputs/runs has a checkpoints/last.ckpt"),
        (export_entry, "run", "outputs/runs has a checkpoints/last.ckpt"),
        (train_entry, "resume", "outputs/runs has a result.json"),
        (leaderboard_entry, "sweep", "outputs/sweeps has a sweep.json"),
    ],
)
def test_none_is_there(entry, key, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"error: {key}=latest: no folder in {words}; train first, or name a folder\n"
    assert command(entry, f"{key}=latest") == (1, "", message)


def test_none_is_there_below_another_root(tmp_path):
    with pytest.raises(UserError, match=f"no folder in {tmp_path}/runs has"):
        with_latest(["resume=latest"], str(tmp_path))


@pytest.mark.slow("like test_a_checkpoint_of_odd_content_is_replaced_by_the_other_one")
def test_commands_on_the_latest_run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        shutil.copytree(finished, tmp_path / "outputs/runs" / name)
        os.utime(tmp_path / "outputs/runs" / name / "result.json")
        os.utime(tmp_path / "outputs/runs" / name / "checkpoints" / "last.ckpt")
    for entry, *typed in ((evaluate_entry,), (predict_entry, "x=[1]"), (export_entry,)):
        code, out, err = command(entry, "run=latest", *typed)
        assert (code, err) == (0, "")
        assert out.startswith("run=latest is outputs/runs/second\n")
    assert (tmp_path / "outputs/runs/second/model.pt2").exists()
    code, out, err = command(train_entry, "resume=latest", "trainer.max_epochs=501")
    assert (code, err) == (0, "")
    assert "resume=outputs/runs/second" in out
    assert record(tmp_path / "outputs/runs/second")["steps"] == 501
    assert record(tmp_path / "outputs/runs/first")["steps"] == 500
    assert "resume='outputs/runs/second'" in (tmp_path / "outputs/runs/second/.hydra/overrides.yaml").read_text()
    failed = tmp_path / "outputs/runs/third"  # before its first checkpoint: there is nothing to evaluate
    shutil.copytree(finished, failed, ignore=lambda *_: ["checkpoints"])
    assert command(evaluate_entry, "run=latest")[1].startswith("run=latest is outputs/runs/second\n")
    shutil.rmtree(failed)
    (tmp_path / "outputs").rename("elsewhere")
    code, out, _ = command(train_entry, "resume=latest", "output_root=elsewhere", "--cfg", "job")
    assert code == 0
    assert yaml.safe_load(out)["resume"] == "elsewhere/runs/second"


def test_the_leaderboard_of_the_latest_sweep(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(swept, tmp_path / "outputs/sweeps/study")
    code, out, err = command(leaderboard_entry, "sweep=latest")
    assert (code, err) == (0, "")
    assert out.startswith("sweep=latest is outputs/sweeps/study\n")
