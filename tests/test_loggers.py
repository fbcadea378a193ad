"""Other loggers than TensorBoard's: equal numbers, several loggers at once, and loggers that fail."""

import csv
import gc
import importlib.util
import ipaddress
import json
import logging
import signal
import socket
import struct
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from runs import command, compose, record, resume, scalars, train

from linear_lab import UserError
from linear_lab import train as train_entry
from linear_lab.cli import check_packages
from linear_lab.fitting.callbacks import Interrupted

SHORT = ("trainer.max_epochs=6", "trainer.check_val_every_n_epoch=2")
METHODS = ("log_metrics", "log_hyperparams", "save", "finalize")


class Noting(Logger):
    """Appends its calls to a list of the class; raises in the method that its argument names."""

    calls: ClassVar = []

    def __init__(self, raises=None):
        super().__init__()
        self.raises = raises

    def _call(self, method, *arguments):
        self.calls.append((method, *arguments))
        if method == self.raises:
            raise OSError(f"no room for {method}")

    @property
    def name(self):
        return "noting"

    @property
    def version(self):
        return 0

    @property
    def experiment(self):
        return self._call("experiment")

    def log_metrics(self, metrics, step=None):
        self._call("log_metrics", dict(metrics), step)

    def log_hyperparams(self, params, *_):
        self._call("log_hyperparams", dict(params))

    def save(self):
        self._call("save")

    def finalize(self, status):
        self._call("finalize", status)


class Elsewhere(Noting):
    """A logger that takes a folder."""

    def __init__(self, save_dir, purge=None):
        super().__init__()
        self._call("made", save_dir)

    @property
    def save_dir(self):
        return None


