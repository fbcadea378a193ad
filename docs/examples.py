"""Run the commands of README and docs/ as a reader would, and compare what they print with what the pages say.

    python docs/examples.py README.md docs/start.md            compare
    python docs/examples.py --write README.md docs/start.md    write what differs anew

A page's blocks run in order in one folder, a copy of the checkout:

- `console`: each line after "$ " is a command, and the lines after it are what it prints. A line "..." stands for any
  lines, "..." within a line for any text, a last line "[exit code 1]" for a command that fails.
- `python`: runs in one namespace per page. A `text` block after it is what it prints.
- any language: a first line such as "# conf/optimizer/nadam.yaml" names the file that gets the other lines.
- <!-- shown: why --> on the line before a block: the block is only shown.

Numbers are compared to three digits, and as equal below 1e-9; times, run folders' names and seconds are not compared.
"""

import contextlib
import difflib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [CHECKOUT / "README.md", *sorted(CHECKOUT.glob("docs/*.md"))]
TIMEOUT = 600  # seconds of one command
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
VARYING = (
    (r"\d{8}-\d{6}-[a-z0-9]{4}", "<run>"),
    (r"\b\d\d:\d\d(:\d\d)?\b", "<time>"),
    (r"127\.0\.0\.1:\d+", "<address>"),
)
FILE = re.compile(r"# ([\w./-]+\.\w+)$")
SHOWN = re.compile(r"<!-- shown: .+ -->")
NOT_COPIED = shutil.ignore_patterns(".*cache", ".git", ".venv", ".hypothesis", "__pycache__", "outputs")


@dataclass
class Block:
    """A fenced block of a page.

    Attributes:
        language: as ``console``.
        lines: its text, without the fence and without the indentation of a list.
        start: the number of its first line in the page, from 0.
        shown: whether it is only shown.
    """

    language: str
    lines: list[str]
    start: int
    shown: bool


@dataclass
class Difference:
    """What a page says of a command, and what the command printed."""

    start: int
    command: str
    expected: list[str]
    printed: list[str]

    def __str__(self) -> str:
        expected, printed = ("\n".join(f"    {line}" for line in lines) for lines in (self.expected, self.printed))
        return f"line {self.start + 1}: {self.command}\n  the page says\n{expected}\n  it prints\n{printed}"


@dataclass
class Page:
    """A page whose blocks run in a folder."""

    path: Path
    folder: Path
    differences: list[Difference] = field(default_factory=list)

    def run(self) -> list[Difference]:
        """Run all blocks, and return what differs."""
        namespace: dict[str, object] = {"__name__": "__main__"}
        printed = None
        for block in blocks(self.path.read_text()):
            if block.shown:
                continue
            name = FILE.match(block.lines[0]) if block.lines else None
            if name:
                file = self.folder / name[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("\n".join(block.lines[1:]) + "\n")
            elif block.language == "console":
                for start, command, expected in commands(block):
                    self._compare(start, command, expected, self._shell(command))
            elif block.language == "python":
                printed = self._python("\n".join(block.lines), namespace)
                if any(line.startswith("Traceback") for line in printed):
                    self.differences.append(Difference(block.start, "python", [], printed))
            elif block.language == "text" and printed is not None:
                self._compare(block.start, "python", block.lines, printed)
            printed = printed if block.language == "python" else None
        return self.differences

    def _compare(self, start: int, command: str, expected: list[str], printed: list[str]) -> None:
        codes = [[line for line in lines if line.startswith("[exit code")] for lines in (expected, printed)]
        if codes[0] != codes[1] or (expected and not same(expected, printed)):
            self.differences.append(Difference(start, command, expected, printed))

    def _shell(self, command: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "src"), "COLUMNS": "100", "NO_COLOR": "1"}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={name: value for name, value in environment.items() if not name.startswith(("PYTEST", "MAKE"))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        code = [f"[exit code {done.returncode}]"] if done.returncode else []
        return [line.rstrip() for line in done.stdout.rstrip().splitlines()] + code

    def _python(self, code: str, namespace: dict[str, object]) -> list[str]:
        out = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out):
            try:
                exec(compile(code, str(self.path), "exec"), namespace)
            except Exception:
                traceback.print_exc(file=out)
        return [line.rstrip() for line in out.getvalue().rstrip().splitlines()]


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    before = ""
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map:
            language = token.info.split()[0] if token.info else ""
            yield Block(language, token.content.splitlines(), token.map[0] + 1, bool(SHOWN.search(before)))
        before = token.content if token.type == "html_block" else ""


