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

from rounds import Measured


def measured(*command: str) -> Measured:
    """Run a command in an empty folder, with an empty cache of torch.compile.

    Raises:
        RuntimeError: if the command fails; the message includes its output.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        environment["TORCHINDUCTOR_CACHE_DIR"] = cache
        driver = [sys.executable, __file__, *command]
        run = subprocess.run(driver, capture_output=True, text=True, check=True, cwd=folder, env=environment)
        result = json.loads(run.stdout)
        if result["code"]:
            raise RuntimeError(f"{' '.join(command)[:500]} failed:\n{result['stdout']}\n{result['stderr']}")
        sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    return Measured(result["seconds"], result["memory"], len(sizes), sum(sizes) / 1000)


def main() -> None:
    """Run the command given by the arguments, and print the measurements as JSON."""
    started = time.perf_counter()
    run = subprocess.run(sys.argv[1:], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    result = {"seconds": seconds, "memory": memory, "code": run.returncode}
    print(json.dumps(result | {"stdout": run.stdout, "stderr": run.stderr}))


if __name__ == "__main__":
    main()
