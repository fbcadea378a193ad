"""Runs a command as a process of its own, and says how long it took and how much memory it had at most.

On Linux the peak of a process begins with that of the one that starts it, so this file is itself run as a process,
which imports next to nothing.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """What a process took.

    Attributes:
        seconds: from its start to its end.
        memory: the most that it, or one of the processes that it started and waited for, had, in MB.
        files: that it left in the folder where it ran.
        parts: seconds of its parts, by name, as it printed them in its last line.
    """

    seconds: float
    memory: float
    files: int
    parts: dict[str, float]


def measured(command: list[str], place: Path) -> Measured:
    """Run a command in a new folder, with a cache of compiled kernels that is empty.

    Raises:
        RuntimeError: if it fails, with what it wrote.
    """
    place.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as cache:
        environment["TORCHINDUCTOR_CACHE_DIR"] = cache
        run = subprocess.run(
            [sys.executable, __file__, *command], capture_output=True, text=True, check=True, cwd=place, env=environment
        )
    found = json.loads(run.stdout)
    if found["code"]:
        raise RuntimeError(f"{' '.join(command)[:500]} failed:\n{found['stdout']}\n{found['stderr']}")
    last = (found["stdout"].splitlines() or [""])[-1]
    parts = json.loads(last) if last.startswith("{") else {}
    return Measured(found["seconds"], found["memory"], sum(path.is_file() for path in place.rglob("*")), parts)


def main() -> None:
    """Run the command that the arguments are."""
    started = time.perf_counter()
    run = subprocess.run(sys.argv[1:], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    found: dict[str, Any] = {"seconds": seconds, "memory": memory, "code": run.returncode}
    print(json.dumps(found | {"stdout": run.stdout, "stderr": run.stderr}))


if __name__ == "__main__":
    main()
