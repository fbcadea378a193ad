"""Runs all that wants a GPU, and writes outputs/gpu.md, one file with all results, and outputs/map.png.

The parts are the tests marked ``gpu``, the map of 4,096 x 4,096 runs, and the benchmarks of sweeps and steps. A part
that takes longer than its limit is stopped, so that all of it ends within eight minutes. ``trainer=cpu side=64`` tries
the tests and a small map on a machine without a GPU.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from map import options

CHECKOUT = Path(__file__).resolve().parents[1]
HERE, OUTPUT = CHECKOUT / "benchmarks", CHECKOUT / "outputs/gpu.md"
OPTIONS = {"trainer": "gpu", "side": "4096"}
TESTS = ["-m", "pytest", "-m", "gpu", "-n0", "-v", "--durations=8", "-p", "no:cacheprovider", "tests/test_gpu.py"]


def parts(trainer: str, side: str) -> dict[str, tuple[float, list[str]]]:
    """Return the parts by name: the limit in seconds, and the arguments of Python."""
    both = {
        "tests": (130.0, TESTS),
        "map": (60.0, [str(HERE / "map.py"), f"trainer={trainer}", f"side={side}"]),
    }
    if trainer == "cpu":  # make bench measures the rest
        return {name: (4 * limit, arguments) for name, (limit, arguments) in both.items()}
    return both | {
        "sweeps": (170.0, [str(HERE / "sweep.py"), f"trainer={trainer}", "--quick"]),
        "steps": (115.0, [str(HERE / "step.py"), f"trainer={trainer}"]),
    }


def run(arguments: list[str], limit: float, environment: dict[str, str]) -> tuple[str, str]:
    """Run a part; return how it ended, and what it printed on standard output."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=CHECKOUT, env=os.environ | environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"stopped after {limit:.0f} s", process.communicate()[0]
    return "passed" if process.returncode == 0 else f"exit code {process.returncode}", text


def machine(trainer: str) -> str:
    """Return the hardware, and the versions of Python and the libraries."""
    card = torch.cuda.get_device_name() if trainer == "gpu" else "no GPU"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "numpy"))
    return f"{card}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, {libraries}"


def main() -> None:
    """Run the parts one after the other, and write the file after each of them."""
    chosen = options(sys.argv[1:], OPTIONS)
    began, started = f"{datetime.now(UTC):%d %B %Y}", time.perf_counter()
    rows, texts, failed = ["| part | seconds | |", "|---|---|---|"], [], False
    for name, (limit, arguments) in parts(**chosen).items():
        print(f"{name}, at most {limit:.0f} s", file=sys.stderr, flush=True)
        before = time.perf_counter()
        ended, text = run(arguments, limit, {"LINEAR_LAB_TRAINER": chosen["trainer"]})
        failed |= ended != "passed"
        rows.append(f"| {name} | {time.perf_counter() - before:.0f} | {ended} |")
        texts += [f"## {name}", f"```text\n{text.strip()}\n```"]
        total = f"{time.perf_counter() - started:.0f} seconds in all"
        head = ["# Measured on a GPU", f"{began}, {machine(chosen['trainer'])}; {total}.", "\n".join(rows)]
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text("\n\n".join([*head, *texts]) + "\n")
        print(text, flush=True)
    print("\n".join([*rows, f"\nwritten to {OUTPUT.relative_to(CHECKOUT)}"]))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
