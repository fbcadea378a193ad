"""Measures contestants in rounds, and shows the medians and ratios as tables in Markdown.

The contestants of a case do the same work. The first one of each case is the baseline: ratios divide the time of a
contestant by that of the baseline in the same round.
"""

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

START, END = "<!-- make bench ARGS=--write writes what follows -->\n", "<!-- end of what it writes -->\n"


class Measured(NamedTuple):
    """What one contestant did in one round.

    Attributes:
        seconds: time.
        memory: peak memory of a process in MB, or that of a process that it started and waited for, if larger.
        files: number of files that a process left.
        size: size of these files in KB.
    """

    seconds: float
    memory: float = 0.0
    files: int = 0
    size: float = 0.0


Results = dict[str, dict[str, list[Measured]]]  # by case and contestant, one per round


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its contestants, and the text above its table.

    Attributes:
        title: the heading.
        text: what is measured: a summary, which is left out, a blank line, and the description.
        cases: by case and name, a function that does the work once; None if a contestant is not installed.
        rounds: the number of rounds.
        processes: whether contestants are processes, whose memory and files are shown too.
    """

    title: str
    text: str
    cases: Mapping[str, Mapping[str, Callable[[], Measured] | None]]
    rounds: int
    processes: bool = False

    def measure(self) -> Results:
        """Call all contestants of a case once per round, in every other round in the opposite order.

        A first round that is not counted warms up contestants that are not processes.
        """
        results: Results = {}
        for case, contestants in self.cases.items():
            results[case] = {name: [] for name in contestants}
            for number in range(0 if self.processes else -1, self.rounds):
                for name, call in list(contestants.items())[:: -1 if number % 2 else 1]:
                    if call is None:
                        continue
                    print(f"{self.title}, round {number + 1} of {self.rounds}: {case}, {name}", file=sys.stderr)
                    one = call()
                    results[case][name] += [one] if number >= 0 else []
        return results

    def markdown(self, results: Results) -> str:
        """Return the heading, the text and the table."""
        titles = ["", "median time", "ratio", *(["memory", "files", "their size"] if self.processes else [])]
        rows = [titles, ["---"] * len(titles)]
        for case, contestants in results.items():
            base, *_ = contestants.values()
            rows.append([f"**{case}**", *[""] * (len(titles) - 1)])
            for name, rounds in contestants.items():
                cells = [duration([one.seconds for one in rounds]), ratio(rounds, base) if rounds else "-"]
                if self.processes and rounds:
                    memory, files, size = (max(values) for values in list(zip(*rounds, strict=True))[1:])
                    cells += [f"{memory:,.0f} MB", f"{files:,}", f"{size:,.0f} KB"]
                rows.append([name, *cells, *["-"] * (len(titles) - 1 - len(cells))])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        _, description = self.text.strip().split("\n\n", 1)
        return f"### {self.title}\n\n{description}\n\n{table}"


def duration(seconds: list[float]) -> str:
    """Return the median of seconds as text.

    >>> duration([0.0012, 0.001, 0.5]), duration([50.04]), duration([])
    ('1.2 ms', '50 s', 'not installed')
    """
    if not seconds:
        return "not installed"
    median = statistics.median(seconds)
    return f"{digits(median)} s" if median >= 1 else f"{digits(median * 1000)} ms"


def ratio(rounds: list[Measured], base: list[Measured]) -> str:
    """Return the ratio to the baseline: the median, the smallest and the largest within a round.

    >>> ratio([Measured(1.0), Measured(3.0)], [Measured(2.0), Measured(2.0)])
    '1 (0.5 to 1.5)'
    """
    ratios = [one.seconds / other.seconds for one, other in zip(rounds, base, strict=True)]
    if rounds is base:
        return "1"
    return f"{digits(statistics.median(ratios))} ({digits(min(ratios))} to {digits(max(ratios))})"


def digits(value: float) -> str:
    """Return three digits of a number, or a whole number.

    >>> digits(0.01234), digits(12345.6)
    ('0.0123', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def written(page: str, tables: str) -> str:
    """Return a page with other tables between its two comments."""
    before, rest = page.split(START)
    return f"{before}{START}\n{tables}\n{END}{rest.split(END)[1]}"
