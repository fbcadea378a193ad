"""Collects into .gpu-wheels what ``make gpu`` needs on a machine without a network.

Such a machine is taken to have Python 3.12, PyTorch, Lightning, TensorBoard, matplotlib, rich and pytest. If it lacks
more, name those packages too: ``make gpu-wheels ARGS="rich markdown-it-py"``. The versions are those of the lock files.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
WHEELS, PYTHON = CHECKOUT / ".gpu-wheels", "3.12"
# the package pytorch-lightning alone has no module called lightning
RUNNING = (
    "annotated-types hydra-core lightning omegaconf polars polars-runtime-32 pydantic pydantic_core typing-inspection"
)
TESTING = "execnet filelock hydra-joblib-launcher hypothesis joblib pytest-xdist sortedcontainers"
BUILT = "antlr4-python3-runtime"  # has no wheel
LIBC = (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)  # versions of glibc for which wheels are built
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in LIBC), "manylinux2014_x86_64", "manylinux1_x86_64"]


def pinned(name: str, locked: str) -> str:
    """Return a package with its version in the lock files, if it has one there."""
    found = re.search(rf"^{re.sub('[-_]', '[-_]', name)}==.*$", locked, re.MULTILINE | re.IGNORECASE)
    return found[0] if found else name


def main() -> None:
    """Download the wheels, and show their size."""
    locked = "\n".join((CHECKOUT / f"requirements{group}.lock").read_text() for group in ("", "-dev"))
    names = [*RUNNING.split(), *TESTING.split(), *sys.argv[1:]]
    shutil.rmtree(WHEELS, ignore_errors=True)
    where = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    where += [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    given = ["--no-deps", "--dest", str(WHEELS), *(pinned(name, locked) for name in names)]
    subprocess.run([*pip, "download", *where, *given], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(WHEELS), pinned(BUILT, locked)], check=True)
    wheels = [*WHEELS.glob("*.whl")]
    print(f"{len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:.0f} MB in {WHEELS.name}")


if __name__ == "__main__":
    main()
