"""All benchmarks, one after the other; what they print goes to outputs/benchmarks.txt too."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("start", "step", "data", "size", "sweep", "table", "dashboard")


def main() -> None:
    """Run all."""
    outputs = HERE.parent / "outputs"
    outputs.mkdir(exist_ok=True)
    with (outputs / "benchmarks.txt").open("w") as file:
        for name in NAMES:
            run = subprocess.run([sys.executable, HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True, check=True)
            print(run.stdout, flush=True)
            file.write(run.stdout + "\n")


if __name__ == "__main__":
    main()
