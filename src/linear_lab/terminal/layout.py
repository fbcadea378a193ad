"""How the terminal shows things: numbers, tables, commands to copy. Imports no torch, so that it answers at once."""

import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self
from urllib.parse import quote

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from linear_lab import UserError, compat

SHOWN = 8  # numbers of a row or column that the terminal shows
ADDRESS = "http://127.0.0.1:6006"  # TensorBoard's port
NARROW = 60  # columns below which what stands side by side elsewhere stands one below the other


def screen() -> Console:
    """Make the console: plain in a pipe and under NO_COLOR."""
    return Console(highlight=False, markup=False)  # a column may be called [red]


def number(value: float | None) -> str:
    """Six digits, as one writes them: ``2``, ``0.563695``, ``1.2e-13``."""
    return "-" if value is None else f"{value:.6g}"


def pairs(rows: dict[str, str]) -> Table:
    """Lay out what is what; long values wrap beside their name."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def names(columns: list[str]) -> str:
    """List names, cut after `SHOWN`."""
    return ", ".join(columns[:SHOWN]) + (f", ... ({len(columns)})" if len(columns) > SHOWN else "")


def short(folder: Path) -> Path:
    """Write a folder as one types it here: relative to where the command runs, if it lies there."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def python() -> str:
    """Name the interpreter as one types it here: ``python`` only where that is the one with this package."""
    return "python" if shutil.which("python") == sys.executable else str(short(Path(sys.executable)))


def quoted(text: str) -> str:
    """Quote a text for the shell, in the way that is easiest to read.

    >>> print(*map(quoted, ["seed=1", "seed=range(3)", "+note='a b'"]))
    seed=1 'seed=range(3)' "+note='a b'"
    """
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def in_quotes(value: str) -> str:
    """Quote a value for Hydra's grammar; a backslash counts before a quote alone."""
    return "'" + re.sub(r"(\\*)('|$)", r"\1\1\2", value).replace("'", "\\'") + "'"


def looking(folder: Path) -> dict[str, str]:
    """Write the command that shows a run, and its address, also on a dashboard of all, unless the port is taken."""
    pattern = re.sub(r"[.+]", r"\\\g<0>", folder.name)  # the filter is a regular expression
    return {
        "look": f"make dashboard LOGDIR={quoted(str(short(folder)))}",
        "address": f"{ADDRESS}/?runFilter={quote(pattern, safe='=')}",
    }


def failure(error: UserError) -> SystemExit:
    """Show a mistake in one line, with its traceback only under HYDRA_FULL_ERROR=1, and end with exit code 1."""
    if os.environ.get("HYDRA_FULL_ERROR", "0") == "1":
        raise error
    print(f"error: {error}", file=sys.stderr)
    return SystemExit(1)


class CtrlC:
    """Ends a block at Ctrl-C with exit code 130, also where a library loses the KeyboardInterrupt.

    Python drops one that is raised while it cleans up after an import, and OmegaConf breaks at it. So the first
    Ctrl-C inside of OmegaConf is only noted, and `raise_if_interrupted` raises what was noted or lost. Outside the main
    thread, and where Ctrl-C has another handler already, nothing is changed.
    """

    def __init__(self) -> None:
        self.came = self.installed = False

    def __enter__(self) -> Self:
        self.installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self.installed:
            signal.signal(signal.SIGINT, self)
        return self

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        first, self.came = not self.came, True
        if not (first and compat.runs_omegaconf(frame)):
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self.installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        reported = isinstance(error, SystemExit) and error.code in (130, 143)
        if (self.came and not reported) or kind is KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None


def raise_if_interrupted() -> None:
    """Raise the KeyboardInterrupt that `CtrlC` has noted or a library has lost; called before long work."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, CtrlC) and handler.came:
        raise KeyboardInterrupt


def sweeping(typed: Sequence[str]) -> str:
    """Write the command of a sweep."""
    return " ".join([python(), "-m", "linear_lab.train", "-m", *map(quoted, typed)])


def resuming(folder: Path) -> str:
    """Write the command that goes on with a run."""
    return f"{python()} -m linear_lab.train {quoted(f'resume={short(folder)}')}"


def show_numbers(console: Console, columns: dict[str, dict[str, Any]], rows: list[str]) -> None:
    """Print a table with a column each and a row each name; on a narrow terminal a table for each column."""
    if console.width < NARROW and len(columns) > 1:
        for heading, column in columns.items():
            show_numbers(console, {heading: column}, rows)
        return
    values = [[name.replace("_", " "), *(column.get(name) for column in columns.values())] for name in rows]
    show_table(console, ["", *columns], values)


def show_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table of text and numbers: as wide as it has to be, since a terminal wraps what rich would cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else number(value) for value in row))
    table.width = Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum
    console.print(table, crop=False)


def show_commands(console: Console, commands: dict[str, str]) -> None:
    """Print commands to copy: never wrapped by us, so that they paste as they are."""
    width = max(map(len, commands))
    for name, command in commands.items():
        text = command.encode(errors="replace").decode()  # a file's name need not be text
        console.print(Text.assemble((f"{name:<{width}}", "dim"), f"  {text}"), soft_wrap=True)


def show_interrupted(console: Console, step: int | None, folder: Path) -> None:
    """Say what a signal left, and how to go on."""
    saved = "the run is saved as it was then" if step else "what was not saved yet is trained again"
    console.print(f"interrupted{f' after step {step}' if step else ''}; {saved}")
    show_commands(console, {"go on": resuming(folder)})


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; a line break or a bar in a cell would end it."""
    cells = [[cell.replace("\n", "`, `").replace("|", "\\|") for cell in row] for row in [headings, *rows]]
    cells.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
