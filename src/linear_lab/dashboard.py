"""Start TensorBoard on a folder of runs: ``python -m linear_lab.dashboard [LOGDIR]``.

The printed address sets the view: the losses are pinned to the top and not smoothed, with one colour per optimizer, or
per run if all have the same optimizer. Only the standard library is imported until the arguments have been checked.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from linear_lab import CONF, UserError
from linear_lab.terminal.output import lasting_output

EVENTS = "*tfevents*"  # event files
PINNED = ("val/loss", "train/log10_excess")
SAMPLES = "--samples_per_plugin=scalars=10000,images=100,text=100,histograms=500"
DEFAULTS = ("--host=127.0.0.1", "--reload_interval=4", SAMPLES)  # the user's options come later, and take precedence


@lasting_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C, and return the exit code."""
    try:
        folder, options, others = parsed(sys.argv[1:] if arguments is None else arguments)
        if not any(folder.rglob(EVENTS)):
            print(f"{folder} has no runs yet; a run will appear as soon as it is trained")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background process ignores it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it cleans up, as at Ctrl-C
        with tempfile.TemporaryDirectory() as parent:
            address = serve(with_named_runs(folder, Path(parent)), options.port, others) + view(folder)
            print(f"TensorBoard on {folder}; Ctrl-C ends it\n{address}", flush=True)
            if not options.no_browser and has_graphical_browser():
                webbrowser.open(address)
            while True:  # signal.pause would miss a signal that comes just before it
                time.sleep(0.5)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C while Python ends would show a traceback
        print()  # the shell's prompt goes below ^C
    return 0


def parsed(arguments: Sequence[str]) -> tuple[Path, argparse.Namespace, list[str]]:
    """Return the folder, the options of this command, and those for TensorBoard."""
    parser = argparse.ArgumentParser(
        prog="python -m linear_lab.dashboard",
        usage="%(prog)s [LOGDIR] [--port N] [--no-browser] [options of TensorBoard]",
        description="Show all runs below the folder LOGDIR (outputs) in TensorBoard.",
        epilog="`tensorboard --help` lists its options.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=port, metavar="N", help="the port (6006; if it is taken, a free one)")
    parser.add_argument("--logdir", help=argparse.SUPPRESS)  # TensorBoard's name for LOGDIR
    parser.add_argument("--no-browser", action="store_true", help="print the address, but open no browser")
    # LOGDIR is no argument of the parser: it would take the 30 in `--reload_interval 30` for LOGDIR
    options, others = parser.parse_known_args(arguments)
    first = others.pop(0) if others and not others[0].startswith("-") else None
    if first and options.logdir:
        raise UserError(f"LOGDIR={first} and --logdir {options.logdir}: name one folder only")
    logdir = first or options.logdir or "outputs"
    folder = Path(logdir).expanduser()
    if not folder.is_dir():
        raise UserError(f"LOGDIR={logdir}: there is no such folder; name a folder with runs, or train a first run")
    return folder, options, others


def port(text: str) -> int:
    """Return the number of a port; 0 means any free one. argparse reports the ValueError."""
    if not 0 <= int(text) < 1 << 16:
        raise ValueError
    return int(text)


def with_named_runs(folder: Path, parent: Path) -> Path:
    """Return the folder to serve; for a single run ``parent`` with a link, as HPARAMS cannot show a run named "."."""
    if not any(folder.glob(EVENTS)):
        return folder
    run = folder.resolve()
    (parent / run.name).symlink_to(run)
    return parent


def serve(folder: Path, number: int | None, others: Sequence[str]) -> str:
    """Start TensorBoard and return its address; its thread and its data server end with this process."""
    logging.disable(logging.ERROR)  # TensorBoard logs an error if a tab is closed while it loads
    ports = [] if number is None else [f"--port={number}"]
    with contextlib.redirect_stderr(io.StringIO()) as messages:
        from tensorboard import default, program
        from tensorboard.plugins.base_plugin import FlagsError

        try:
            server = program.TensorBoard(default.get_plugins())
            server.configure(["tensorboard", f"--logdir={folder.absolute()}", *DEFAULTS, *ports, *others])
            address: str = server.launch()
        except program.TensorBoardPortInUseError as error:
            raise UserError(f"--port {number} is taken; leave out --port to get a free one") from error
        except (program.TensorBoardServerException, FlagsError) as error:
            raise UserError(str(error)) from error
        except SystemExit as end:
            if not end.code:
                raise  # --helpfull
            message = messages.getvalue().strip().rpartition("\n")[2]
            raise UserError(message.removeprefix("tensorboard: error: ")) from end
    return address


def view(folder: Path) -> str:
    """Return the query of the address, which sets the view of the runs in a folder.

    A regular expression gives runs of one optimizer one colour. It finds the optimizer's name at the beginning or the
    end of the run's path below LOGDIR, or between dashes. All other runs match the bare ``$`` and share one
    colour, instead of pale grey. With fewer than two optimizers, TensorBoard gives each run its own colour.
    """
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    query = {"smoothing": "0", "pinnedCards": json.dumps(cards, separators=(",", ":"))}
    names = sorted((file.stem for file in (CONF / "optimizer").glob("*.yaml")), key=len, reverse=True)
    by_optimizer = f"(?:^|[-/])({'|'.join(map(re.escape, names))})(?:-|$)|$"
    runs = {str(file.parent.relative_to(folder)) for file in folder.rglob(EVENTS)}
    if len({match[1] for run in runs if (match := re.search(by_optimizer, run))} - {None}) > 1:
        query["runColorGroup"] = f"regex:{by_optimizer}"
    return "?" + "&".join(f"{key}={quote(value, safe='/:,-')}" for key, value in query.items())


def has_graphical_browser() -> bool:
    """Tell whether there is a browser with a window; a text browser would take over the terminal."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        return False
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return not isinstance(browser, webbrowser.GenericBrowser) or isinstance(browser, webbrowser.BackgroundBrowser)


if __name__ == "__main__":
    raise SystemExit(main())
