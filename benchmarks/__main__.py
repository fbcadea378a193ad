"""All benchmarks, one after the other; what they print goes to outputs/benchmarks.txt too."""

import subprocess
import sys
from pathlib import Path
from typing import IO

from hardware import OVERRIDES, name

HERE = Path(__file__).parent
NAMES = ("start", "step", "data", "size", "sweep", "table", "dashboard")


def main() -> None:
    """Run all."""
    outputs = HERE.parent / "outputs"
    outputs.mkdir(exist_ok=True)
    with (outputs / "benchmarks.txt").open("w") as file:
        show(f"measured on {name()}", file)
        for script in NAMES:
            command = [sys.executable, HERE / f"{script}.py", *OVERRIDES]
            show(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, file)


def show(text: str, file: IO[str]) -> None:
    """Print, and write."""
    print(text, flush=True)
    file.write(text + "\n")


if __name__ == "__main__":
    main()
