"""Predictions in the units of the data file, and exported files."""

import csv
import json
import math
import subprocess
import sys

import polars as pl
import pytest
import torch
from runs import record, slow, train
from test_table import table

from linear_lab import UserError
from linear_lab.data.files import TableFile
from linear_lab.inference import programs
from linear_lab.inference.programs import export
from linear_lab.inference.rows import ROWS, Predictor, as_rows, load, predict


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A run on a table with three columns of x, and the table."""
    folder = tmp_path_factory.mktemp("trees")
    frame, overrides = table(folder)
    train(folder / "run", *overrides, "data.x=[a,same,d]", "trainer.precision=64-true", "trainer.max_epochs=100")
    return folder / "run", frame


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A run of softmax regression."""
    folder = tmp_path_factory.mktemp("kinds")
    train(folder, "data=toy_classes", "loss=cross_entropy", "trainer.max_epochs=100", "optimizer.lr=1")
    return folder


def by_hand(run, frame):
    """Return y_hat, computed from the parameters in the record."""
    parameters = record(run)["best"]["parameters"]
    weight = parameters["weight"][0]
    return sum((w * frame[name] for w, name in zip(weight, ("a", "same", "d"), strict=True)), parameters["bias"][0])


def test_rows_are_predicted_in_the_units_of_the_file(trees, capsys):
    run, _ = trees
    predict(str(run), x=[[50.0, 7, 0.001], [40, 7, 0]])
    header, *rows = [line.split() for line in capsys.readouterr().out.strip().splitlines()]
    assert header == ["a", "same", "d", "c_hat"]
    expected = by_hand(run, pl.DataFrame({"a": [50.0, 40], "same": [7, 7], "d": [0.001, 0]}))
    assert [float(row[-1]) for row in rows] == pytest.approx(expected.to_list(), rel=1e-5)


