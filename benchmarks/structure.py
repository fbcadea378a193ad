"""Measures the structure of the code, and compares it with its goals: ``make structure``.

Exits with code 1 if a measure is worse than the recorded one in benchmarks/structure.json. A new capability may raise a
recorded measure, in a commit that says why; ``--write`` records the present measures.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).parents[1]
SRC, RECORDED = ROOT / "src", ROOT / "benchmarks" / "structure.json"
GOALS = {
    "lines of src": 7000,
    "files without __init__": 55,
    "longest file": 300,
    "longest function": 60,
    "longest fitting/run.py": 150,
    "files that a default run executes": 30,
    "files that the config enters": 12,
    "steps back to a file that it was in": 5,
    "import circles": 0,
    "undocumented names outside compat.py": 0,
    "functions in compat.py": 8,
    "pairs of files with one name": 0,
}
COMMANDS = {"train", "evaluate", "predict", "export", "leaderboard", "dashboard"}
UNDOCUMENTED = (  # names of Lightning, torch, Hydra, TensorBoard, Optuna and CPython that their docs do not mention
    r"hydra\._internal", r"_get_node", r"_return_value", r"\.f_back", r"_get_file_writer", r"trainer\._\w+",
    r"_current_fx_name", r"_generate_state_key", r"restarted_on_train_batch_end", r"total_batch_idx",
    r"val_check_batch", r"enable_validation", r"callback_metrics\.update", r"logged_metrics", r"trainer\.callbacks\b",
    r"gc\.(freeze|set_threshold|disable|get_freeze_count)", r"launcher\.joblib", r"BasicLauncher",
    r"hasattr\(.*launcher", r"torch\._\w+", r"__setattr__\(", r"trainer\.profiler",
)  # fmt: skip
TRACED = """
import json, sys
from omegaconf import DictConfig
files, rooms = set(), []
def look(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call" and "/linear_lab/" in name:
        code = frame.f_code
        if code.co_name == "<module>" or not code.co_flags & 2:  # imports, and the bodies of classes
            return
        files.add(name)
        given = [frame.f_locals.get(key) for key in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        if any(isinstance(value, DictConfig) for value in given) and rooms[-1:] != [name]:
            rooms.append(name)
sys.setprofile(look)
sys.argv = ["train", "output_root=" + sys.argv[1]]
from linear_lab.train import main
try:
    main()
finally:
    sys.setprofile(None)
    print(json.dumps([sorted(files), rooms]))
"""


def main() -> int:
    """Print the measures; return 1 if one is worse than the recorded one, else 0."""
    recorded: dict[str, int] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    measures = dict(measured())
    print(f"{'':40}{'now':>8}{'recorded':>10}{'goal':>8}")
    for name, value in measures.items():
        worse = " worse" if value > recorded.get(name, value) else ""
        print(f"{name:40}{value:8}{recorded.get(name, value):10}{GOALS[name]:8}{worse}")
    if "--write" in sys.argv:
        RECORDED.write_text(json.dumps(measures, indent=2) + "\n")
        return 0
    return int(any(value > recorded.get(name, value) for name, value in measures.items()))


def measured() -> Iterator[tuple[str, int]]:
    """Yield the measures, by the names of their goals."""
    paths = sorted(SRC.rglob("*.py"))
    texts = {path: path.read_text() for path in paths}
    modules = [path for path in paths if path.name != "__init__.py"]
    yield "lines of src", sum(len(text.splitlines()) for text in texts.values())
    yield "files without __init__", len(modules)
    yield "longest file", max(len(text.splitlines()) for text in texts.values())
    yield "longest function", max(length for text in texts.values() for length in function_lengths(text))
    yield "longest fitting/run.py", len(texts[SRC / "linear_lab/fitting/run.py"].splitlines())
    executed, rooms = traced()
    yield "files that a default run executes", len([name for name in executed if not name.endswith("__init__.py")])
    yield "files that the config enters", len(set(rooms))
    yield "steps back to a file that it was in", len(rooms) - len(set(rooms))
    yield "import circles", circles()
    compat = SRC / "linear_lab/compat.py"
    others = [text for path, text in texts.items() if path != compat]
    yield "undocumented names outside compat.py", sum(len(re.findall("|".join(UNDOCUMENTED), text)) for text in others)
    yield "functions in compat.py", sum(isinstance(node, ast.FunctionDef) for node in ast.parse(texts[compat]).body)
    stems = sorted(path.stem for path in modules if path.stem not in COMMANDS)
    yield "pairs of files with one name", sum(stem(one) == stem(other) for one, other in pairwise(sorted(stems)))


def function_lengths(text: str) -> Iterator[int]:
    """Yield the length of each function, in lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1


def stem(name: str) -> str:
    """Remove the ending in which forms of one word differ, such as ``ing``."""
    return re.sub(r"(ings?|ions?|ed|ers?|s|e)$", "", name)


def traced() -> tuple[list[str], list[str]]:
    """Train a default run; return the files that it executes, and those that get the config, in order of the calls."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TRACED, folder]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    files: Any
    rooms: Any
    files, rooms = json.loads(out.splitlines()[-1])
    return files, rooms


def circles() -> int:
    """Count the groups of modules that import each other in a circle, including imports within functions."""
    graph = grimp.build_graph("linear_lab", exclude_type_checking_imports=True, cache_dir=None)
    downstream = {module: graph.find_downstream_modules(module) for module in graph.modules}
    remaining, count = set(graph.modules), 0
    while remaining:
        module = remaining.pop()
        circle = {other for other in remaining if other in downstream[module] and module in downstream[other]}
        remaining -= circle
        count += bool(circle)
    return count


if __name__ == "__main__":
    raise SystemExit(main())
