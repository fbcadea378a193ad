"""Numbers, tables, commands and help on the terminal. Imports no torch, so that --help is quick."""

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import IO, Any
from urllib.parse import quote

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from linear_lab import CHECKOUT, CONF, UserError
from linear_lab.runs.folder import TARGET, TRUSTED
from linear_lab.text import printable

SHOWN = 8  # how many numbers, names or rows the terminal shows
SERVER = "127.0.0.1:6006"  # TensorBoard's port
ADDRESS = f"http://{SERVER}"
FLAGS_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i", "--experimental-rerun",
}  # fmt: skip
OPTIONAL_VALUE = ("--info", "-i")
NARROW = 60  # a terminal with fewer columns is narrow: tables are split


class Screen(Console):
    """A console that makes all text `printable`, also in tables and progress bars."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def screen(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return a console for a file, by default standard output; without colour in a pipe or with NO_COLOR."""
    return Screen(file=file, width=width, highlight=False, markup=False)  # a column may be called [red]


def one_line(text: str) -> str:
    """Write text from elsewhere, such as a column's name, safely in one line."""
    return " ".join(printable(text).splitlines())


def number(value: float | None) -> str:
    """Write a number with up to six digits: ``2``, ``0.563695``, ``1.2e-13``."""
    return "-" if value is None else f"{value:.6g}"


def pairs(rows: dict[str, str]) -> Table:
    """Return a table of names and values, in which long values wrap."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def names(columns: list[str]) -> str:
    """Join names; after the first `SHOWN`, write only how many there are."""
    return ", ".join(map(one_line, columns[:SHOWN])) + (f", ... ({len(columns)})" if len(columns) > SHOWN else "")


def short(folder: Path) -> Path:
    """Return a folder relative to the working directory, if it is inside it."""
    return folder.relative_to(here()) if folder.is_relative_to(here()) else folder


def here() -> Path:
    """Return the folder in which the command was typed, also after ``hydra.job.chdir=true`` has left it."""
    moved = HydraConfig.initialized() and HydraConfig.get().job.chdir
    return Path(HydraConfig.get().runtime.cwd) if moved else Path.cwd()


def python() -> str:
    """Return the command of this interpreter: ``python`` if the shell finds it by that name, else its path."""
    return "python" if shutil.which("python") == sys.executable else str(short(Path(sys.executable)))


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate flags, each with its value, from overrides.

    >>> split(["seed=1", "--cfg", "job", "optimizer=adam", "--info", "name=a"])
    (['--cfg', 'job', '--info', 'all'], ['seed=1', 'optimizer=adam', 'name=a'])
    """
    flags: list[str] = []
    typed: list[str] = []
    for argument in arguments:
        if flags and flags[-1] in OPTIONAL_VALUE and "=" in argument:
            flags.append("all")  # Hydra's default; argparse would take the override for the value
        is_value = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        (flags if argument.startswith("-") or is_value else typed).append(argument)
    return flags, typed


def flag(arguments: list[str], *names: str) -> str | None:
    """Return the value of a flag, given by any of its names; None if it was not typed.

    >>> flag(["-m", "-cd", "mine"], "--config-dir", "-cd"), flag(["--config-dir=mine"], "--config-dir", "-cd")
    ('mine', 'mine')
    """
    flags = split(arguments)[0]
    for at, item in enumerate(flags):
        name, equals, value = item.partition("=")
        if name in names:
            return value if equals else "".join(flags[at + 1 : at + 2])
    return None


def module(name: str, config_dir: str | None = None) -> str:
    """Return the first words of a command of this project, with the --config-dir of this command or ``config_dir``."""
    folder = config_dir or flag(sys.argv[1:], "--config-dir", "-cd")
    return f"{python()} -m linear_lab.{name}{f' --config-dir {quoted(str(short(Path(folder))))}' if folder else ''}"


def trusting() -> str:
    """Return the override, after a space, with which another command trusts the classes that this one names."""
    typed = [name for item in sys.argv[1:] if item.startswith("trust=") for name in item[6:].strip("[]").split(",")]
    typed += [name for item in sys.argv[1:] for name in TARGET.findall(item) if not name.startswith(TRUSTED)]
    names = ",".join(dict.fromkeys(typed))
    return f" {quoted(f'trust=[{names}]' if ',' in names else f'trust={names}')}" if names else ""


def dashboard(folder: Path) -> str:
    """Return the command that shows a folder in TensorBoard."""
    shown = quoted(str(short(folder)))
    return f"make dashboard LOGDIR={shown}" if here() == CHECKOUT else f"{python()} -m linear_lab.dashboard {shown}"


def installing(extra: str) -> str:
    """Return the command that installs an extra."""
    project = "." if here() == CHECKOUT else CHECKOUT or "linear_lab"
    return f"{python()} -m pip install {'-e ' if CHECKOUT else ''}{shlex.quote(f'{project}[{extra}]')}"


