"""The dashboard's process: the address it prints, who reaches it, and how it ends."""

import json
import re
import signal
import socket
import sys
import urllib.request
import webbrowser
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import end, stable, start
from torch.utils.tensorboard import SummaryWriter

from linear_lab import UserError, dashboard

RUNS = ("runs/20261123-062841-9i1e-sgd", "sweeps/20261123-070000-ab12/3-adam-lr=0.1-seed=2")


@pytest.fixture
def logdir(tmp_path):
    folder = tmp_path / "two words"
    for run in RUNS:
        with SummaryWriter(str(folder / run)) as writer:
            writer.add_scalar("val/loss", 0.5, 0)
    return folder


@pytest.fixture
def taken():
    """TensorBoard's own port, which some other process has."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", 6006))
            server.listen()
        except OSError:
            pass  # then some other process has it indeed
        yield 6006


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def alive(pid):
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_text())  # a zombie has none
    except OSError:
        return False


def runs(address):
    with urllib.request.urlopen(address.partition("?")[0] + "data/runs") as answer:
        return set(json.load(answer))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and 127.0.0.2, which is this machine's as well")
@pytest.mark.parametrize(
    ("loader", "folder", "names", "by", "code"),
    [
        ("auto", ".", set(RUNS), signal.SIGINT, 0),
        ("auto", RUNS[0], {Path(RUNS[0]).name}, signal.SIGTERM, 143),
        ("false", RUNS[1], {Path(RUNS[1]).name}, signal.SIGINT, 0),
    ],
)
def test_serves_this_machine_alone_and_ends_without_a_trace(
    logdir, tmp_path, monkeypatch, loader, folder, names, by, code
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    process, address = start(logdir / folder, f"--load_fast={loader}")
    try:
        servers = children(process)
        assert len(servers) == (loader == "auto")
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()  # it takes seconds to load
        assert urllib.request.urlopen(address).status == 200
        stable(lambda: runs(address) == names, times=1)
        for other in ("127.0.0.2", "::1"):
            with pytest.raises(OSError, match=r"refused|assign|unreachable|not supported"):
                socket.create_connection((other, urlsplit(address).port), timeout=1).close()
    finally:
        ended = end(process, by)
    assert ended == (code, "")
    stable(lambda: not any(map(alive, servers)), seconds=5, times=1)
    assert not list(scratch.iterdir())


def test_a_taken_port_is_left_alone(logdir, taken):
    process, address = start(logdir, port=None)
    assert urlsplit(address).port != taken
    assert end(process) == (0, "")
    with pytest.raises(
        RuntimeError, match=rf"\(1, 'error: --port {taken} is taken; leave out --port to get a free one'\)"
    ):
        start(logdir, port=taken)


@pytest.mark.parametrize("arguments", [["--port", "66000"], ["--port", "http"]])
def test_what_is_no_port_is_refused(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        dashboard.main([str(tmp_path), *arguments])
    assert f"argument --port: invalid port value: '{arguments[1]}'" in capsys.readouterr().err


def test_a_missing_folder_is_told(tmp_path, capsys):
    logdir = tmp_path / "outputs"
    assert dashboard.main([str(logdir)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: LOGDIR={logdir}: there is no such folder; ")
    assert said.err.count("\n") == 1


def test_tensorboards_options_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("outputs", "a b"):
        (tmp_path / folder).mkdir()
    folder, options, others = dashboard.parsed(["--reload_interval", "30", "--port", "7000"])
    assert (folder, options.port, others) == (Path("outputs"), 7000, ["--reload_interval", "30"])
    folder, options, others = dashboard.parsed(["~/a b", "--path_prefix=/x", "--no-browser"])
    assert (folder, options.no_browser, others) == (tmp_path / "a b", True, ["--path_prefix=/x"])


def test_the_folder_is_named_once(tmp_path):
    assert dashboard.parsed(["--logdir", str(tmp_path)])[0] == tmp_path
    with pytest.raises(UserError, match="name one folder"):
        dashboard.parsed([str(tmp_path), "--logdir=outputs"])


@pytest.mark.parametrize("display", [None, ":0"])
def test_a_browser_opens_where_there_is_a_screen(logdir, tmp_path, monkeypatch, capsys, display):
    def interrupted(_):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display) if display else monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.Chrome("chrome"))
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(dashboard, "serve", lambda *_: "http://127.0.0.1:6006/")
    monkeypatch.setattr(dashboard.time, "sleep", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert dashboard.main([str(logdir)]) == 0
    address = "http://127.0.0.1:6006/" + dashboard.view(logdir)
    assert capsys.readouterr().out.splitlines()[1:] == [address, ""]
    assert opened == ([address] if display else [])

    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("w3m"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert dashboard.main([str(empty)]) == 0
    assert capsys.readouterr().out.startswith(f"{empty} has no runs yet; ")
    assert len(opened) == (display is not None)


def query_of(folder):
    """What the address says, and the regular expression that groups runs by colour, or None."""
    query = {key: value for key, [value] in parse_qs(dashboard.view(folder)[1:], strict_parsing=True).items()}
    kind, _, colour = query.pop("runColorGroup", "run").partition(":")
    assert kind == ("regex" if colour else "run")
    return query, colour or None


def test_the_address_pins_the_losses_and_colours_by_optimizer(logdir, tmp_path, monkeypatch):
    options = tmp_path / "optimizer"
    options.mkdir()
    names = ["adam", "adamw", "sgd", "my-sgd", "sgd.v2"]
    for name in names:
        (options / f"{name}.yaml").touch()
    monkeypatch.setattr(dashboard, "CONF", tmp_path)
    query, colour = query_of(logdir)
    assert query["smoothing"] == "0"
    assert [card["tag"] for card in json.loads(query["pinnedCards"])] == ["val/loss", "train/log10_excess"]
    for name in names:
        for run in (f"runs/20261123-062841-9i1e-{name}", f"sweeps/20261123-070000-ab12/0-{name}-lr=0.1-seed=2"):
            assert re.search(colour, run)[1] == name
    assert re.search(colour, "runs/20261123-062841-9i1e-sgdx")[1] is None


@pytest.mark.parametrize(
    ("runs", "by_optimizer"),
    [
        (["sgd-lr=0.1", "sgd-lr=0.2", "_sweep", "_least_squares"], False),
        (["sgd-lr=0.1", "adam-lr=0.1"], True),
        (["mine", "another"], False),
        ([""], False),
        ([], False),
    ],
)
def test_runs_of_one_optimizer_have_a_colour_each(tmp_path, runs, by_optimizer):
    folder = tmp_path / "adam-study"  # its name is no part of the runs'
    for run in runs:
        (folder / run).mkdir(parents=True)
        (folder / run / "events.out.tfevents.1.host").touch()
    folder.mkdir(exist_ok=True)
    assert (query_of(folder)[1] is not None) == by_optimizer


def test_the_optimizers_are_those_of_the_config():
    assert {"sgd", "adam"} <= {file.stem for file in (dashboard.CONF / "optimizer").glob("*.yaml")}


def test_an_output_that_cannot_be_written_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(dashboard, "serve", lambda *_: "http://127.0.0.1")
        monkeypatch.setattr(dashboard.signal, "signal", lambda *_: None)
        monkeypatch.setattr(dashboard.time, "sleep", interrupted)
        with pytest.raises(SystemExit) as end:
            dashboard.main([str(tmp_path), "--no-browser"])
    assert end.value.code == 1
    assert "error: standard output: No space left on device" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:html5lib")  # bleach, which TensorBoard imports
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--reload_interval=soon", "argument --reload_interval: invalid"),
        ("--bind_all", "Must not specify both --host and --bind_all"),
    ],
)
def test_options_that_tensorboard_refuses_are_told_in_one_line(option, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dashboard.logging, "disable", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert dashboard.main([str(tmp_path), "--no-browser", option]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert told.count("\n") == 1


def test_a_machine_without_a_browser(monkeypatch):
    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "get", none)
    assert not dashboard.has_graphical_browser()
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.Chrome("chrome"))
    assert dashboard.has_graphical_browser()
