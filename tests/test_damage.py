"""Damaged files in a run folder or a sweep's folder: one message names the file, and no other file changes."""

import io
import json
import shutil

import polars as pl
import pytest
from runs import command, record, resume, slow

from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import leaderboard as leaderboard_entry
from linear_lab import predict as predict_entry
from linear_lab import train as train_entry

COMMANDS = {
    "evaluate": (evaluate_entry, "run={}"),
    "predict": (predict_entry, "run={}", "x=[1]"),
    "export": (export_entry, "run={}"),
    "resume": (train_entry, "resume={}", "trainer.max_epochs=501"),
}
KINDS = ["resume", *slow("the same function reads the file for resume", "evaluate", "predict", "export")]
PARTS = "two of the parts are quick"
DEEP = 20_000  # levels


def changed(**fields):
    """Change fields of a run's record; the value ``...`` removes a field."""

    def damage(content):
        fields_left = {**json.loads(content), **fields}
        return json.dumps({name: value for name, value in fields_left.items() if value is not ...}).encode()

    return damage


RECORDS = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "no object": lambda content: b"[]",
    "null": lambda content: b"null",
    "deep": lambda content: b"[" * DEEP + b"]" * DEEP,
    "deep parameters": lambda content: (
        b'{"status": "completed", "parameters": {"w": ' + b"[" * 150 + b"]" * 150 + b"}}"
    ),
    "huge number": changed(seed=10**400),
    "a long number": lambda content: b'{"seed": ' + b"9" * 10_000 + b"}",
    "no status": changed(status=...),
    "null status": changed(status=None),
    "other status": changed(status="done"),
    "status of another type": changed(status=["completed"]),
    "no versions": changed(versions=...),
    "versions of another type": changed(versions=[1]),
    "a version that is none": changed(versions={"linear_lab": "²"}),
    "metrics of another type": changed(metrics="low"),
    "parameters of another type": changed(parameters=[[1]]),
    "best of another type": changed(best={"step": -1}),
    "steps of another type": changed(steps="500"),
    "rows of another type": changed(rows={"train": None}),
    "initial of another type": changed(initial={"weight": "x"}),
    "seconds of another type": changed(seconds="1"),
    "job of another type": changed(job=3),
}
CONFIGS = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:100] + b"\n  - {",
    "cut at a line": lambda content: content[: content.index(b"optimizer:")],
    "not UTF-8": lambda content: b"# gr\xf6\xdfe\n" + content,
    "control characters": lambda content: b"a: \x00\n" + content,
    "a list": lambda content: b"[1, 2]",
    "a number": lambda content: b"3",
    "a text": lambda content: b"text",
    "deep": lambda content: b"a: " + b"[" * DEEP + b"]" * DEEP,
    "a group that is a number": lambda content: content + b"\ndata: 3\n",
    "a group that is a list": lambda content: content.replace(b"optimizer:", b"optimizer: []\nold:", 1),
    "trainer that is null": lambda content: content.replace(b"trainer:", b"trainer: null\nold:", 1),
    "a reference to nothing": lambda content: content.replace(b"seed: 0", b"seed: ${nope}", 1),
    "a circle": lambda content: content.replace(b"seed: 0", b"seed: ${seed}", 1),
    "half a reference": lambda content: content.replace(b"seed: 0", b"seed: ${", 1),
    "no target": lambda content: content.replace(b"_target_", b"target"),
    "duplicate keys": lambda content: content + content,
}


def files(folder):
    others = {".lock", "train.log"}
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in others}


def refused(kind, folder):
    """Run a command that must fail with a message of one line and change no file; return the message."""
    entry, *arguments = COMMANDS[kind]
    before = files(folder)
    code, out, err = command(entry, *(argument.format(folder) for argument in arguments))
    assert (code, out) == (1, ""), (err, out)
    assert err.startswith("error: "), err
    assert len(err.splitlines()) == 1, err
    assert len(err) < 1000
    assert files(folder) == before
    return err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", RECORDS)
