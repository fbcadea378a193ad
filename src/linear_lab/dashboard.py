"""TensorBoard on a folder of runs, with a view that compares them at once: ``python -m linear_lab.dashboard [LOGDIR]``.

The view is in the address: the losses are pinned to the top and not smoothed, and a run has its optimizer's colour.
Imports the standard library alone until the arguments are right.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from linear_lab import UserError

OPTIMIZERS = Path(__file__).resolve().parents[2] / "conf" / "optimizer"
PINNED = ("val/loss", "train/log10_excess")
DEFAULTS = (  # what is typed comes after these, and wins
    "--host=127.0.0.1",
    "--reload_interval=4",
    "--samples_per_plugin=scalars=10000,images=100,text=100,histograms=500",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C, and return the exit code."""
    try:
        folder, options, others = parsed(sys.argv[1:] if arguments is None else arguments)
        if not events(folder, "**/"):
            print(f"{folder} holds no run yet; one appears here as soon as it is trained")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background process ignores it else
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # cleans up, as Ctrl-C does
        with tempfile.TemporaryDirectory() as parent:
            address = serve(named(folder, Path(parent)), options.port, others) + view()
            print(f"TensorBoard on {folder}; Ctrl-C ends it\n{address}", flush=True)
            if not options.no_browser and graphical():
                webbrowser.open(address)
            while True:  # a single wait would miss a signal that comes just before it begins
                time.sleep(0.5)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would show a traceback of the first one's end
        print()  # the shell goes on below ^C
    return 0


def parsed(arguments: Sequence[str]) -> tuple[Path, argparse.Namespace, list[str]]:
    """Return the folder, our options, and what is TensorBoard's.

    Raises:
        UserError: where there is no such folder.
    """
    parser = argparse.ArgumentParser(
        prog="python -m linear_lab.dashboard",
        usage="%(prog)s [LOGDIR] [--port N] [--no-browser] [options of TensorBoard]",
        description="Show all runs below the folder LOGDIR (outputs) in TensorBoard.",
        epilog="`tensorboard --help` lists its options.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=port, metavar="N", help="(6006, or else a free one)")
    parser.add_argument("--logdir", help=argparse.SUPPRESS)  # as TensorBoard itself calls it
    parser.add_argument("--no-browser", action="store_true", help="print the address alone")
    # LOGDIR is not argparse's: it would take the 30 of --reload_interval 30 for one
    options, others = parser.parse_known_args(arguments)
    first = others.pop(0) if others and not others[0].startswith("-") else None
    logdir = first or options.logdir or "outputs"
    if first and options.logdir:
        raise UserError(f"LOGDIR={first} and --logdir {options.logdir}: name one folder")
    folder = Path(logdir).expanduser()
    if not folder.is_dir():
        raise UserError(f"LOGDIR={logdir}: there is no such folder; name one that holds runs, or train a first run")
    return folder, options, others


def port(text: str) -> int:
    """Return the number of a port; 0 is any free one.

    Raises:
        ValueError: where it is none.
    """
    if not 0 <= int(text) < 1 << 16:
        raise ValueError
    return int(text)


def events(folder: Path, below: str = "") -> bool:
    """Whether a folder holds event files; ``**/`` looks below it, too."""
    return any(folder.glob(f"{below}*tfevents*"))


def named(folder: Path, parent: Path) -> Path:
    """Return a folder in which runs have names: LOGDIR, or a parent for one that is a run itself.

    TensorBoard would call that run ".", and then finds no metrics for HPARAMS.
    """
    if not events(folder):
        return folder
    run = folder.resolve()
    (parent / run.name).symlink_to(run)
    return parent


def serve(folder: Path, number: int | None, others: Sequence[str]) -> str:
    """Start TensorBoard on a thread that ends with this process, as its data server does, and return its address.

    Raises:
        UserError: where an option is wrong, or the port is taken.
    """
    logging.disable(logging.ERROR)  # a tab that is closed while it loads is an error to TensorBoard
    with quiet():
        from tensorboard import default, program
        from tensorboard.plugins.base_plugin import FlagsError
    ports = [] if number is None else [f"--port={number}"]
    try:
        with quiet() as said:
            server = program.TensorBoard(default.get_plugins())
            server.configure(["tensorboard", f"--logdir={folder}", *DEFAULTS, *ports, *others])
            address: str = server.launch()
    except program.TensorBoardPortInUseError as error:
        raise UserError(f"--port {number} is taken; without --port, a free one is found") from error
    except (program.TensorBoardServerException, FlagsError) as error:
        raise UserError(str(error)) from error
    except SystemExit as end:
        if not end.code:
            raise  # --helpfull
        raise UserError(said.getvalue().strip().rpartition("\n")[2].removeprefix("tensorboard: error: ")) from end
    return address


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep from the terminal what TensorBoard and its libraries tell of themselves."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        yield said


def view() -> str:
    """Return the query of the address that presets the view.

    Runs of one colour are those in whose name, the folder's below LOGDIR, the group of a regular expression matches the
    same: the name of the optimizer, at the beginning, between dashes or at the end. All other runs, where the bare
    ``$`` matches, share a colour; without a match they would be a pale grey.
    """
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    query = {"smoothing": "0", "pinnedCards": json.dumps(cards, separators=(",", ":"))}
    names = sorted((file.stem for file in OPTIMIZERS.glob("*.yaml")), key=len, reverse=True)
    if names:  # an installed package has no conf/
        query["runColorGroup"] = f"regex:(?:^|[-/])({'|'.join(map(re.escape, names))})(?:-|$)|$"
    return "?" + "&".join(f"{key}={quote(value, safe='/:,-')}" for key, value in query.items())


def graphical() -> bool:
    """Whether there is a browser with a window of its own: a text browser would take over the terminal."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        return False
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return not isinstance(browser, webbrowser.GenericBrowser) or isinstance(browser, webbrowser.BackgroundBrowser)


if __name__ == "__main__":
    raise SystemExit(main())
