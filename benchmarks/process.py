"""Runs a command in a new process, and measures its time and its peak memory.

On Linux, a process inherits the peak memory of the process that starts it. So `measured` runs this file, which imports
little, in a new process, which then starts the command.
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
    """The measurements of one process.

    Attributes:
        seconds: time from its start to its end.
        memory: peak memory in MB, of the process or of one that it started and waited for, whichever is larger.
        files: number of files in its working directory afterwards.
        parts: seconds of its parts by name, which it has printed as JSON in its last line.
    """

    seconds: float
    memory: float
    files: int
    parts: dict[str, float]


def measured(command: list[str], place: Path) -> Measured:
    """Run a command in a new folder, with an empty cache of torch.compile.

    Raises:
        RuntimeError: if the command fails; the message includes its output.
    """
    place.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as cache:
        environment["TORCHINDUCTOR_CACHE_DIR"] = cache
        run = subprocess.run(
            [sys.executable, __file__, *command], capture_output=True, text=True, check=True, cwd=place, env=environment
        )
    result = json.loads(run.stdout)
    if result["code"]:
        raise RuntimeError(f"{' '.join(command)[:500]} failed:\n{result['stdout']}\n{result['stderr']}")
    last = (result["stdout"].splitlines() or [""])[-1]
    parts = json.loads(last) if last.startswith("{") else {}
    return Measured(result["seconds"], result["memory"], sum(path.is_file() for path in place.rglob("*")), parts)


def main() -> None:
    """Run the command given by the arguments, and print the measurements as JSON."""
    started = time.perf_counter()
    run = subprocess.run(sys.argv[1:], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    result: dict[str, Any] = {"seconds": seconds, "memory": memory, "code": run.returncode}
    print(json.dumps(result | {"stdout": run.stdout, "stderr": run.stderr}))


if __name__ == "__main__":
    main()