def test_a_damaged_record(damage, kind, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    content = (folder / "result.json").read_bytes()
    (folder / "result.json").write_bytes(RECORDS[damage](content))
    assert "result.json cannot be read (" in refused(kind, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config(damage, kind, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    content = (folder / ".hydra/config.yaml").read_bytes()
    (folder / ".hydra/config.yaml").write_bytes(CONFIGS[damage](content))
    assert "config.yaml" in refused(kind, folder)


def test_a_config_that_is_a_folder(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / ".hydra/config.yaml").unlink()
    (folder / ".hydra/config.yaml").mkdir()
    for kind in COMMANDS:
        assert "config.yaml: cannot be read" in refused(kind, folder)


@pytest.mark.parametrize("kind", ["evaluate", "predict", "export"])
def test_a_run_that_failed_on_its_data_is_not_to_be_resumed(kind, tmp_path):
    data = ("data=table", f"data.path={tmp_path / 'no.csv'}", "data.y=[c]")
    assert command(train_entry, f"output_root={tmp_path}", *data)[0] == 1
    (folder,) = (tmp_path / "runs").iterdir()
    said = refused(kind, folder)
    assert "it failed before its first checkpoint (data: path=" in said
    assert said.endswith("; train a new run\n")


@pytest.mark.parametrize(
    "lost", ["best", "config_hash", *slow(PARTS, "initial", "first_step", "columns", "rows", "seed", "metrics")]
)
@pytest.mark.parametrize("status", ["running", "completed"])
def test_a_record_that_was_written_in_part_is_completed_by_resume(status, lost, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    whole = record(folder)
    part = {name: value for name, value in whole.items() if name != lost}
    (folder / "result.json").write_text(json.dumps(part | {"status": status}))
    after = resume(folder)
    assert (after["status"], after["metrics"]) == ("completed", whole["metrics"])
    assert lost in ("initial", "first_step") or after[lost] == whole[lost]


@pytest.mark.parametrize("left", [(), (".hydra/config.yaml",), (".hydra/config.yaml", "result.json")])
@pytest.mark.slow("like test_a_job_that_goes_on_brings_page_and_leaderboard_up_to_date")
def test_a_job_that_was_killed_as_it_began_goes_on(left, swept, tmp_path):
    sweep = shutil.copytree(swept, tmp_path / "sweeps" / swept.name)
    job = sweep / "sgd-lr=0.1"
    whole = record(job)
    fields = ("versions", "seed", "config_hash", "job")
    begun = {"status": "running", "error": None} | {name: whole[name] for name in fields}
    for path in [path for path in job.rglob("*") if path.is_file()]:
        if str(path.relative_to(job)) not in left:
            path.unlink()
    if "result.json" in left:
        (job / "result.json").write_text(json.dumps(begun))
        code, _, err = command(train_entry, f"resume={job}")
        assert (code, err) == (0, "")
        assert {**record(job), "seconds": 0} == {**whole, "seconds": 0}
    else:
        assert "it has no result.json, so it is not a run folder" in refused("resume", job)


def parquet(**columns):
    def damage(content):
        file = io.BytesIO()
        pl.DataFrame(columns).write_parquet(file)
        return file.getvalue()

    return damage


PLANS = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "text": lambda content: b"name,config_hash\n",
    "without columns": parquet(),
    "without names": parquet(config_hash=["0"]),
    "a name that is null": parquet(name=[None, "sgd"], config_hash=["0", "1"]),
    "names of another type": parquet(name=[["sgd"]], config_hash=["0"]),
    "bytes": parquet(name=[b"\xff\xfe"], config_hash=[b"\xff"]),
}
SETTINGS = {
    "empty": b"",
    "cut": b'{"metric": "val/',
    "a list": b"[1]",
    "null": b"null",
    "deep": b"[" * DEEP,
    "not UTF-8": b'{"metric": "\xff"}',
    "other types": b'{"metric": 3, "mode": ["min"]}',
}


def rank(sweep):
    """Run the leaderboard command; return its output, and the rows of leaderboard.csv."""
    code, out, err = command(leaderboard_entry, f"sweep={sweep}")
    assert code == 0, err
    assert "Traceback" not in out + err
    return out, (sweep / "leaderboard.csv").read_text().splitlines()[1:]


@pytest.mark.slow("test_results damages the columns of such a table")
@pytest.mark.parametrize("damage", PLANS)
def test_a_damaged_plan_costs_only_the_jobs_that_never_started(damage, swept, tmp_path):
    sweep = shutil.copytree(swept, tmp_path / swept.name)
    before = rank(sweep)[1]
    (sweep / "plan.parquet").write_bytes(PLANS[damage]((sweep / "plan.parquet").read_bytes()))
    out, rows = rank(sweep)
    assert "plan.parquet cannot be read (" in out
    assert [row.split(",")[:2] for row in rows] == [row.split(",")[:2] for row in before]
    code, _, err = command(train_entry, f"resume={sweep / 'sgd-lr=0.1'}", "trainer.max_epochs=61")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("damage", SETTINGS)
@pytest.mark.slow("like test_the_leaderboard_of_the_latest_sweep")
def test_damaged_settings_of_a_sweep_are_taken_from_its_jobs(damage, swept, tmp_path):
    sweep = shutil.copytree(swept, tmp_path / swept.name)
    before = rank(sweep)[1]
    (sweep / "sweep.json").write_bytes(SETTINGS[damage])
    assert rank(sweep)[1] == before
