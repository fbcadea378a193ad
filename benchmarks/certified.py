"""Prints a table of the correct digits of certified coefficients, for the optimum and for training.

The data sets are linear ones of NIST's Statistical Reference Datasets
(https://www.itl.nist.gov/div898/strd/lls/lls.shtml): those that a formula defines, and Longley's, whose columns are
nearly dependent. The number of correct digits is LRE = -log10(|c - certified| / |certified|) (McCullough, "Assessing
the Reliability of Statistical Software: Part I", The American Statistician 52, 1998). The table shows the worst
coefficient of each set.
"""

import logging
import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from linear_lab import compose, train_run
from linear_lab.runs.record import Record

DIGITS = 15.0  # digits of a certified value


@dataclass(frozen=True)
class Certified:
    """A data set: its columns, and its certified coefficients, beginning with the intercept if there is one."""

    x: dict[str, list[float]]
    y: list[float]
    coefficients: list[float]

    @property
    def bias(self) -> bool:
        """Whether the model has an intercept."""
        return len(self.coefficients) > len(self.x)

    def write(self, folder: Path) -> list[str]:
        """Write the data set as a CSV file; return the overrides that train on all of its rows."""
        path = folder / "set.csv"
        pl.DataFrame(self.x | {"y": self.y}).write_csv(path)
        bias = str(self.bias).lower()
        return ["data=table", f"data.path={path}", "data.y=[y]", "data.fractions=[1,0,0]", f"model.bias={bias}"]

    def lre(self, parameters: dict[str, Any]) -> float:
        """Return the number of correct digits of the worst coefficient."""
        values = [*(parameters["bias"] or []), *parameters["weight"][0]]
        return min(map(lre, values, self.coefficients))


def lre(value: float, certified: float) -> float:
    """Return the number of correct digits of a value.

    >>> round(lre(0.999, 1.0), 9)
    3.0
    """
    return DIGITS if value == certified else min(DIGITS, -math.log10(abs(value - certified) / abs(certified)))


def powers(values: list[float], y: list[float], coefficients: list[float]) -> Certified:
    """Return the data set of a polynomial of degree 5."""
    return Certified({f"x{k}": [x**k for x in values] for k in range(1, 6)}, y, coefficients)


X = [float(x) for x in range(21)]
WAMPLER1 = [float(sum(x**k for k in range(6))) for x in range(21)]
# the errors of Wampler4; Wampler3 has these divided by 100, and Wampler5 multiplied by 100
ERRORS = [75900, -204800, 204800, -204800, 252300, -204800, 204800, -204800, 183800, -204800, 204800]
ERRORS = [float(error) for error in (*ERRORS, *ERRORS[9::-1])]
LONGLEY = {  # J. W. Longley, Journal of the American Statistical Association 62, 1967; y is total employment
    "deflator": [83.0, 88.5, 88.2, 89.5, 96.2, 98.1, 99.0, 100.0, 101.2, 104.6, 108.4, 110.8, 112.6, 114.2, 115.7,
                 116.9],
    "gnp": [234289, 259426, 258054, 284599, 328975, 346999, 365385, 363112, 397469, 419180, 442769, 444546, 482704,
            502601, 518173, 554894],
    "unemployed": [2356, 2325, 3682, 3351, 2099, 1932, 1870, 3578, 2904, 2822, 2936, 4681, 3813, 3931, 4806, 4007],
    "forces": [1590, 1456, 1616, 1650, 3099, 3594, 3547, 3350, 3048, 2857, 2798, 2637, 2552, 2514, 2572, 2827],
    "population": [107608, 108632, 109773, 110929, 112075, 113270, 115094, 116219, 117388, 118734, 120445, 121950,
                   123366, 125368, 127852, 130081],
    "year": [*range(1947, 1963)],
}  # fmt: skip
EMPLOYED = [
    60323,
    61122,
    60171,
    61187,
    63221,
    63639,
    64989,
    63761,
    66019,
    67857,
    68169,
    66513,
    68655,
    69564,
    69331,
    70551,
]
SETS = {
    "NoInt1": Certified({"x": [*map(float, range(60, 71))]}, [*map(float, range(130, 141))], [2.07438016528926]),
    "Longley": Certified(
        {name: [*map(float, values)] for name, values in LONGLEY.items()}, [*map(float, EMPLOYED)],
        [-3482258.63459582, 15.0618722713733, -0.0358191792925910, -2.02022980381683, -1.03322686717359,
         -0.0511041056535807, 1829.15146461355],
    ),
    "Wampler1": powers(X, WAMPLER1, [1.0] * 6),
    "Wampler2": powers(X, [sum(10.0**-k * x**k for k in range(6)) for x in X], [10.0**-k for k in range(6)]),
    "Wampler3": powers(X, [y + error / 100 for y, error in zip(WAMPLER1, ERRORS, strict=True)], [1.0] * 6),
    "Wampler4": powers(X, [y + error for y, error in zip(WAMPLER1, ERRORS, strict=True)], [1.0] * 6),
    "Wampler5": powers(X, [y + 100 * error for y, error in zip(WAMPLER1, ERRORS, strict=True)], [1.0] * 6),
}  # fmt: skip
LBFGS = ["optimizer=lbfgs", "trainer.precision=64-true", "trainer.max_epochs=50"]
SOLVERS = {
    "optimum": [],
    "lbfgs, 64-true, 50 steps": LBFGS,
    "sgd, 32-true, 500 steps": ["optimizer=sgd"],
    "adam, 32-true, 500 steps": ["optimizer=adam"],
}
FLOAT32 = ("NoInt1", "synthetic")  # data sets that 500 steps in float32 can solve
SYNTHETIC = ["data=synthetic", "data.features=3"]  # compared with its optimum


def train(folder: Path, *overrides: str) -> Record:
    """Train in a folder; return the record."""
    return train_run(compose([*overrides, "logger=none"]), folder).record


def digits(name: str, overrides: list[str], folder: Path) -> tuple[float, float]:
    """Return the numbers of correct digits of the optimum and of the learned parameters."""
    folder.mkdir()
    known = SETS.get(name)
    record = train(folder / "run", *(known.write(folder) if known else SYNTHETIC), *overrides)
    optimum: dict[str, Any] = record.optimum or {}
    if known:
        return known.lre(optimum), known.lre(record.parameters)
    return DIGITS, Certified({}, [], [*optimum["bias"], *optimum["weight"][0]]).lre(record.parameters)


def main() -> None:
    """Print the table as Markdown."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"| set | {' | '.join(SOLVERS)} |\n|{'---|' * (1 + len(SOLVERS))}")
    with tempfile.TemporaryDirectory() as place:
        for name in (*SETS, "synthetic"):
            cells = []
            for k, (solver, overrides) in enumerate(SOLVERS.items()):
                if (name == "synthetic" and solver == "optimum") or ("32" in solver and name not in FLOAT32):
                    cells.append("-")
                    continue
                optimum, learned = digits(name, overrides or LBFGS, Path(place, f"{name}{k}"))
                cells.append(f"{optimum if solver == 'optimum' else learned:.1f}")
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
