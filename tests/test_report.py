"""What the terminal shows, in a terminal, a pipe, a narrow one, and without colour."""

import io
import json
import logging
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from browser import served
from rich.console import Console
from runs import train

from linear_lab.data.schema import Schema
from linear_lab.runs.record import read
from linear_lab.terminal import layout, report


def shown(tmp_path, monkeypatch, *overrides, **options):
    """The text that a run prints on a console of the given kind."""
    file = io.StringIO()
    monkeypatch.setattr(layout, "screen", lambda: layout.Screen(file=file, highlight=False, markup=False, **options))
    train(tmp_path, *overrides)
    return file.getvalue()


@pytest.mark.slow("like test_a_run_leaves_no_file_open")
def test_three_parts_and_nothing_else(tmp_path, capsys):
    train(tmp_path)
    captured = capsys.readouterr()
    assert captured.err == ""
    plan, progress, lines, losses, commands = re.split(r"\n\s*\n", captured.out.strip())
    assert [row.split()[0] for row in plan.splitlines()] == [
        "data", "model", "loss", "optimizer", "stable", "trainer", "folder"
    ]  # fmt: skip
    assert re.fullmatch(r"training  step 500  loss \S+", progress)
    assert lines.startswith("start ")
    assert {"train/loss", "val/loss", "test/loss"} <= set(losses.split())
    assert [row.split()[0] for row in commands.splitlines()] == ["look", "evaluate", "predict", "go"]
    assert f"python -m linear_lab.evaluate run={tmp_path}\n" in commands


@pytest.mark.parametrize(
    ("given", "plan", "more"),
    [
        (["trainer.max_epochs=2"], "2 epochs", ["max_epochs"]),
        (["trainer.max_steps=2"], "2 steps", ["max_steps"]),
        (["trainer.max_steps=2", "trainer.max_epochs=2"], "2 steps", ["max_epochs", "max_steps"]),
        (["trainer.max_epochs=-1", "trainer.max_steps=1"], "1 step", ["max_steps"]),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"], "max_time 00:00:00:01", ["max_time"]),
    ],
)
@pytest.mark.slow("like test_no_logger_leaves_no_events")
def test_the_limit_that_ended_the_run_is_the_one_to_raise(given, plan, more, tmp_path, capsys):
    train(tmp_path, *given, "logger=none")
    out = capsys.readouterr().out
    assert f"1 CPU, {plan} " in out
    assert out.rstrip().endswith(" ".join(["", *(f"trainer.{limit}=<more>" for limit in more)]))
    assert out.count("<more>") == len(more)


@pytest.mark.parametrize("profiler", ["simple", "{_target_: lightning.pytorch.profilers.SimpleProfiler}"])
def test_the_report_of_a_profiler_is_where_the_plan_says(profiler, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a command: pytest's would stand in for train.log
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    with caplog.at_level("INFO", "lightning.pytorch"):
        train(tmp_path, "trainer.max_epochs=2", f"trainer.profiler={profiler}")
    assert "\nprofile    in train.log after training " in capsys.readouterr().out
    assert "FIT Profiler Report" in (tmp_path / "train.log").read_text()


def test_a_pipe_has_no_control_characters(tmp_path, capsys):
    train(tmp_path, "trainer.max_epochs=2", "console.steps=1")
    assert "\x1b" not in capsys.readouterr().out


def test_the_first_run_says_where_its_words_are_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(layout.CHECKOUT)
    train(tmp_path / "first", "trainer.max_epochs=2", "logger=none")
    words = "docs/glossary.md explains stable lr, optimum, excess loss, val/loss"
    assert f"\n{words}\n" in capsys.readouterr().out
    train(tmp_path / "second", "trainer.max_epochs=2", "logger=none")
    assert "explains" not in capsys.readouterr().out


def test_without_a_checkout_help_explains_the_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "CHECKOUT", None)
    train(tmp_path / "first", "trainer.max_epochs=2", "logger=none", "loss=mae", "optimizer=adam")
    assert "python -m linear_lab.train --help explains val/loss" in " ".join(capsys.readouterr().out.split())
    text = layout.help_text("train")
    assert all(f"\n  {words} " in text for words in ("stable lr", "optimum", "excess loss", "val/loss", "best, last"))


def test_the_outcome_says_which_checkpoint_holds_which_step(tmp_path, capsys):
    given = ("data=synthetic", "data.batch_size=4", "optimizer.lr=0.5", "trainer.max_epochs=3", "data.samples=60")
    result = train(tmp_path, *given, "trainer.check_val_every_n_epoch=1", "logger=none")
    best, last = result["best"]["step"], result["steps"]
    assert best != last
    out = " ".join(capsys.readouterr().out.split())
    assert f" step {last}, last step {best}, best optimum " in out
    assert f"best.ckpt has step {best} with the best val/loss, last.ckpt step {last}; " in out


def test_a_terminal_has_one_bar(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, force_terminal=True, width=80, no_color=True)
    assert "500/500" in text
    assert "\x1b[3" not in text  # no colour
    assert "━" in text


@pytest.mark.slow("like test_a_run_leaves_no_file_open")
def test_a_narrow_terminal_keeps_every_word_and_pasteable_commands(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, width=30)
    kinds = ("python -m", "make dashboard")
    commands = [row for row in text.splitlines() if any(kind in row for kind in kinds)]
    assert len(commands) == 4
    rest = [row for row in text.splitlines() if row not in commands]
    assert all(len(row) <= 30 for row in rest)
    assert "…" not in text
    assert "SGD lr=0.1" in text


