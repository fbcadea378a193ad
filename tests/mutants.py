"""Changes src one expression at a time, and lists the changes that no test notices: ``make mutants``.

mutmut does this in a copy of the tree, mutants/. ``[tool.mutmut]`` in pyproject.toml names the changed files and the
tests. Exits with code 1 if a change survives that is not in EQUAL. Show a change with ``.venv/bin/mutmut show <name>``.
"""

import shutil
import subprocess
import sys
from collections import Counter

MUTMUT = [sys.executable, "-m", "mutmut"]
# Lines after changes that no test can notice, by the reason.
EQUAL = {
    "float() reads capital letters too": ['return float("INF")'],
    "json.dumps takes None as False": [
        'lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=None)}" for key, value in fields.items()]',
    ],
    "a column of zeros can be divided by any number": ["largest[largest == 0] = 2.0"],
    "int64 is the default type of whole numbers": [
        "self.best_step, self.small_at, self.diverged_at, self.diverged_by = (of_each(-1, None) for _ in range(4))",
    ],
    "float64 is NumPy's default type": ["return torch.from_numpy((total * 2 / y.numel()).astype(None))"],
    "x and y have equally many rows": [
        "for x_block, y_block in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=None):",
        "for x_block, y_block in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=False):",
        "for x_block, y_block in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), ):",
    ],
    "R is the same; the default mode computes Q too": [
        "triangle = torch.linalg.qr(torch.cat([triangle, block]), ).R",
    ],
    "a third step of refinement changes the last digit only": ["for _ in range(3):"],
    "only tensors on a GPU show the difference": ["curved = distance @ self._factor.T.to(None)"],
    "rounding decides whether a number equals its bound": [
        "return weight, torch.where(bias.abs() < EPS * torch.maximum(y, weight.abs() @ x), 0.0, bias)",
        "loss = 0.0 if loss < (EPS * y.abs().amax(0) / y_units[1]).square().mean() else loss",
        "worthwhile = len(x) <= BLOCK or s[0] >= WELL_CONDITIONED * s[-1]",
    ],
}


def mutmut(*arguments: str) -> list[str]:
    """Return the lines that a command of mutmut prints."""
    return subprocess.run([*MUTMUT, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def changed(name: str) -> str:
    """Return the changed lines of a mutant: the new ones, or the removed ones if there are no new ones."""
    diff = mutmut("show", name)[3:]
    lines = [line for line in diff if line.startswith("+")] or [line for line in diff if line.startswith("-")]
    return "\n".join(line[1:].strip() for line in lines)


def main() -> int:
    """Run mutmut; print a table of the modules and the mutants that survived; return the exit code."""
    shutil.rmtree("mutants", ignore_errors=True)  # mutmut would keep the results of earlier tests
    if code := subprocess.run([*MUTMUT, "run", *sys.argv[1:]]).returncode:
        return code
    equal, counts = {line for lines in EQUAL.values() for line in lines}, Counter[tuple[str, str]]()
    noticed, survivors = ["killed", "timeout"] + (["not checked"] if sys.argv[1:] else []), []
    for line in mutmut("results", "--all", "true"):
        name, _, status = line.strip().rpartition(": ")
        if status == "survived" and changed(name) in equal:
            status = "equal"
        elif status not in noticed:
            survivors.append(f"{name}: {status}\n    {changed(name)}")
        counts[name.partition(".x")[0], status] += 1
    for (module, status), count in sorted(counts.items()):
        print(f"{module:<40}{status:<12}{count:>5}")
    print(*survivors, sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
