"""What reaches a terminal or a log: no control characters, and a command that outlives its output."""

import io
import json
import logging
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml
from processes import start
from rich.progress import Progress, TextColumn
from rich.text import Text
from runs import command, record

from linear_lab import CONF, UserError, evaluate
from linear_lab import predict as predict_entry
from linear_lab import train as train_entry
from linear_lab.runs.log import LogFile, log_to_file
from linear_lab.terminal import layout
from linear_lab.terminal.output import lasting_output
from linear_lab.text import printable

EVIL = "a\x1b[2J\x1b]0;title\x07b\x9bc\x7fd\re\u202ef\u2066g\x00\ud800h"
TYPED = EVIL.replace("\x00", "").replace("\ud800", "")  # what the records of a run can hold


def is_plain(text):
    return not [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")] and not (
        set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    )


def test_every_character_that_controls_is_replaced_and_no_letter():
    every = "".join(map(chr, range(0x11000))) + "\U0001f600\U0010ffff"
    shown = printable(every)
    assert is_plain(shown)
    assert len(shown) == len(every)
    letters = [a for a, b in zip(every, shown, strict=True) if unicodedata.category(a)[0] in "LMNPS" and a != b]
    assert not letters
    assert printable("a\u200bb\u200dc\ufeff") == "a?b?c?"
    assert printable("größe\t1\u00a0€\n") == "größe\t1\u00a0€\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_screen_shows_no_control_character_of_a_text(terminal):
    screen = layout.screen(io.StringIO(), 100)
    screen._force_terminal = terminal
    progress = Progress(TextColumn("{task.fields[text]}", markup=False), console=screen, auto_refresh=False)
    progress.add_task("", text=EVIL)
    for shown in (EVIL, Text(EVIL), layout.pairs({EVIL: EVIL}), progress):
        screen.print(shown)
    layout.show_table(screen, [EVIL, "b"], [(EVIL, 1.0)])
    layout.show_commands(screen, {EVIL: EVIL})
    layout.show_interrupted(screen, 3, Path(EVIL))
    text = re.sub(r"\x1b\[[\d;]*m", "", screen.file.getvalue()) if terminal else screen.file.getvalue()
    assert is_plain(text)
    assert text.count("a?[2J?]0;title") == 10


@pytest.fixture
def marked(finished, tmp_path):
    """A copy of a run that a test may change."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


COMMANDS = {
    "the error of a record": (evaluate, {"status": "diverged", "error": TYPED}),
    "the version of a record": (evaluate, {"versions": {"linear_lab": f"99.1{TYPED}"}}),
    "the name of a metric": (evaluate, {"metrics": {TYPED: "no number"}}),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_no_text_of_a_record_controls_the_terminal(what, marked):
    entry, fields = COMMANDS[what]
    path = marked / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    _, out, errors = command(entry, f"run={marked}")
    assert "a?[2J" in out + errors
    assert is_plain(out + errors)


def test_no_message_of_a_log_controls_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with lasting_output():
        logging.config.dictConfig(yaml.safe_load((CONF / "hydra/job_logging/terminal.yaml").read_text()))
        with log_to_file(tmp_path / "train.log", terminal=True):
            logging.getLogger("linear_lab").warning("of a stranger: %s", EVIL)
    said = capsys.readouterr().err
    assert "of a stranger: a?[2J" in said
    assert is_plain(said)
    assert is_plain((tmp_path / "train.log").read_text())
    assert "[WARNING] of a stranger: a?[2J" in (tmp_path / "train.log").read_text()


def test_no_column_of_a_table_controls_the_terminal(tmp_path):
    text = TYPED.replace("\r", "")
    (tmp_path / "my.csv").write_text(f"x{text},y{text}\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    (tmp_path / "other.csv").write_text(f"z{text}\n1\n")
    run = tmp_path / "run"
    names = [f"data.{axis}=['{axis}{text}']" for axis in "xy"]
    arguments = ("data=table", f"data.path={tmp_path / 'my.csv'}", "data.separator=,", "trainer.max_epochs=1")
    for entry, *typed in (
        (train_entry, f"hydra.run.dir={run}", *arguments, *names, "console.steps=1"),
        (predict_entry, f"run={run}", "x=[1]"),
        (predict_entry, f"run={run}", f"input={tmp_path / 'other.csv'}"),
        (evaluate, f"run={run}"),
    ):
        _, out, errors = command(entry, *typed)
        assert is_plain(out + errors)
        assert "?[2J" in out + errors or entry is evaluate, (out, errors)


def test_hydras_own_messages_control_no_terminal():
    code, out, errors = command(predict_entry, f"run{TYPED}=1")
    assert code == 1
    assert is_plain(out + errors)


class Full(io.StringIO):
    """A stream on a disk that is full."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def write(self, text):
        raise OSError(28, "No space left on device")

    def fileno(self):
        return self.file.fileno()


