"""The tables of benchmarks: their numbers, and that docs/speed.md has all of them in the form that the code writes."""

import importlib
import re
import sys

import pytest
from examples import CHECKOUT
from rounds import END, START, Benchmark, Measured, written

PAGE = CHECKOUT / "docs/speed.md"
CASES = {"job": {"loop": None, "stack": None, "JAX": None}}


def form(text):
    """The text without the cells that are measured."""
    return [re.sub(r"^(\| [^*|]+) \|.*", r"\1", line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["start", "step", "data", "table", "sweep"])
def test_the_page_has_the_table_that_a_benchmark_writes(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    benchmark = importlib.import_module(name).BENCHMARK
    results = {case: {row: [Measured(1.0)] for row in rows} for case, rows in benchmark.cases.items()}
    tables = PAGE.read_text().partition(START)[2].partition(END)[0]
    assert "\n".join(form(benchmark.markdown(results))) in "\n".join(form(tables))


def test_the_page_says_where_and_when_it_was_measured():
    assert re.search(rf"{START}\nMeasured on \d\d \w+ \d{{4}}, on .*\d+ cores of .+, torch [\d.]+", PAGE.read_text())


def test_a_table_has_medians_and_ratios_within_a_round():
    loop, stack = ([Measured(seconds, 300.4, 2, 1234) for seconds in times] for times in ((2, 4, 1), (1, 0.5, 0.75)))
    bench = Benchmark("Sweeps", "Summary.\n\nWhat is measured.\n", CASES, rounds=3, processes=True)
    assert bench.markdown({"job": {"loop": loop, "stack": stack, "JAX": []}}).splitlines() == [
        "### Sweeps",
        "",
        "What is measured.",
        "",
        "|  | median time | ratio | memory | files | their size |",
        "| --- | --- | --- | --- | --- | --- |",
        "| **job** |  |  |  |  |  |",
        "| loop | 2 s | 1 | 300 MB | 2 | 1,234 KB |",
        "| stack | 750 ms | 0.5 (0.125 to 0.75) | 300 MB | 2 | 1,234 KB |",
        "| JAX | not installed | - | - | - | - |",
    ]


@pytest.mark.parametrize(("processes", "order"), [(True, "abba"), (False, "baabba")])
def test_rounds_alternate_the_order_and_leave_out_the_warm_up(processes, order, capsys):
    called = []
    contestants = {name: lambda name=name: called.append(name) or Measured(len(called)) for name in "ab"}
    bench = Benchmark("B", "", {"case": contestants | {"missing": None}}, rounds=2, processes=processes)
    results = bench.measure()["case"]
    assert "".join(called) == order
    assert [len(results[name]) for name in ("a", "b", "missing")] == [2, 2, 0]
    assert "B, round 2 of 2: case, b" in capsys.readouterr().err


def test_only_what_stands_between_the_comments_is_replaced():
    assert written(f"a\n{START}old\n{END}z\n", "new\n") == f"a\n{START}\nnew\n\n{END}z\n"