class Other(BaseHTTPRequestHandler):
    """A server that is no TensorBoard; each subclass answers in its own way."""

    body = b""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def listening(monkeypatch):
    """Have a class of handlers answer, on a port of its own, where the terminal looks for TensorBoard."""
    servers = []

    def serve(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(layout, "SERVER", "{}:{}".format(*server.server_address))

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_no_address_where_nothing_listens(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(layout, "SERVER", "{}:{}".format(*free.getsockname()))
        assert not layout.is_served(tmp_path)
        assert [*layout.looking(tmp_path)] == ["look"]


def test_no_address_where_a_server_does_not_answer(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(layout, "SERVER", "{}:{}".format(*silent.getsockname()))
        begin = time.monotonic()
        assert not layout.is_served(tmp_path)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff\xfe", b"[]", b"7", b"{}", b'{"data_location": 7}', b'{"data_location": "."}', b"[" * 9999],
)
def test_no_address_where_something_else_listens(body, tmp_path, monkeypatch, listening):
    monkeypatch.chdir(tmp_path)
    listening(type("Answer", (Other,), {"body": body}))
    assert not layout.is_served(tmp_path)


def test_no_address_where_a_server_that_is_no_http_server_listens(tmp_path, listening):
    listening(type("Ssh", (Other,), {"handle": lambda self: self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")}))
    assert not layout.is_served(tmp_path)


def test_no_address_where_tensorboard_shows_other_runs(tmp_path, listening):
    body = json.dumps({"data_location": str(tmp_path / "outputs")})
    listening(type("Answer", (Other,), {"body": body.encode()}))
    assert layout.is_served(tmp_path / "outputs/runs/a")
    assert not layout.is_served(tmp_path / "outputs2/runs/a")
    assert not layout.is_served(tmp_path)


@pytest.mark.parametrize("shown", [".", "runs", "runs/a"])
@pytest.mark.slow("like test_no_address_where_nothing_listens")
def test_the_address_where_tensorboard_shows_the_run(shown, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1").touch()
    monkeypatch.chdir(tmp_path)
    with served(shown, "--load_fast=false") as address:  # a relative folder, as in make dashboard
        monkeypatch.setattr(layout, "SERVER", urlsplit(address).netloc)
        assert "address" in layout.looking(folder)
        assert not layout.is_served(tmp_path.parent / "a")


def test_the_address_filters_by_the_name_as_it_is(monkeypatch):
    """The filter is a regular expression."""
    monkeypatch.setattr(layout, "is_served", lambda _: True)
    name = "3-adam-lr=0.1-max_time=1e+2"
    address = layout.looking(Path("/runs", name))["address"]
    assert address.startswith("http://127.0.0.1:6006/?runFilter=3-adam-lr=0")
    (pattern,) = parse_qs(urlsplit(address).query)["runFilter"]
    assert re.fullmatch(pattern, name)
    assert not re.fullmatch(pattern, name.replace(".", "x"))


def test_a_table_is_never_cut(capsys):
    layout.show_table(Console(width=20), ["a long name", "and another one"], [("something", 1.23456789), ("b", None)])
    assert capsys.readouterr().out.split() == [
        "a",
        "long",
        "name",
        "and",
        "another",
        "one",
        "something",
        "1.23457",
        "b",
        "-",
    ]


def test_numbers_are_written_as_one_writes_them():
    values = {2.0: "2", 0.5636951923370361: "0.563695", 1.2e-13: "1.2e-13", -0.5: "-0.5", float("nan"): "nan"}
    assert {value: layout.number(value) for value in values} == values
    assert layout.number(None) == "-"
    assert report.numbers(torch.tensor([[1.0, 2.0], [3.0, 4.0]])) == "[[1, 2], [3, 4]]"
    assert report.numbers(torch.arange(20.0)).endswith("7, ...]")


def test_lines_are_written_as_formulas():
    assert report.line({"weight": [[-2.0]], "bias": [-1.0]}) == "y = -2 x - 1"
    assert report.line({"weight": [[1.0], [2.0]], "bias": [0.0, 3.0]}) == "y1 = 1 x + 0\ny2 = 2 x + 3"
    many = report.line({"weight": [[1.0] * 99], "bias": [-2.0]})
    assert many.startswith("y = 1 x1 + 1 x2")
    assert many.endswith("+ 1 x8 + ... - 2")
    assert report.line({"weight": [[1.0]] * 9, "bias": None}).endswith("y8 = 1 x\n...")


def test_many_tensors_and_a_loss_of_ones_own():
    assert report.line({"0.weight": [[2.0]], "0.bias": [1.0], "2.weight": [[3.0]]}) == "3 tensors"
    units = {"torch.nn.MSELoss": "c^2", "torch.nn.L1Loss": "c", "mine.Loss": None}
    for loss, unit in units.items():
        assert report.loss_unit({"_target_": loss}, Schema.of(["a"], ["c"])) == unit


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_without_checkpoints_suggests_no_evaluation(saves, tmp_path, capsys):
    train(tmp_path, "trainer.max_epochs=2", "logger=none", *(() if saves else ("trainer.fast_dev_run=true",)))
    assert ("linear_lab.evaluate" in capsys.readouterr().out) == saves
    assert bool(list(tmp_path.glob("checkpoints/*.ckpt"))) == saves


@pytest.mark.parametrize(("kept", "suggested"), [("best", True), ("last", True), ("neither", False)])
def test_one_checkpoint_is_enough_to_suggest_an_evaluation(kept, suggested, tmp_path):
    train(tmp_path, "trainer.max_epochs=2", "logger=none")
    record = read(tmp_path / "result.json")
    if kept != "last":
        (tmp_path / "checkpoints/last.ckpt").unlink()
    if kept != "best":
        record = record.model_copy(update={"best": None})
    file = io.StringIO()
    report.show_outcome(Console(file=file), record, tmp_path, False, {})
    assert ("linear_lab.evaluate" in file.getvalue()) == suggested