def test_output_that_cannot_be_written_ends_no_command(tmp_path, monkeypatch, capsys):
    with (tmp_path / "a").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Full(file))
        done = []
        with pytest.raises(SystemExit) as end, lasting_output():
            print("hello")
            print("again")
            done.append(True)
    assert done
    assert end.value.code == 1
    said = "error: standard output: No space left on device; the command continued without it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("code", [1, 130, 143])
def test_the_exit_code_of_a_command_stays(code, tmp_path, monkeypatch):
    with (tmp_path / "a").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Full(file))
        with pytest.raises(SystemExit) as end, lasting_output():
            print("hello")
            raise SystemExit(code)
    assert end.value.code == code


def test_an_output_that_the_shell_has_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_output():
        print("hello")
        layout.screen().print("hello")
    assert sys.stdout is None


def test_a_log_that_cannot_be_written_ends_no_command(tmp_path, quota, capsys):
    handler = LogFile(tmp_path / "train.log")
    quota(10)
    message = logging.LogRecord("linear_lab", logging.INFO, "", 0, "longer than the disk has room", (), None)
    handler.handle(message)
    handler.close()
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "train.log").stat().st_size <= 10
    with pytest.raises(FileNotFoundError):
        LogFile(tmp_path / "no" / "train.log")


RUN = """
import os, sys
for number in {numbers}:
    os.dup2(os.open("{path}", os.O_WRONLY), number)
from linear_lab.{name} import main
sys.argv = ["linear-lab", *{arguments}]
main()
"""


def full(tmp_path, name, arguments, numbers, path="/dev/full"):
    """A command, of which standard output (1) or error (2) is on a full disk: its exit code and what it said."""
    script = tmp_path / "script.py"
    script.write_text(RUN.format(numbers=numbers, path=path, name=name, arguments=[*map(str, arguments)]))
    process = start(script)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


@pytest.mark.parametrize("numbers", [[1], [2], [1, 2]])
def test_a_run_outlives_its_output(numbers, tmp_path):
    arguments = (f"output_root={tmp_path}", "optimizer.lr=0.21", "trainer.max_epochs=3", "logger=none")  # warns of lr
    code, _, errors = full(tmp_path, "train", arguments, numbers)
    (folder,) = (tmp_path / "runs").iterdir()
    assert record(folder)["status"] in ("completed", "diverged")
    assert record(folder)["steps"]
    assert "Traceback" not in errors
    if numbers == [1]:
        assert code == 1
        assert "error: standard output: No space left on device; the command continued without it" in errors


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--help"]),
        ("train", ["--cfg", "job"]),
        ("predict", ["run={run}", "x=[1]"]),
        ("export", ["run={run}"]),
    ],
)
def test_no_command_shows_a_traceback_for_a_full_output(name, arguments, marked, tmp_path):
    typed = [argument.format(run=marked) for argument in arguments]
    code, _, errors = full(tmp_path, name, typed, [1])
    assert (code, errors) == (
        1, "error: standard output: No space left on device; the command continued without it\n"
    )  # fmt: skip


def test_a_name_with_a_line_break_stays_in_one_line(capsys):
    layout.show_table(layout.screen(), ["a\nb"], [["c\nd"]])
    layout.failure(UserError("no column e\nf\u200b"))
    out, err = capsys.readouterr()
    assert [line.rstrip() for line in out.splitlines()] == ["a b", "c d"]
    assert err == "error: no column e f?\n"