def commands(block: Block) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each command of a console block: the line where its output starts, the command, what it prints."""
    number = 0
    while number < len(block.lines):
        command = block.lines[number].removeprefix("$ ")
        number += 1
        while command.endswith("\\") and number < len(block.lines):
            command += "\n" + block.lines[number]
            number += 1
        start = number
        while number < len(block.lines) and not block.lines[number].startswith("$ "):
            number += 1
        yield block.start + start, command, [line.rstrip() for line in block.lines[start:number]]


def same(expected: list[str], printed: list[str]) -> bool:
    """Return whether a command prints what a page says: see the top of this file."""
    expected, printed = comparable(expected), comparable(printed)
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(same(expected[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    return bool(printed) and alike(expected[0], printed[0]) and same(expected[1:], printed[1:])


def comparable(lines: list[str]) -> list[str]:
    """Leave out blank lines, the column of seconds, and what differs from run to run."""
    kept, seconds = [], False
    for line in lines:
        seconds = (seconds or line.endswith(" seconds")) and bool(line.strip())
        words = re.sub(rf" (seconds|{NUMBER})$", "", line.rstrip()) if seconds else line
        for pattern, name in VARYING:
            words = re.sub(pattern, name, words)
        if words.strip():
            kept.append(" ".join(words.split()))
    return kept


def alike(expected: str, printed: str) -> bool:
    """Return whether a line is one that a page shows, up to the digits of its numbers."""
    parts = re.split(rf"({NUMBER}|\.\.\.)", expected)
    pattern = "".join(
        re.escape(part) if number % 2 == 0 else ".*" if part == "..." else f"({NUMBER})"
        for number, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, printed)
    numbers = [part for part in parts[1::2] if part != "..."]
    return match is not None and all(
        abs(float(one) - float(other)) <= max(5e-4 * abs(float(one)), 1e-9)
        for one, other in zip(numbers, match.groups(), strict=True)
    )


def rewritten(expected: list[str], printed: list[str]) -> list[str]:
    """Return what a page is to say: all that was printed, or, of a page that leaves out lines, the nearest ones."""
    if "..." not in expected:
        return printed
    lines: list[str] = []
    for line in expected:
        nearest = difflib.get_close_matches(line, printed, n=1, cutoff=0.4)
        if line in ("...", "") or ("..." in line and any(alike(line, other) for other in printed)):
            lines.append(line)
        elif nearest:
            lines.append(nearest[0])
            printed = printed[printed.index(nearest[0]) + 1 :]
    return lines


def clone(folder: Path) -> None:
    """Make a folder like a fresh clone, with this environment as its .venv."""
    shutil.copytree(CHECKOUT, folder, ignore=NOT_COPIED, dirs_exist_ok=True)
    (folder / "outputs").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("pyproject.toml", "requirements.lock"):  # older than the environment, which make would renew
        os.utime(folder / name, (0, 0))


def write(page: Path, differences: list[Difference]) -> None:
    """Write what commands print into a page."""
    lines = page.read_text().splitlines()
    for difference in reversed(differences):
        end = difference.start + len(difference.expected)
        indentation = re.match(" *", lines[difference.start - 1])[0]
        new = rewritten(difference.expected, difference.printed)
        lines[difference.start : end] = [f"{indentation}{line}".rstrip() for line in new]
    page.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Compare the pages that are named, or all, or write them anew; return the exit code."""
    names = [name for name in sys.argv[1:] if name != "--write"]
    code = 0
    for page in [Path(name) for name in names] or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            clone(Path(folder))
            differences = Page(page, Path(folder)).run()
        for difference in differences:
            print(f"{page}, {difference}")
        if differences and "--write" in sys.argv:
            write(page, differences)
        code = code or bool(differences)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
