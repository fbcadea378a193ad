"""Runs all benchmarks one after the other, and writes their output to the terminal and to outputs/benchmarks.txt.

With ``--quick``, runs only the benchmark of sweeps, with few jobs.
"""

import subprocess
import sys
from pathlib import Path
from typing import IO

from hardware import QUICK, name

HERE = Path(__file__).parent
NAMES = ("start", "step", "data", "size", "sweep", "table", "dashboard")


def main() -> None:
    """Run the benchmarks."""
    outputs = HERE.parent / "outputs"
    outputs.mkdir(exist_ok=True)
    with (outputs / "benchmarks.txt").open("w") as file:
        show(f"measured on {name()}", file)
        for script in ("sweep",) if QUICK else NAMES:
            command = [sys.executable, HERE / f"{script}.py", *sys.argv[1:]]
            show(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, file)


def show(text: str, file: IO[str]) -> None:
    """Print a text, and write it to a file."""
    print(text, flush=True)
    file.write(text + "\n")


if __name__ == "__main__":
    main()