class Interrupts(Callback):
    """Sends SIGINT in the third epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def calls():
    Noting.calls.clear()
    return Noting.calls


def noting(raises=None, name="noting"):
    spec = f"_target_:{__name__}.Noting"
    return f"+logger.{name}={{{spec}{f',raises:{raises}' if raises else ''}}}"


def rows(folder):
    """Return what CSVLogger has written, as ``{tag: [(step, value), ...]}``."""
    with Path(folder, "metrics.csv").open() as file:
        table = [*csv.DictReader(file)]
    tags = [tag for tag in table[0] if tag != "step"]
    return {tag: [(int(row["step"]), float(row[tag])) for row in table if row[tag]] for tag in tags}


def test_two_loggers_see_the_same_numbers(tmp_path):
    train(tmp_path, "logger=[tensorboard,csv]", "logger.tensorboard.pictures=false", *SHORT, "optimizer.lr=0.01")
    found, shown = rows(tmp_path / "version_0"), scalars(tmp_path)
    assert set(found) == set(shown)
    for tag, points in shown.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points]
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in points], rel=1e-6)


def test_the_curves_of_a_run_without_tensorboard(tmp_path):
    result = train(tmp_path, "logger=csv", *SHORT)
    found = rows(tmp_path / "version_0")
    for tag in ("train/loss", "val/loss", "train/excess", "param/weight", "optim/lr", "hp/best_val_loss"):
        assert [step for step, _ in found[tag]] == [0, 2, 4, 6], tag
    assert found["val/loss"][-1] == (6, result["metrics"]["val/loss"])
    assert found["test/loss"] == [(6, result["metrics"]["test/loss"])]
    assert not [*tmp_path.glob("events*")]
    config = yaml.safe_load((tmp_path / "version_0" / "hparams.yaml").read_text())
    assert (config["optimizer.lr"], config["trainer.max_epochs"]) == (0.1, 6)
    assert not [key for key in config if key.startswith(("logger", "output_root", "resume"))]


def test_a_run_that_ends_within_an_epoch_or_diverges_has_its_last_numbers(tmp_path):
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path, "logger=csv", "optimizer.lr=50", "trainer.max_epochs=100")
    steps, measured = record(tmp_path)["steps"], record(tmp_path)["metrics"]
    assert rows(tmp_path / "version_0")["train/loss"][-1] == (steps, measured["train/loss"])


def test_a_resumed_run_has_a_new_version_folder(tmp_path):
    train(tmp_path, "logger=csv", *SHORT)
    before = (tmp_path / "version_0" / "metrics.csv").read_bytes()
    result = resume(tmp_path, "trainer.max_epochs=10")
    assert (tmp_path / "version_0" / "metrics.csv").read_bytes() == before
    found = rows(tmp_path / "version_1")
    assert [step for step, _ in found["val/loss"]] == [8, 10]
    assert found["test/loss"] == [(10, result["metrics"]["test/loss"])]
    once = tmp_path / "once"
    train(once, "logger=csv", "trainer.max_epochs=10", "trainer.check_val_every_n_epoch=2")
    assert found["param/weight"] == rows(once / "version_0")["param/weight"][-2:]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("logger=none", []),
        ("logger=[]", None),
        ("logger=csv", ["csv"]),
        ("logger=[csv,tensorboard]", ["csv", "tensorboard"]),
        ("logger=[none,csv]", ["csv"]),
        ("logger=[tensorboard,csv,wandb,mlflow]", ["tensorboard", "csv", "wandb", "mlflow"]),
    ],
)
def test_logger_options(typed, names, tmp_path):
    if names is not None:
        assert [*compose(typed).logger] == names
        return
    code, _, err = command(train_entry, f"output_root={tmp_path}", typed)
    assert (code, err) == (1, "error: logger=[]: choose one of csv, mlflow, none, tensorboard, wandb\n")


def test_arguments_and_calls_of_each_logger(tmp_path, calls):
    given = f"+logger.given={{_target_:{__name__}.Elsewhere}}"
    named = f"+logger.named={{_target_:{__name__}.Elsewhere,save_dir:/nowhere}}"
    train(tmp_path, "logger=none", given, named, noting(), "trainer.max_epochs=1")
    assert [call for call in calls if call[0] == "made"] == [("made", str(tmp_path)), ("made", "/nowhere")]
    (config,) = {json.dumps(call[1]) for call in calls if call[0] == "log_hyperparams"}
    assert json.loads(config)["loss._target_"] == "torch.nn.MSELoss"
    assert [call[0] for call in calls].count("log_hyperparams") == 3  # once each
    assert [call for call in calls if call[0] == "finalize"] == [("finalize", "success")] * 3
    assert [call[0] for call in calls][-3:] == ["finalize"] * 3


def test_wrong_logger_options_are_refused(tmp_path):
    for typed, said in (
        ("+logger.tensorboard.save_dir=x", "nothing reads logger.tensorboard.save_dir"),
        ("+logger.tensorboard.purge_step=1", "nothing reads logger.tensorboard.purge_step"),
        ("+logger.pictures=false", "did you mean logger.tensorboard.pictures?"),
        ("+logger.x=5", "nothing reads logger.x"),
        ("+logger.x={name:y}", "error: logger.x: {'name': 'y'} is not a logger; see conf/logger for examples"),
        ("+logger.x._target_=torch.nn.MSELoss", "logger.x: {'_target_': 'torch.nn.MSELoss'} is not a logger"),
        ("+logger.x._target_=no.such.Logger", "error: logger.x: Error loading 'no.such.Logger'"),
    ):
        code, _, err = command(train_entry, f"output_root={tmp_path}", typed)
        assert code == 1
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_run_goes_on_without_a_logger_that_raises(method, tmp_path, calls, caplog):
    expected = train(tmp_path / "alone", "logger=none", *SHORT)
    broken, sound = noting(method, "broken"), noting(name="sound")
    result = train(tmp_path / "run", "logger=csv", broken, sound, *SHORT)
    (warning,) = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert warning.getMessage() == f"logger.broken: {method} failed (OSError: no room for {method}); the run goes on"
    assert (result["status"], result["parameters"]) == ("completed", expected["parameters"])
    assert [step for step, _ in rows(tmp_path / "run" / "version_0")["val/loss"]] == [0, 2, 4, 6]
    assert sum(call == ("finalize", "success") for call in calls) == 2


def test_a_logger_that_cannot_begin_is_refused_and_others_are_ended(tmp_path, calls):
    with pytest.raises(UserError, match=r"logger\.broken: no room for experiment"):
        train(tmp_path, "logger=none", noting(), noting("experiment", "broken"))
    assert calls[-1] == ("finalize", "failed")
    assert record(tmp_path)["status"] == "failed"


def test_a_run_that_diverges_ends_its_loggers_as_failed(tmp_path, calls):
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path, "logger=none", noting(), "optimizer.lr=50", "trainer.max_epochs=100")
    assert calls[-1] == ("finalize", "failed")


def test_an_interrupted_run_ends_its_loggers_and_goes_on(tmp_path, calls):
    arguments = ("logger=none", noting(), "trainer.max_epochs=6")
    with pytest.raises(Interrupted):
        train(tmp_path, *arguments, f"+callbacks.stop._target_={__name__}.Interrupts")
    assert record(tmp_path)["status"] == "interrupted"
    assert calls[-1] == ("finalize", "failed")
    resume(tmp_path, f"trust=[{__name__}.Interrupts,{__name__}.Noting]", "callbacks.stop=null")
    assert calls[-1] == ("finalize", "success")
    assert [call[2] for call in calls if call[0] == "log_metrics"][-1] == 6


def test_the_message_of_a_full_disk_stays(tmp_path, monkeypatch):
    from linear_lab.tracking.tensorboard import RunLogger

    def full(self):
        raise UserError("cannot write events")

    monkeypatch.setattr(RunLogger, "save", full)
    with pytest.raises(UserError, match="cannot write events"):
        train(tmp_path, "logger=[tensorboard,csv]", *SHORT)


@pytest.mark.slow("like test_a_page_builds_nothing_that_is_not_allowed")
def test_jobs_of_a_sweep_have_their_own_numbers(tmp_path):
    arguments = (f"output_root={tmp_path}", "name=study", "seed=0,1", "logger=[tensorboard,csv]", *SHORT)
    assert command(train_entry, "-m", *arguments)[0] == 0
    for job in (tmp_path / "sweeps" / "study" / "sgd-seed=0", tmp_path / "sweeps" / "study" / "sgd-seed=1"):
        assert rows(job / "version_0")["test/loss"] == [(6, record(job)["metrics"]["test/loss"])]
        assert record(job)["job"]["pictures"]
    changed = [*arguments, "optimizer.lr=0.02", "overwrite=true"]
    assert command(train_entry, "-m", *changed)[0] == 0
    for job in (tmp_path / "sweeps" / "study").glob("sgd-*"):
        assert [path.name for path in job.glob("version_*")] == ["version_0"]
        assert rows(job / "version_0")["optim/lr"][0] == (0, 0.02)


def test_an_old_run_with_a_single_logger_spec_is_resumed(tmp_path):
    train(tmp_path, "logger=tensorboard", "logger.tensorboard.pictures=false", *SHORT)
    path = tmp_path / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(path)
    cfg.logger = cfg.logger.tensorboard
    path.write_text(OmegaConf.to_yaml(cfg))
    resume(tmp_path, "trainer.max_epochs=8")
    assert [step for step, _ in scalars(tmp_path)["val/loss"]] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("typed", ["logger=wandb", "logger=[tensorboard,mlflow]", "logger=csv,mlflow"])
def test_a_missing_extra_is_named_with_its_install_command(typed, monkeypatch):
    extra = "wandb" if "wandb" in typed else "mlflow"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        check_packages([typed])
    assert str(refused.value).startswith(f"{typed}: a package is missing; run ")
    assert str(refused.value).endswith(f" -m pip install -e '.[{extra}]'")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_packages([typed])


def test_nothing_is_written_through_a_link_in_the_run_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").symlink_to(tmp_path)
    with pytest.raises(UserError, match="run/wandb: it is a symbolic link, and linear_lab never writes"):
        train(tmp_path / "run", "logger=wandb", *SHORT)


@pytest.fixture
def offline(monkeypatch):
    """Forbid connections to other machines, and turn off the packages' own reports."""
    settings = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    connect = socket.socket.connect

    def local(self, address):
        assert self.family == socket.AF_UNIX or ipaddress.ip_address(address[0]).is_loopback, address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def wandb_records(folder):
    """Yield the records of each wandb file of a run, one list per session; the files have LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb")):
        data, at, part, records = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if (rest := 32768 - at % 32768) < 7:
                at += rest
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # the last part of a record
                records.append(Record.FromString(part))
                part = b""
        yield records


def wandb_points(records, tag):
    items = [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in r.history.item} for r in records]
    return [(item["trainer/global_step"], item[tag]) for item in items if tag in item]


def wandb_ends(records):
    return [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]


def wandb_ids(records):
    return {(record.run.run_id, record.run.display_name) for record in records if record.run.run_id}


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_wandb_offline(tmp_path, offline):
    import wandb

    run = tmp_path / "run"
    first = train(run, "logger=wandb", *SHORT)
    assert wandb.run is None
    second = resume(run, "trainer.max_epochs=10")
    assert wandb.run is None
    before, after = wandb_records(run)
    assert [step for step, _ in wandb_points(before, "val/loss")] == [0, 2, 4, 6]
    assert [step for step, _ in wandb_points(before, "param/weight")] == [0, 2, 4, 6]
    assert wandb_points(before, "test/loss") == [(6, first["metrics"]["test/loss"])]
    assert [step for step, _ in wandb_points(after, "val/loss")] == [8, 10]
    assert wandb_points(after, "test/loss") == [(10, second["metrics"]["test/loss"])]
    assert wandb_ends(before) == wandb_ends(after) == [0]
    assert wandb_ids(before) == wandb_ids(after)
    ((name, shown),) = wandb_ids(before)
    assert (len(name), shown) == (16, "run")
    config = {u.key or u.nested_key[0]: u.value_json for r in before for u in r.config.update}
    assert config["optimizer.lr"] == "0.1"
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path / "wild", "logger=wandb", "optimizer.lr=50", "trainer.max_epochs=100")
    assert wandb.run is None
    assert [wandb_ends(records) for records in wandb_records(tmp_path / "wild")] == [[1]]


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_jobs_of_a_sweep_with_wandb(tmp_path, offline):
    arguments = (f"output_root={tmp_path}", "name=study", "seed=0,1", "logger=wandb", *SHORT)
    code, _, err = command(train_entry, "-m", *arguments)
    assert code == 0, err
    names = set()
    for seed in (0, 1):
        job = tmp_path / "sweeps" / "study" / f"sgd-seed={seed}"
        (records,) = wandb_records(job)
        assert wandb_points(records, "test/loss") == [(6, record(job)["metrics"]["test/loss"])]
        names |= wandb_ids(records)
    assert {shown for _, shown in names} == {"sgd-seed=0", "sgd-seed=1"}
    assert len({name for name, _ in names}) == 2


@pytest.fixture
def mlflow_store(tmp_path, offline):
    """Return a function that reads the runs of the store by name, their metrics and their number."""
    from mlflow import MlflowClient

    def read():
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        (experiment,) = [found for found in client.search_experiments() if found.name == "linear_lab"]
        runs = client.search_runs([experiment.experiment_id])

        def points(run, tag):
            return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)]

        return {run.info.run_name: run for run in runs}, points, len(runs)

    yield read
    gc.collect()


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_mlflow_on_sqlite(tmp_path, mlflow_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, root = tmp_path / "runs" / "run", f"output_root={tmp_path}"
    first = train(run, "logger=mlflow", root, *SHORT)
    found, points, count = mlflow_store()
    assert count == 1
    assert [step for step, _ in points(found["run"], "val/loss")] == [0, 2, 4, 6]
    assert points(found["run"], "test/loss") == [(6, first["metrics"]["test/loss"])]
    assert found["run"].data.params["optimizer.lr"] == "0.1"
    assert found["run"].info.status == "FINISHED"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    second = resume(run, "trainer.max_epochs=10")
    found, points, count = mlflow_store()
    assert count == 1
    assert [step for step, _ in points(found["run"], "param/weight")] == [0, 2, 4, 6, 8, 10]
    assert points(found["run"], "test/loss")[-1] == (10, second["metrics"]["test/loss"])
    assert found["run"].info.status == "FINISHED"
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path / "wild", "logger=mlflow", root, "optimizer.lr=50", "trainer.max_epochs=100")
    assert mlflow_store()[0]["wild"].info.status == "FAILED"
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.parametrize("launch", ["local", "joblib"])  # with joblib, two jobs start at once without a database
def test_jobs_of_a_sweep_with_mlflow(launch, tmp_path, mlflow_store):
    arguments = (f"output_root={tmp_path}", f"launch={launch}", "name=study", "seed=0,1", "logger=[csv,mlflow]", *SHORT)
    code, _, err = command(train_entry, "-m", *arguments)
    assert code == 0, err
    found, points, count = mlflow_store()
    assert count == 2
    for seed in (0, 1):
        name = f"sgd-seed={seed}"
        job = tmp_path / "sweeps" / "study" / name
        assert points(found[name], "test/loss") == [(6, record(job)["metrics"]["test/loss"])]
        assert points(found[name], "val/loss") == rows(job / "version_0")["val/loss"]
    code, _, err = command(
        train_entry, f"output_root={tmp_path}", "logger=mlflow", "logger.mlflow.tracking_uri=foo://x"
    )
    assert code == 1
    assert "error: logger.mlflow: " in err


def test_a_logger_of_several_may_be_left_out(tmp_path):
    train(tmp_path, "trainer.max_epochs=2", "+logger.csv={_target_: lightning.pytorch.loggers.CSVLogger}",
        "logger.tensorboard=null")  # fmt: skip
    assert not list(tmp_path.glob("events*"))
    assert len(list(tmp_path.glob("**/metrics.csv"))) == 1
