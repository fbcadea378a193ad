"""Runs all benchmarks one after the other, and writes their tables to the terminal and to outputs/benchmarks.txt.

With `--quick`, runs only the benchmark of sweeps, once and without its longest rows. With `--write`, also writes the
tables into docs/speed.md, and the picture into docs/speed.png.
"""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from hardware import QUICK, WRITE, name
from rounds import written

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE, OUTPUT = CHECKOUT / "docs/speed.md", CHECKOUT / "outputs/benchmarks.txt"
NAMES = ("start", "step", "data", "table", "sweep")


def main() -> None:
    """Run the benchmarks."""
    texts = [f"Measured on {datetime.now(UTC):%d %B %Y}, on {name()}.\n"]
    print(texts[0], flush=True)
    for script in ("sweep",) if QUICK else NAMES:
        command = [sys.executable, CHECKOUT / "benchmarks" / f"{script}.py", *sys.argv[1:]]
        texts.append(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(texts[-1], flush=True)
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text("\n".join(texts))
    if WRITE:
        PAGE.write_text(written(PAGE.read_text(), "\n".join(texts)))


if __name__ == "__main__":
    main()