def quoted(text: str) -> str:
    """Quote a text for the shell, with whichever quotes are easier to read.

    >>> print(*map(quoted, ["seed=1", "seed=range(3)", "+note='a b'"]))
    seed=1 'seed=range(3)' "+note='a b'"
    """
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def in_quotes(value: str) -> str:
    """Quote a value for Hydra's grammar, in which a backslash is special only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", r"\1\1\2", value).replace("'", "\\'") + "'"


def looking(folder: Path) -> dict[str, str]:
    """Return the command that shows a run in TensorBoard, and the run's address if a TensorBoard shows it already."""
    pattern = re.sub(r"[.+]", r"\\\g<0>", folder.name)  # the filter is a regular expression
    address = {"address": f"{ADDRESS}/?runFilter={quote(pattern, safe='=')}"} if is_served(folder) else {}
    return {"look": dashboard(folder), **address}


def is_served(folder: Path) -> bool:
    """Ask the server at `ADDRESS` whether it is a TensorBoard that shows a folder."""
    from http.client import HTTPConnection, HTTPException  # imported late, as --help does not need it

    connection = HTTPConnection(SERVER, timeout=0.5)
    try:
        connection.request("GET", "/data/environment")
        logdir = Path(json.loads(connection.getresponse().read(10_000))["data_location"])
        places = (logdir.resolve(), (logdir / folder.name).resolve())  # the second: a link to a run that is shown alone
        return logdir.is_absolute() and any(map(folder.resolve().is_relative_to, places))
    except (OSError, HTTPException, ValueError, TypeError, LookupError, RuntimeError):  # no server, or another one
        return False
    finally:
        connection.close()


def help_text(name: str, folder: str | None = None) -> str:
    """Fill in conf/hydra/help/<name>.yaml with the options of conf/ and of ``folder``; Hydra's own help is slow."""
    template = OmegaConf.load(CONF / "hydra/help" / f"{name}.yaml").template
    options: dict[str, dict[str, Path]] = {}
    for root in (CONF, *([Path(folder)] if folder else [])):
        for file in root.glob("*/*.yaml"):
            options.setdefault(file.parent.name, {})[file.stem] = file
    texts = {"groups": "".join(f"{group}: {', '.join(sorted(options[group]))}\n" for group in sorted(options))}
    for group in ("experiment", "sweep"):  # their options are described
        texts[group] = "".join(f"  {key:<12}{first_comment(file)}\n" for key, file in sorted(options[group].items()))
    return Template(template).substitute(texts)


def first_comment(file: Path) -> str:
    """Return the first comment line of a config file, except ``# @package``, which is for Hydra."""
    comment = re.search(r"^#+ *(?!@package)(\S.*)", file.read_text("utf-8", "replace"), re.MULTILINE)
    return textwrap.shorten(comment[1], 86, placeholder=" ...") if comment else ""


def failure(error: UserError) -> SystemExit:
    """Print a user's mistake in one line, and return the exit with code 1; raise it under HYDRA_FULL_ERROR=1."""
    if os.environ.get("HYDRA_FULL_ERROR", "0") == "1":
        raise error
    print("error:", one_line(str(error)), file=sys.stderr)
    return SystemExit(1)


def resuming(folder: Path) -> str:
    """Return the command that resumes a run."""
    return f"{module('train')} {quoted(f'resume={short(folder)}')}{trusting()}"


def show_numbers(console: Console, columns: dict[str, dict[str, Any]], rows: list[str]) -> None:
    """Print a table with one row per name; on a narrow terminal, print one table per column."""
    if console.width < NARROW and len(columns) > 1:
        for heading, column in columns.items():
            show_numbers(console, {heading: column}, rows)
        return
    values = [[name.replace("_", " "), *(column.get(name) for column in columns.values())] for name in rows]
    show_table(console, ["", *columns], values)


def show_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in its full width: the terminal can wrap it, rich would cut it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(one_line(heading), no_wrap=True)
    for row in rows:
        table.add_row(*(one_line(value) if isinstance(value, str) else number(value) for value in row))
    table.width = Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum
    console.print(table, crop=False)


def show_commands(console: Console, commands: dict[str, str]) -> None:
    """Print commands without wrapping them, so that they can be copied."""
    width = max(map(len, commands))
    for name, command in commands.items():
        console.print(Text.assemble((f"{name:<{width}}", "dim"), f"  {command}"), soft_wrap=True)


def show_interrupted(console: Console, step: int | None, folder: Path) -> None:
    """Print what an interrupted run has saved, and how to resume it."""
    saved = "this state is saved" if step else "steps after the last checkpoint will be trained again"
    console.print(f"interrupted{f' after step {step}' if step else ''}; {saved}")
    show_commands(console, {"go on": resuming(folder)})


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; line breaks and bars, which would end a cell, are replaced."""
    cells = [[cell.replace("\n", "`, `").replace("|", "\\|") for cell in row] for row in [headings, *rows]]
    cells.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
