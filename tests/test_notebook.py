"""The tutorial: what is stored in its file, and whether an execution gives the same."""

import json
import re
import shutil
from itertools import pairwise

import polars as pl
import pytest

from linear_lab import CHECKOUT
from linear_lab.theory import stability

TUTORIAL = CHECKOUT / "notebooks" / "backpropagation.ipynb"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
RUN_FOLDER = re.compile(r"\d{8}-\d{6}-[a-z0-9]{4}")
MOVES = [("sgd", 0.111), ("sgd", 0.119), ("sgd", 0.12), ("sgd", 1.0), ("adam", 1.0), ("adam", 0.001)]
MOVE = """
import hashlib, json

moves = []
for name, rate in {moves}:
    optimizer.value, lr.value = name, rate
    shown = [list(map(float, values)) for values in (*curve.get_data(), *path.get_data())]
    moves.append([caption.get_text(), shown, picture.value[:4].hex(), hashlib.sha256(picture.value).hexdigest()])
print(json.dumps(moves))
"""


def code_cells():
    return [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "code"]


def texts(outputs):
    """What the outputs of a cell say, as one text; pictures are left out."""
    said = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(text if isinstance(text, str) else "".join(text) for text in said)


def parts(text):
    """The words of a text, and its numbers; the widths of columns and the names of runs are left out."""
    text = re.sub(r"[\s─═┄]+", " ", RUN_FOLDER.sub("run", text))
    return NUMBER.split(text), [float(number) for number in NUMBER.findall(text)]


def test_the_stored_outputs_are_those_of_one_execution_without_errors():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    said = "\n".join(texts(cell["outputs"]) for cell in cells)
    for number in ("25.128278732299805", "-27.430084228515625", "1.5931473970413208", "gradient  -2.0"):
        assert number in said


def test_the_file_is_small_and_says_nothing_about_a_machine():
    text = TUTORIAL.read_text()
    assert len(text) < 300_000
    assert not re.findall(r"/(?:home|root|tmp|work|usr|opt|Users|content)/|[A-Z]:\\\\|site-packages|ipykernel", text)
    notebook = json.loads(text)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert not [cell["id"] for cell in notebook["cells"] if cell["metadata"]]


def test_the_links_of_the_text_lead_to_files():
    cells = [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "markdown"]
    links = [link for cell in cells for link in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"]))]
    assert links
    assert [link for link in links if not (TUTORIAL.parent / link).exists()] == []


def test_numbers_are_compared_to_three_digits():
    words, numbers = parts("a  1.5e-07 b\n │ -2 │ in 20261126-222054-iha2-sgd")
    assert (words, numbers) == (["a ", " b │ ", " │ in run-sgd"], [1.5e-07, -2.0])
    assert parts("loss 1.0004")[1] == approximately([1.0])
    assert parts("loss 1.002")[1] != approximately([1.0])
    assert parts("loss 3e-10")[1] == approximately([0.0])


def approximately(numbers):
    return pytest.approx(numbers, rel=1e-3, abs=1e-9)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The tutorial after an execution, a second one with moves of the slider after the last cell, and their folder."""
    import nbformat
    from execute import execute

    folder = tmp_path_factory.mktemp("notebook")
    copy = shutil.copy(TUTORIAL, folder)
    first, second = nbformat.read(copy, as_version=4), nbformat.read(copy, as_version=4)
    execute(first, folder)
    second.cells.append(nbformat.v4.new_code_cell(MOVE.format(moves=MOVES)))
    execute(second, folder)
    return first, second, folder


@pytest.mark.notebook
@pytest.mark.parametrize("execution", [0, 1], ids=["first", "second"])
def test_an_execution_gives_the_stored_numbers(executed, execution):
    stored = code_cells()
    cells = [cell for cell in executed[execution].cells if cell.cell_type == "code"][: len(stored)]
    for before, now in zip(stored, cells, strict=True):
        (words, numbers), (expected_words, expected_numbers) = (
            parts(texts(now.outputs)),
            parts(texts(before["outputs"])),
        )
        assert words == expected_words, before["id"]
        assert numbers == approximately(expected_numbers), before["id"]
        kinds = [sorted(output.get("data", ())) for output in now.outputs]
        assert kinds == [sorted(output.get("data", ())) for output in before["outputs"]], before["id"]


@pytest.mark.notebook
def test_the_slider_shows_the_chosen_job(executed):
    _, notebook, folder = executed
    moves = json.loads(notebook.cells[-1].outputs[0].text)
    sweep = folder / "outputs" / "sweeps" / "thousand_runs"
    history, results = (pl.read_parquet(sweep / f"{name}.parquet") for name in ("history", "results"))
    for (name, rate), (caption, (steps, losses, weights, biases), start, _) in zip(MOVES, moves, strict=True):
        job = results.row(by_predicate=pl.col("name") == f"{name}-lr={rate}", named=True)
        kept = history.filter(pl.col("name") == job["name"], pl.col("step") <= job["steps"])
        assert steps == kept["step"].to_list() == [*range(job["steps"] + 1)]
        assert losses == kept["train/loss"].to_list()
        assert [{"weight": [[w]], "bias": [b]} for w, b in zip(weights, biases, strict=True)] == [*kept["parameters"]]
        diverged = name == "sgd" and rate > stability.stable_lr(16.7)
        outcome = "diverged" if diverged else "completed"
        assert caption.startswith(f"{name}, lr {rate}\n{outcome}, loss ")
        assert (losses[-1] > losses[0]) == diverged
        assert bytes.fromhex(start) == b"\x89PNG"
    assert all(one[-1] != other[-1] for one, other in pairwise(moves))
