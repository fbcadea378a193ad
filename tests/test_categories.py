"""Text columns in x: one column of 0 and 1 per category."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from runs import record, resume, train
from test_table import load, rows

from linear_lab import UserError
from linear_lab.inference.programs import export
from linear_lab.inference.remeasure import evaluate
from linear_lab.inference.rows import load as load_run
from linear_lab.inference.rows import predict
from linear_lab.runs.folder import Run
from linear_lab.terminal import layout
from linear_lab.terminal.report import show_outcome

CITIES = ("Rome", "Oslo", "Bern")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my.csv"


def test_each_category_has_a_column_of_0_and_1(path):
    data = load(path, "city,a,c\nRome,1,5\n Oslo,2,6\nRome ,3,7\n", categorical="city")
    assert rows(data) == ([[1, 0, 1], [2, 1, 0], [3, 0, 1]], [5, 6, 7])
    assert data.schema.x == ["a", "city=Oslo", "city=Rome"]
    assert data.schema.categories == {"city": ["Oslo", "Rome"]}
    assert data.schema.columns == ["a", "city"]


@pytest.mark.parametrize("x", [None, ["a"], ["city", "a", "m"], ["a", "m"]])
def test_x_may_list_the_text_columns_or_not(x, path):
    data = load(path, "city,a,m,c\nRome,1,7,5\nOslo,2,8,6\n", x=x, categorical=["m", "city"])
    assert data.schema.x == ["a", "m=7", "m=8", "city=Oslo", "city=Rome"]
    assert data.notes == []


def test_categories_are_those_of_train_and_a_note_lists_the_others(path):
    content = "s,city,a,c\ntrain,Rome,1,5\ntrain,Oslo,2,6\nval,Bern,3,7\n"
    data = load(path, content, split="s", x=["a", "city"], categorical=["city"])
    assert data.schema.categories == {"city": ["Oslo", "Rome"]}
    assert rows(data, "val") == ([[3, 0, 0]], [7])
    assert data.notes == ["not in the train part, so the model cannot learn them: city=Bern"]


def test_one_category_alone_is_a_constant_column(path):
    data = load(path, "city,a,c\nRome,1,5\nRome,2,7\n", categorical="city", standardize=True)
    assert data.parts["train"][0].tolist() == [[-1, 0], [1, 0]]
    assert data.notes == ["constant in the train part, so without effect: city=Rome"]


def test_a_row_without_a_category_is_incomplete(path):
    content = "city,a,c\nRome,1,5\n,2,6\nOslo,3,7\n"
    with pytest.raises(ValueError, match=r"column city has no value in row 2.*data.missing=drop"):
        load(path, content, categorical="city")
    data = load(path, content, categorical="city", missing="drop")
    assert rows(data) == ([[1, 0, 1], [3, 1, 0]], [5, 7])


def test_parquet_has_categories_too(tmp_path):
    frame = pl.DataFrame({"city": ["b", "a"], "k": [2, 1], "c": [1.0, 2.0]})
    frame.with_columns(pl.col("city").cast(pl.Categorical)).write_parquet(tmp_path / "my.parquet")
    data = load(tmp_path / "my.parquet", categorical=["city", "k"])
    assert data.schema.x == ["city=a", "city=b", "k=1", "k=2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"categorical": "town"}, "categorical: there is no column 'town'"),
        ({"categorical": ["city", "city"]}, "names a column twice"),
        ({"categorical": "c"}, "c: used twice in x, y, categorical and split"),
        (
            {"x": ["a", "city"]},
            r"column city holds text: 'Rome' in row 1; if it holds categories, try .*=\[city\]",
        ),
        (
            {"x": ["a", "city=Rome"], "categorical": "city"},
            "column city=Rome has the name of a category of city; rename",
        ),
        ({"categorical": "n"}, r"column n has 1500 categories, more than 1000; leave it out"),
    ],
)
def test_wrong_categories_are_named(arguments, message, path):
    content = "city,a,c,n,city=Rome\n" + "".join(f"{CITIES[k % 3]},{k * k},{k % 7},n{k},1\n" for k in range(1500))
    with pytest.raises(ValueError, match=message):
        load(path, content, **arguments)


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    """A run on c = 2 a + 10 for Rome, 20 for Oslo and 30 for Bern."""
    folder = tmp_path_factory.mktemp("cities")
    lines = [f"{CITIES[k % 3]},{k % 11},{2 * (k % 11) + 10 * (k % 3 + 1)}" for k in range(90)]
    (folder / "my.csv").write_text("\n".join(["city,a,c", *lines]))
    overrides = [f"data.path={folder / 'my.csv'}", "data.y=c", "data.categorical=[city]", "trainer.max_epochs=2000"]
    train(folder / "run", "data=table", *overrides, "trainer.precision=64-true", "optimizer.lr=0.3")
    return folder / "run"


@pytest.mark.slow("like test_rows_are_predicted_in_the_units_of_the_file")
def test_a_run_learns_predicts_and_is_measured_with_its_categories(cities, tmp_path, capsys):
    assert record(cities)["columns"]["x"] == ["a", "city=Bern", "city=Oslo", "city=Rome"]
    assert record(cities)["optimum"]["train/loss"] == pytest.approx(0, abs=1e-20)
    assert evaluate(str(cities), "last") == record(cities)["metrics"]
    (tmp_path / "new.csv").write_text("city,note,a\nOslo,x,1\n Rome,y,2.5\nBern,,0\n")
    written = predict(str(cities), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv"))
    assert pl.read_csv(written)["c_hat"].to_list() == pytest.approx([22, 15, 30], abs=1e-3)
    capsys.readouterr()
    predict(str(cities), x=[[1, "Oslo"], [2.5, "Rome"]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["a", "city", "c_hat"], ["1", "Oslo", "22"], ["2.5", "Rome", "15"]]


@pytest.mark.slow("types what is shown; test_report has the text")
def test_the_suggested_predict_command_fits_the_categories(cities, capsys):
    show_outcome(layout.screen(), Run.open(cities).record, cities, has_events=False, limits={})
    assert "linear_lab.predict" in (out := capsys.readouterr().out)
    assert "input=<file>" in out


def test_an_unseen_category_is_named(cities, tmp_path):
    (tmp_path / "new.csv").write_text("city,a\nOslo,1\nParis,2\n")
    message = r"column city holds 'Paris' in row 2, which is not a category of .*; choose one of Bern, Oslo, Rome"
    for missing in ("error", "empty"):
        with pytest.raises(UserError, match=message):
            predict(str(cities), input=str(tmp_path / "new.csv"), output=str(tmp_path / "o.csv"), missing=missing)
    with pytest.raises(UserError, match=message.replace("row 2", "row 1")):
        predict(str(cities), x=[2, "Paris"])
    for x in (["Oslo", 2], [2], [2, 3], [2, None], [[2, "Oslo", 1]], [2, ["Oslo"]]):
        with pytest.raises(UserError, match=r"x needs 2 finite values per row \(a, city\)|holds '(3|2|None)' in row 1"):
            predict(str(cities), x=x)
    (tmp_path / "new.csv").write_text("city,a\nOslo,1\n,2\n")
    with pytest.raises(UserError, match=r"column city has no value in row 2 \(missing or not finite: 1 in city\)"):
        predict(str(cities), input=str(tmp_path / "new.csv"), output=str(tmp_path / "o.csv"))
    predict(str(cities), input=str(tmp_path / "new.csv"), output=str(tmp_path / "o.csv"), missing="drop")
    assert len(pl.read_csv(tmp_path / "o.csv")) == 1


def test_an_exported_file_names_the_columns_of_its_categories(cities, tmp_path):
    path = export(str(cities), output=str(tmp_path / "model.pt2"))
    extra = {"x": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["x"]) == ["a", "city=Bern", "city=Oslo", "city=Rome"]
    x = np.array([[1.0, 0, 1, 0]])
    expected = load_run(str(cities))[2](torch.from_numpy(x))
    torch.testing.assert_close(program(torch.from_numpy(x)), expected)
    assert expected.item() == pytest.approx(22, abs=1e-3)


def test_a_run_goes_on_with_its_categories(cities):
    assert resume(cities, "trainer.max_epochs=2001")["steps"] == 2001