def test_the_toy_line(finished, capsys):
    predict(str(finished), x=[5, 6])
    assert capsys.readouterr().out.split() == ["x", "y_hat", "5", "10", "6", "12"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_is_predicted_row_for_row(suffix, trees, tmp_path, capsys):
    run, frame = trees
    path = tmp_path / f"new.{suffix}"
    shuffled = frame.select("name", "d", "c", "same", "a").with_columns(pl.lit("007").alias("id"))
    shuffled.write_csv(path) if suffix == "csv" else shuffled.write_parquet(path)
    written = predict(str(run), input=str(path))
    assert written == run / "predictions.csv"
    assert "60 rows predicted" in capsys.readouterr().out
    found = pl.read_csv(written, schema_overrides={"id": pl.String})
    assert found.columns == [*shuffled.columns, "c_hat"]
    assert found.drop("c_hat").equals(shuffled)
    assert found["c_hat"].to_list() == pytest.approx(by_hand(run, frame).to_list(), rel=1e-12)


def test_a_csv_keeps_its_text(trees, tmp_path):
    (tmp_path / "new.csv").write_text('d;same;a;note\n0.0010;7;50.00;"x; ""y"""\n1e-3;7;5e1;\n\n', encoding="utf-8")
    predict(str(trees[0]), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv"))
    found = pl.read_csv(tmp_path / "out.csv", infer_schema=False)
    assert found["a"].to_list() == ["50.00", "5e1"]
    assert found["note"].to_list() == ['x; "y"', None]
    assert found["c_hat"][0] == found["c_hat"][1]


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", '=HYPERLINK("http://x","y")', "-x", "+", "'=1"]
NUMBERS = ["-1.5", "+1", "-1,5", "-1e-3", "-.5", "-inf", "-NaN", "+1.000,25", "1.5", "-1E+5"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_text_is_a_formula_and_numbers_stay_numbers(kind, trees, tmp_path):
    texts = [*FORMULAS, "\t=1", "\r=1", "\n=1", *NUMBERS, "plain", "", "a=1", "'", "'a"]
    frame = pl.DataFrame({"=note": texts}).with_columns(a=-1.5, same=7, d=pl.lit(-2.0))
    frame = frame if kind == "csv" else frame.with_columns(pl.col("=note").cast(pl.Categorical).alias("@other"))
    path = tmp_path / f"new.{kind}"
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    out, again = tmp_path / "out.csv", tmp_path / "again.csv"
    predict(str(trees[0]), input=str(path), output=str(out))
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=note", "a", "same", "d", *(["'@other"] if kind == "parquet" else []), "c_hat"]
    for row, text in zip(rows, texts, strict=True):
        begins = text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and text not in NUMBERS
        assert {row[header.index(name)] for name in header if "note" in name or "other" in name} == {
            f"'{text}" if begins else text
        }
        assert [float(cell) for cell in row[1:4]] == [-1.5, 7, -2]
    predict_again = TableFile(out, "input")
    assert predict_again.names == [*frame.columns, "c_hat"]
    (tmp_path / "without.csv").write_text(pl.read_csv(out, infer_schema=False).drop("c_hat").write_csv())
    predict(str(trees[0]), input=str(tmp_path / "without.csv"), output=str(again))
    read = [pl.read_csv(file, infer_schema=False).fill_null("") for file in (again, out)]
    assert read[0].equals(read[1])


def test_predicted_labels_that_look_as_formulas_are_read_again_as_they_were(tmp_path):
    labels = ["=A", "-B", "@C", "+1", "it's'=x"]
    lines = [f"{k},{labels[k % 5]}" for k in range(50)]
    (tmp_path / "my.csv").write_text("\n".join(["x,=y", *lines]))
    table = ("data=table", "data.y==y", "loss=cross_entropy", "trainer.max_epochs=2", "data.standardize=true")
    train(tmp_path / "run", *table[:1], f"data.path={tmp_path / 'my.csv'}", "data.y=['=y']", *table[2:])
    out = predict(str(tmp_path / "run"), input=str(tmp_path / "my.csv"), output=str(tmp_path / "out.csv"))
    written = pl.read_csv(out, infer_schema=False)
    assert written.columns == ["x", "'=y", "'=y_hat", "'=y_probability"]
    guarded = {"=A": "'=A", "-B": "'-B", "@C": "'@C"}
    assert written["'=y"].to_list() == [guarded.get(labels[k % 5], labels[k % 5]) for k in range(50)]
    assert set(written["'=y_hat"]) <= {guarded.get(label, label) for label in labels}
    again = ("data.y=['=y']", "data.x=[x]", *table[2:])
    train(tmp_path / "again", "data=table", f"data.path={out}", *again)
    assert record(tmp_path / "again")["columns"] == record(tmp_path / "run")["columns"]
    assert record(tmp_path / "again")["metrics"] == record(tmp_path / "run")["metrics"]


def test_labels_are_predicted_by_name(kinds, tmp_path):
    lines = ["x2,x1,true", "0,1,A", "0.9,-0.5,B", "-0.9,-0.5,C"]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    found = pl.read_csv(predict(str(kinds), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv")))
    assert found["y_hat"].to_list() == ["A", "B", "C"]
    assert found["y_probability"].min() > 0.8
    assert found["y_probability"].max() < 1


def test_long_files_come_in_pieces(trees, tmp_path):
    run, _ = trees
    rows = 2 * ROWS + 7
    path = tmp_path / "long.csv"
    pl.DataFrame({"k": range(rows)}).select("k", a="k", same=7, d=0.0).write_csv(path)
    sizes = [len(batch) for batch in TableFile(path, "input").batches(ROWS)]
    assert max(sizes) <= ROWS
    assert sum(sizes) == rows
    found = pl.read_csv(predict(str(run), input=str(path), output=str(tmp_path / "out.csv")))
    assert found["k"].to_list() == list(range(rows))
    assert found["c_hat"].is_sorted()


def test_rows_without_all_values_stay_empty_if_asked(trees, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("a,same,d\n1,7,0\n,7,0\nnan,7,0\n2,7,0\n")
    with pytest.raises(UserError, match=r"column a has no value in row 2 .*; missing=empty leaves"):
        predict(str(trees[0]), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv"))
    assert not list(tmp_path.glob("out*"))
    predict(str(trees[0]), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv"), missing="empty")
    assert [value is None for value in pl.read_csv(tmp_path / "out.csv")["c_hat"]] == [False, True, True, False]
    assert "2 rows predicted, 2 left empty:" in capsys.readouterr().out


def test_rows_without_all_values_are_left_out_as_in_training(trees, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("k,a,same,d\n1,1,7,0\n2,,7,0\n3,nan,7,0\n4,2,7,0\n")
    predict(str(trees[0]), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv"), missing="drop")
    found = pl.read_csv(tmp_path / "out.csv")
    assert (found["k"].to_list(), found["c_hat"].null_count()) == ([1, 4], 0)
    assert "2 rows predicted, 2 dropped:" in capsys.readouterr().out


@pytest.mark.parametrize("x", [[1.7e308, 7, 0], [[1, 7, 0], [-1.7e308, 7, 0]]])
def test_a_typed_row_too_far_from_the_data_has_no_prediction(x, trees, capsys):
    row = 2 if isinstance(x[0], list) else 1
    with pytest.raises(UserError, match=rf"predicted column c_hat has -?infinity in row {row}.*; its x is too far"):
        predict(str(trees[0]), x=x)
    assert not capsys.readouterr().out


def test_a_class_of_a_row_too_far_from_the_data_is_not_predicted(kinds):
    with pytest.raises(
        UserError, match=r"predicted column y_probability has NaN in row 1.*too far from the training data"
    ):
        predict(str(kinds), x=[1e300, -1e300])


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("a,same,d\n", {}, "the file has a header, but no rows"),
        ("", {}, "the file is empty"),
        ("a,d\n1,2\n", {}, "input: there is no column 'same'; new.csv has the columns a, d"),
        ("a,same,d\n1,7,0\nx,7,0\n", {}, "column a holds text: 'x' in row 2"),
        ("a,same,d,c_hat\n1,7,0,1\n", {}, "the file has a column c_hat, which is"),
        ("a,same,d\n1,7,0\n", {"output": "no/such/folder.csv"}, "the folder no/such does not exist"),
        ("a,same,d\n1,7,0\n", {"output": "."}, "it is a folder; name a file in it"),
        ("a,same,d\n1,7,0\n", {"output": "out.parquet"}, "the name of the file must end with .csv"),
        ("a,same,d\n1,7,0\n1.7e308,7,0\n", {}, r"predicted column c_hat has infinity in row 2"),
        ("a,same,d\n1,7,0\n", {"output": "/dev/full"}, "it is not a regular file"),
        ("a,same,d\n1,7,0\n", {"missing": "ignore"}, "missing=ignore: choose missing=error, drop or empty"),
        ("a,same,d\n,7,0\n", {"missing": "drop"}, "missing=drop leaves no row"),
        ("a,same,d\n1,7,0\n", {"which": "worst"}, "checkpoint=worst"),
    ],
)
def test_a_bad_input_is_named(content, arguments, message, trees, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        predict(str(trees[0]), input="new.csv", **{"output": "out.csv", **arguments})
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_the_input_is_never_overwritten(trees, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("a,same,d\n1,7,0\n")
    with pytest.raises(UserError, match="it is the data file, which would be overwritten"):
        predict(str(trees[0]), input=str(path), output=str(path))
    assert path.read_text() == "a,same,d\n1,7,0\n"


def test_what_a_run_left_is_never_overwritten(trees, tmp_path):
    run, frame = trees
    path = tmp_path / "new.csv"
    frame.write_csv(path)
    for name, message in (("result.json", "it is a file of the run"), ("../my.csv", "it is the data file")):
        before = (run / name).read_bytes()
        with pytest.raises(UserError, match=message):
            predict(str(run), input=str(path), output=str(run / name))
        assert (run / name).read_bytes() == before
    with pytest.raises(UserError, match="it is a file of the run"):
        export(str(run), output=str(run / "checkpoints" / "best.ckpt"))
    with pytest.raises(UserError, match=r"the name of the file must end with \.pt2"):
        export(str(run), output=str(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match="are not written to a file"):
        predict(str(run), x=[1, 2, 3], output=str(tmp_path / "out.csv"))


@pytest.mark.slow("like test_rows_are_predicted_in_the_units_of_the_file")
def test_a_feature_may_be_called_as_a_prediction(tmp_path, capsys):
    (tmp_path / "my.csv").write_text("c_hat,c\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    train(tmp_path / "run", "data=table", f"data.path={tmp_path / 'my.csv'}", "data.y=c", "optimizer.lr=0.5")
    capsys.readouterr()
    predict(str(tmp_path / "run"), x=[5])
    assert capsys.readouterr().out.split() == ["c_hat", "c_hat", "5", "10"]


@pytest.mark.parametrize(
    "x", [[1], [1, 2, 3, 4], [[1, 2]], [], ["a", 1, 2], [1, None, 2], [1, float("nan"), 2], "a", [[[1]]]]
)
def test_bad_rows_are_named(x):
    with pytest.raises(UserError, match=r"x needs 3 finite numbers per row \(a, b, c\); type x=\[0,0,0\]"):
        as_rows(x, ["a", "b", "c"])


def test_either_x_or_input(finished):
    for arguments in ({}, {"x": [1], "input": "new.csv"}):
        with pytest.raises(UserError, match=r"either as x=\[...\] or as input=<file>"):
            predict(str(finished), **arguments)


def test_a_diverged_run_says_so(tmp_path, caplog):
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path, "optimizer.lr=0.5")
    predict(str(tmp_path), x=[1])
    assert "This run diverged at step 8" in caplog.text


@pytest.mark.slow("two processes that import torch; other tests predict with the exported files in this process")
def test_the_exported_files_predict_without_the_package(trees, kinds, tmp_path):
    runs = [str(trees[0]), str(kinds)]
    inputs = [[[50.0, 7.0, 0.001]], [[0.9, -0.5], [1.0, 0.0]]]
    paths = [
        str(export(run, output=str(tmp_path / f"{k}.{kind}"), kind=kind))
        for kind in ("pt2", "onnx")
        for k, run in enumerate(runs)
    ]
    script = f"""
import sys, json
sys.modules["linear_lab"] = None
import numpy, onnx, onnxruntime, torch
found = []
for path, x in zip({paths}, {inputs * 2}):
    if path.endswith("pt2"):
        extra = dict.fromkeys(["x", "y", "labels"], "")
        program = torch.export.load(path, extra_files=extra).module()
        y_hat = program(torch.tensor(x, dtype=torch.float64)).tolist()
    else:
        extra = {{prop.key: prop.value for prop in onnx.load(path).metadata_props}}
        y_hat = onnxruntime.InferenceSession(path).run(None, {{"x": numpy.array(x)}})[0].tolist()
    found.append([y_hat, json.loads(extra["labels"]), json.loads(extra["x"])])
print(json.dumps(found))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert [labels for _, labels, _ in found] == [None, ["A", "B", "C"]] * 2
    assert [columns for _, _, columns in found] == [["a", "same", "d"], ["x1", "x2"]] * 2
    for run, x, (y_hat, _, _) in zip(runs * 2, inputs * 2, found, strict=True):
        expected = load(run)[2](torch.tensor(x, dtype=torch.float64)).detach()
        torch.testing.assert_close(torch.tensor(y_hat, dtype=torch.float64), expected, rtol=1e-6, atol=1e-6)


def test_two_predictions_at_once_leave_the_rows_of_one(trees, tmp_path, monkeypatch):
    for name, rows in (("one", 300), ("two", 7)):
        pl.DataFrame({"id": [name] * rows}).with_columns(a=1.0, same=7.0, d=0.0).write_csv(tmp_path / f"{name}.csv")
    columns, begun = Predictor.columns, []

    def meanwhile(predictor, x):
        begun.append(len(x))
        if begun == [300]:  # the first process has opened its file
            predict(str(trees[0]), input=str(tmp_path / "two.csv"), output=str(tmp_path / "out.csv"))
            assert set(pl.read_csv(tmp_path / "out.csv")["id"]) == {"two"}
        return columns(predictor, x)

    monkeypatch.setattr(Predictor, "columns", meanwhile)
    predict(str(trees[0]), input=str(tmp_path / "one.csv"), output=str(tmp_path / "out.csv"))
    assert begun == [300, 7]
    assert pl.read_csv(tmp_path / "out.csv")["id"].to_list() == ["one"] * 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "out.csv", "two.csv"]


@pytest.mark.parametrize("kind", ["pt2", *slow("the other format is quick", "onnx")])
def test_two_exports_at_once_leave_the_file_of_one(kind, trees, kinds, tmp_path, monkeypatch):
    target, write, begun = str(tmp_path / f"model.{kind}"), programs.EXPORTS[kind], []

    def meanwhile(*given):
        begun.append(given)
        y_hat = write(*given)
        if len(begun) == 1:  # it has written its file, but not renamed it yet
            export(str(kinds), output=target, kind=kind)
        return y_hat

    monkeypatch.setitem(programs.EXPORTS, kind, meanwhile)
    export(str(trees[0]), output=target, kind=kind)
    assert len(begun) == 2
    content = (tmp_path / f"model.{kind}").read_bytes()
    assert b"same" in content
    assert b"x2" not in content
    assert [path.name for path in tmp_path.iterdir()] == [f"model.{kind}"]


@pytest.mark.parametrize("room", [0, 600])
def test_a_full_disk_is_named(room, trees, tmp_path, quota):
    run, frame = trees
    frame.write_csv(tmp_path / "new.csv")
    (tmp_path / "model.pt2").write_text("old")
    quota(room)
    said = r"cannot write .*: File too large; make room, or choose another file with output=<file>"
    with pytest.raises(UserError, match=said):
        predict(str(run), input=str(tmp_path / "new.csv"), output=str(tmp_path / "out.csv"))
    with pytest.raises(UserError, match=said):
        export(str(run), output=str(tmp_path / "model.pt2"))
    with pytest.raises(UserError, match=said):
        export(str(run), output=str(tmp_path / "model.onnx"), kind="onnx")
    assert (tmp_path / "model.pt2").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "new.csv"]


def test_bad_exports_are_named(finished, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="format=pickle: choose format=pt2 or format=onnx"):
        export(str(finished), kind="pickle")
    with pytest.raises(UserError, match="does not exist; make it first"):
        export(str(finished), output=str(tmp_path / "no" / "model.pt2"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"format=onnx: onnxruntime is missing; .* -m pip install -e '.*\[onnx\]'"):
        export(str(finished), output=str(tmp_path / "model.onnx"), kind="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [2.0, math.nan])
def test_a_file_with_other_predictions_is_not_written(error, trees, tmp_path, monkeypatch):
    write = programs.EXPORTS["pt2"]
    monkeypatch.setitem(programs.EXPORTS, "pt2", lambda *given: write(*given) + error)
    with pytest.raises(UserError, match=r"format=pt2: its predictions differ by .* of the largest; try another"):
        export(str(trees[0]), output=str(tmp_path / "model.pt2"))
    assert not [*tmp_path.iterdir()]
