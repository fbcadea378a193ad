"""Tables: what is read, how rows are split, and the messages about bad tables."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import record, resume, train

from linear_lab import UserError
from linear_lab.data.table import TableData
from linear_lab.inference.remeasure import evaluate

ALL = {"fractions": [1, 0, 0], "standardize": False}


def load(path, content=None, classification=False, **arguments):
    """Write a file, and set up the data."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    data = TableData(str(path), **{"y": "c", **ALL, **arguments})
    data.classification, data.dtype = classification, torch.float64
    data.setup()
    return data


def rows(data, part="train"):
    x, y = data.raw[part]
    return x.tolist(), y.flatten().tolist()


@pytest.fixture
def csv(tmp_path):
    return tmp_path / "my.csv"


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        ("a,b,c\n1,2,3\n4,5,6\n", {}),
        ("a, b ,c\n 1,2,3\n4 ,5,6\n\n", {}),  # spaces, a blank line at the end
        ("\n\na,b,c\r\n1,2,3\r\n4,5,6", {}),  # blank lines before, line ends of Windows, none at the end
        ("\ufeffa,b,c\n1,2,3\n4,5,6\n", {}),  # with the mark of UTF-8
        ("a;b;c\n1;2;3\n4;5;6\n", {}),
        ("a\tb\tc\n1\t2\t3\n4\t5\t6\n", {}),
        ("a|b|c\n1|2|3\n4|5|6\n", {"separator": "|"}),
        ('"a";"b";"c"\n"1,0";"2,0";"3"\n4;5;6\n', {"decimal": ","}),
        ("a,b,c\n1,2,3\n4,5,6\n".encode("utf-16"), {}),
        ("a,b,c,ü\n1,2,3,é\n4,5,6,\n".encode("latin-1"), {"encoding": "latin-1"}),
        ("c,name,b,a\n3,x,2,1\n6,y,5,4\n", {"x": ["a", "b"]}),  # the order of data.x
        ("a,b,c,name\n+1,2e0,3.0,x\n4.,.5e1,6,y\n", {}),  # null takes the numeric ones
    ],
)
def test_the_same_numbers_however_they_are_written(content, arguments, csv):
    data = load(csv, content, **arguments)
    assert rows(data) == ([[1, 2], [4, 5]], [3, 6])
    assert (data.schema.x, data.schema.y) == (["a", "b"], ["c"])


def test_every_digit_is_kept(csv):
    values = [math.pi, 1e-300, 0.1, 12345678901234567.0, -2.2250738585072014e-308]
    data = load(csv, "a,c\n" + "".join(f"{v!r},{v!r}\n" for v in values))
    assert rows(data) == ([[v] for v in values], values)
    assert torch.equal(data.parts["train"][0], data.raw["train"][0])


def test_parquet_is_read_too(tmp_path):
    path = tmp_path / "my.parquet"
    frame = pl.DataFrame({"a": [1, 2], "b": [True, False], "c": [0.5, 1.5], "s": ["train", "val"]})
    frame.write_parquet(path)
    assert rows(load(path)) == ([[1], [2]], [0.5, 1.5])
    assert rows(load(path, x=["a", "b"])) == ([[1, 1], [2, 0]], [0.5, 1.5])
    assert rows(load(path, split="s"), "val") == ([[2]], [1.5])


@given(n=st.integers(8, 200), seed=st.integers(0, 2**32))
def test_the_split_is_drawn_disjoint_and_exhaustive(n, seed, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"split{n}.csv"
    path.write_text("a,c\n" + "".join(f"{k},{k}\n" for k in range(n)))
    data, again = (TableData(str(path), y="c", fractions=[0.5, 0.25, 0.25], seed=seed, standardize=False) for _ in "ab")
    data.setup()
    again.setup()
    taken = [[row[0] for row in rows(data, part)[0]] for part in ("train", "val", "test")]
    assert sorted(itertools.chain(*taken)) == list(range(n))
    assert all(part == sorted(part) for part in taken)  # the order of the file
    assert all(rows(data, part) == rows(again, part) for part in data.raw)


def test_the_seed_of_the_split_is_its_own(csv):
    content = "a,c\n" + "".join(f"{k},{k}\n" for k in range(40))
    halves = [rows(load(csv, content, fractions=[0.5, 0.5, 0], seed=seed)) for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]


def test_a_split_column_says_the_part(csv):
    data = load(csv, "a,part,c\n1,train,2\n3,test,4\n5,train,6\n", split="part")
    assert (rows(data), rows(data, "test"), data.schema.x) == (([[1], [5]], [2, 6]), ([[3]], [4]), ["a"])
    assert set(data.raw) == {"train", "test"}


def test_statistics_are_of_the_train_part_alone(csv):
    content = "a,part,c\n1,train,10\n3,train,30\n1000,val,9\n"
    data = load(csv, content, split="part", standardize=True)
    assert (data.schema.x_mean, data.schema.x_scale, data.schema.y_mean, data.schema.y_scale) == (
        [2],
        [1],
        [20],
        [pytest.approx(10)],
    )
    assert data.parts["val"][0].tolist() == [[998]]
    plain = load(csv, content, split="part", standardize=True, center=False)
    assert plain.schema.x_mean == [0]
    assert plain.schema.x_scale == [pytest.approx(5**0.5)]


def test_rows_with_missing_values_are_dropped_and_counted(csv):
    content = "a,b,c\n1,2,3\n,2,3\n4,NaN,6\n7,8,inf\n9,NA,1\n10,11,12\n"
    data = load(csv, content, missing="drop")
    assert rows(data) == ([[1, 2], [10, 11]], [3, 12])
    assert data.notes == ["4 of 6 rows were dropped, missing or not finite: 1 in a, 2 in b, 1 in c"]


@pytest.mark.parametrize(("y", "labels"), [("oak,ash,oak,elm", ["ash", "elm", "oak"]), ("10,9,10,2", ["2", "9", "10"])])
def test_labels_are_strings_or_integers(y, labels, csv):
    names = y.split(",")
    content = "a,c\n" + "".join(f"{k}, {name}\n" for k, name in enumerate(names))
    data = load(csv, content, classification=True)
    assert data.schema.labels == labels
    assert data.raw["train"][1].dtype == torch.int64
    assert [labels[k] for k in data.raw["train"][1]] == names
    assert data.out_features == 3


def test_labels_of_dropped_rows_are_no_classes(csv):
    data = load(csv, "a,c\n1,p\n2,q\n,rare\n4,\n5,p\n", classification=True, missing="drop")
    assert data.schema.labels == ["p", "q"]
    assert data.raw["train"][1].tolist() == [0, 1, 0]


def test_whole_numbers_are_one_class_however_written(csv):
    assert load(csv, "a,c\n1,1\n2,1.0\n3,2\n", classification=True).schema.labels == ["1", "2"]


def test_labels_may_be_booleans(tmp_path):
    path = tmp_path / "my.parquet"
    pl.DataFrame({"a": [1, 2, 3], "c": [True, False, True], "d": [[1], [2], [3]]}).write_parquet(path)
    assert load(path, x="a", classification=True).schema.labels == ["false", "true"]
    with pytest.raises(ValueError, match="column d holds List"):
        load(path, x=["d"])


def test_a_class_that_train_does_not_have_is_named(csv):
    data = load(csv, "a,s,c\n1,train,p\n2,train,q\n3,val,r\n", split="s", classification=True)
    assert data.notes == ["not in the train part, so the model cannot learn them: r"]
    assert data.out_features == 3


@pytest.mark.slow("like test_no_step_of_float64_passes_through_float32")
def test_a_constant_target_is_learned_as_it_is(tmp_path):
    (tmp_path / "my.csv").write_text("a,c\n" + "".join(f"{k},7\n" for k in range(20)))
    result = train(tmp_path / "run", "data=table", f"data.path={tmp_path / 'my.csv'}", "data.y=c")
    assert result["parameters"]["weight"][0][0] == pytest.approx(0, abs=1e-6)
    assert result["parameters"]["bias"][0] == pytest.approx(7, abs=1e-6)
    assert result["optimum"]["bias"] == [pytest.approx(7)]


GOOD = "a,b,c\n1,2,3\n4,5,6\n7,8,10\n"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", {}, r"path=.*my\.csv: the file is empty"),
        ("a,c\n", {}, "a header, but no rows"),
        (b"\x00\x01\x02\x03", {}, "the file is not a table: it holds binary data"),
        (b"PAR1 and no more", {}, r"path=.*my\.csv: cannot be read as a table: parquet"),
        (b"\x1f\x8b\x08\x00", {}, "compressed by gzip; unpack it first"),
        ("a,c\n1,\xe9\n".encode("latin-1"), {}, r"not text in UTF-8.*data\.encoding=latin-1"),
        ("\xe9,c\n1,2\n".encode("latin-1"), {}, "not text in UTF-8"),
        (GOOD, {"encoding": "utf-5"}, "cannot be read with encoding=utf-5"),
        (GOOD, {"separator": ", "}, "separator must be one character"),
        (GOOD, {"decimal": "!"}, "decimal must be . or a comma"),
        ("a,c\n1,2\n3,4,5\n", {}, "row 2 has 3 values, but the header 2"),
        ("a,a,c\n1,2,3\n", {}, "two columns are called 'a'"),
        (GOOD, {"x": ["a", "z"]}, "x: there is no column 'z'; my.csv has the columns a, b, c"),
        (GOOD, {"y": ["z"]}, "y: there is no column 'z'; my.csv has the columns a, b, c"),
        (GOOD, {"y": None}, r"y is missing: name the column to predict, as in data\.y=\[c\]; my.csv has .* a, b, c"),
        (GOOD, {"x": ["a", "a"]}, "x: a, a names a column twice"),
        (GOOD, {"x": ["a", "c"]}, "c: used twice in x, y, categorical and split"),
        (GOOD, {"split": "b", "x": ["a", "b"]}, "b: used twice in x, y, categorical and split"),
        (GOOD, {"split": "z"}, "split: there is no column 'z'"),
        (GOOD, {"split": "b"}, "column b holds '2' in row 1; each row must hold train, val or test"),
        ("a,s,c\n1,val,2\n3,test,4\n", {"split": "s"}, "column s has no row with train"),
        ("a,c\n1,2\n3,x7\n", {}, "column c holds text: 'x7' in row 2; class labels need loss=cross_entropy"),
        ("a,c\n1,2\nfoo,4\n", {"x": ["a"]}, r"a holds text: 'foo' in row 2; if it holds categories, try .*=\[a\]"),
        ("a,c\n1,2\nfoo,4\n", {}, "x: there is no numeric column to use.*'foo' in row 2"),
        ('a;c\n"1,5";2\n', {}, r"'1,5' in row 1; if the comma is the decimal mark, try data\.decimal"),
        ("a;c\n1.000;2\n", {"decimal": ",", "x": ["a"]}, r"column a holds text: '1\.000' in row 1"),
        ("a,id,c\n1,p,2\n,q,\n", {"x": ["a"]}, "column a has no value in row 2"),  # not a blank line
        ("a,c\n1,2\n\n3,4\n", {}, "column a has no value in row 2"),
        ('"a\nb",c\r1,2\r', {}, r"my\.csv: the header ends in CR alone, as on old Macs; save the file with LF"),
        ("a,c\n1,2\n,4\n", {}, "column a has no value in row 2.*1 in a.*data.missing=drop"),
        ("a,c\n1,2\n3,NaN\n", {}, "column c has NaN in row 2"),
        ("a,c\n-inf,2\n3,NaN\n", {}, "column a has -infinity in row 1 .*1 in a, 1 in c"),
        ("a,c\n1,1e999\n", {}, "column c has infinity in row 1"),
        ("a,c\n1,nan\n2,nan\n", {"missing": "drop"}, "leaves no row"),
        (GOOD, {"missing": "ignore"}, "missing must be error or drop, got ignore"),
        (GOOD, {"standardize": "yes"}, "standardize must be true or false"),
        (GOOD, {"seed": -1}, "seed must be a whole number"),
        ("a,c\n1,2\n", {"standardize": True}, "one row, which has no standard deviation; try data.standardize=false"),
        (GOOD, {"fractions": [0.9, 0.05, 0.05]}, "leave val without a row"),
        (GOOD, {"fractions": [0.5, 0.5]}, "fractions must be"),
    ],
)  # fmt: skip
def test_a_bad_table_is_named(content, arguments, message, csv):
    with pytest.raises(ValueError, match=message):
        load(csv, content, **arguments)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("a,c\n1,2.5\n2,3\n", {}, "column c holds numbers such as 2.5; cross-entropy needs class labels"),
        ("a,c\n1,x\n2,x\n", {}, r"column c has one class only \(x\)"),
        ("a,c\n1,x\n2,\n3,y\n", {}, "column c has no value in row 2"),
        ("a,b,c\n1,x,y\n2,y,x\n", {"y": ["b", "c"]}, "cross-entropy needs one column"),
    ],
)
def test_bad_labels_are_named(content, arguments, message, csv):
    with pytest.raises(ValueError, match=message):
        load(csv, content, classification=True, **arguments)


def test_a_path_that_is_not_a_file_is_named(tmp_path):
    for path, message in ((None, "path is missing"), (tmp_path, "a folder"), (tmp_path / "no.csv", "not there")):
        with pytest.raises(ValueError, match=message):
            TableData(path, y="c").setup()


def test_huge_values_are_refused_where_float32_ends(csv):
    content = "a,c\n1e300,1\n2e300,2\n4e300,3\n"
    assert load(csv, content, standardize=True).parts["train"][0].abs().max() < 2
    data = TableData(str(csv), y="c", **ALL)
    with pytest.raises(ValueError, match=r"train has 1e\+300 in column a, which is too large for torch.float32; try"):
        data.setup()


def table(folder, rows=60, seed=0):
    """Write c = 1.5 a - 3 d + 20 with a little noise, and columns without effect."""
    generator = torch.Generator().manual_seed(seed)
    a, d, noise = torch.randn(3, rows, generator=generator, dtype=torch.float64)
    a, d = 40 + 7 * a, 1e-3 * d
    frame = pl.DataFrame({"a": a.numpy(), "same": [7] * rows, "d": d.numpy(), "name": ["x"] * rows})
    frame = frame.with_columns(c=1.5 * pl.col("a") - 3 * pl.col("d") + 20 + 0.01 * pl.Series(noise.numpy()))
    frame.write_csv(folder / "my.csv")
    return frame, ["data=table", f"data.path={folder / 'my.csv'}", "data.y=[c]"]


@pytest.mark.slow("like test_several_targets_and_fewer_rows_than_features")
def test_the_learned_line_is_shown_in_the_units_of_the_file(tmp_path, capsys):
    frame, overrides = table(tmp_path)
    result = train(tmp_path / "run", *overrides, "data.fractions=[1,0,0]", "trainer.precision=64-true")
    out = capsys.readouterr().out
    columns = frame.select("a", "d", one=pl.lit(1.0)).to_numpy()
    expected = np.linalg.lstsq(columns, frame["c"].to_numpy())[0].tolist()
    for found in (result["parameters"], result["optimum"]):
        assert found["weight"][0] == [pytest.approx(expected[0]), 0, pytest.approx(expected[1])]
        assert found["bias"] == [pytest.approx(expected[2])]
    assert "a, same, d -> c, standardized" in out
    assert "left out of x: column name holds text: 'x' in row 1" in out
    assert "constant in the train part, so without effect: same" in out
    assert "rank 3 of 4" in out  # the constant column
    assert f"optimum    c = {expected[0]:.6g} a + 0 same".split()[2:] == [
        "=",
        f"{expected[0]:.6g}",
        "a",
        "+",
        "0",
        "same",
    ]
    assert f"c = {expected[0]:.6g} a + 0 same" in out
    scale = frame["c"].std(ddof=0)
    assert result["loss_unit"] == f"({scale:.6g} c)^2"
    assert f"unit of the losses: ({scale:.6g} c)^2" in out
    # without a val part, the metric of train takes its place
    assert "no val part, so train/loss decides" in out
    assert set(result["metrics"]) == {"train/loss"}
    assert result["best"]["metrics"]["train/loss"] <= result["initial"]["train/loss"]
    assert result["excess_loss"] == pytest.approx(
        result["metrics"]["train/loss"] - result["optimum"]["train/loss"], abs=1e-12
    )
    assert evaluate(str(tmp_path / "run"), "last") == result["metrics"]


def test_several_targets_and_fewer_rows_than_features(tmp_path, capsys):
    (tmp_path / "my.csv").write_text("a,b,d,c,e\n1,2,3,4,5\n2,3,5,7,11\n")
    overrides = ["data=table", f"data.path={tmp_path / 'my.csv'}", "data.y=[c,e]", "data.fractions=[1,0,0]"]
    result = train(tmp_path / "run", *overrides, "trainer.max_epochs=200", "optimizer.lr=0.2")
    out = capsys.readouterr().out
    assert "rank 2 of 4" in out
    assert "the one with the smallest norm" in out
    assert result["excess_loss"] < 1e-10
    assert out.count("e = ") == 3  # start, end, optimum
    assert result["loss_unit"] == "the mean of (1.5 c)^2, (3 e)^2"


def test_the_config_finds_the_file_from_anywhere(tmp_path, monkeypatch):
    table(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = train("run", "data=table", "data.path=my.csv", "data.y=c", "trainer.max_epochs=2")
    monkeypatch.chdir("/")
    assert evaluate(str(tmp_path / "run"), "last") == result["metrics"]
    assert resume(tmp_path / "run", "trainer.max_epochs=3")["steps"] == 3


def test_a_file_that_has_changed_is_refused(tmp_path):
    frame, overrides = table(tmp_path)
    train(tmp_path / "run", *overrides, "trainer.max_epochs=2", "data.standardize=false", "optimizer.lr=1e-4")
    before = record(tmp_path / "run")
    frame.with_columns(pl.col("c") + 1).write_csv(tmp_path / "my.csv")
    for act in (lambda: evaluate(str(tmp_path / "run")), lambda: resume(tmp_path / "run")):
        with pytest.raises(UserError, match=r"data: .*my\.csv has changed since the run was trained"):
            act()
    assert record(tmp_path / "run") == before


@pytest.mark.slow("like test_several_targets_and_fewer_rows_than_features")
def test_cross_entropy_on_a_table(tmp_path, capsys):
    lines = [f"{k},{'oak' if k > 20 else 'ash'}" for k in range(40)]
    (tmp_path / "my.csv").write_text("\n".join(["a,kind", *lines]))
    overrides = [
        "data=table",
        f"data.path={tmp_path / 'my.csv'}",
        "data.y=kind",
        "loss=cross_entropy",
        "optimizer.lr=1",
    ]
    result = train(tmp_path / "run", *overrides, "metric=val/accuracy", "mode=max")
    assert result["metrics"]["train/accuracy"] > 0.9
    assert result["columns"] == {"x": ["a"], "y": ["kind"], "labels": ["ash", "oak"]}
    assert (result["optimum"], result["excess_loss"], result["loss_unit"]) == (None, None, "nats")
    assert result["best"]["metrics"]["val/accuracy"] >= result["metrics"]["val/accuracy"]
    assert "logit of oak = " in capsys.readouterr().out
    with pytest.raises(UserError, match="class labels need loss=cross_entropy"):
        train(tmp_path / "mse", *overrides[:3])


LARGE = "12345678901234567890"


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (["001", "1", "01", "2"], ["001", "01", "1", "2"]),
        (["9007199254740993", "9007199254740992", "3"], ["3", "9007199254740992", "9007199254740993"]),
        ([f"{LARGE}.0", f"{LARGE[:-1]}1.", "3"], ["3", LARGE, f"{LARGE[:-1]}1"]),
        (["-1.0", "1e3", "1000", "1."], ["-1", "1", "1000"]),
        (['"1,0"', "1", '"2,"'], ["1", "2"]),
    ],
)
def test_labels_that_tie_as_numbers_have_one_order(y, labels, csv):
    content = "a;c\n" + "".join(f"{k};{label}\n" for k, label in enumerate(y))
    decimal = "," if "," in content else "."
    for _ in range(8):  # the order of polars' unique() differs from call to call
        assert load(csv, content, classification=True, decimal=decimal).schema.labels == labels


@pytest.mark.parametrize(
    ("values", "value"),
    [
        (["9007199254740993", "1"], "9007199254740993"),
        (["9007199254740992", "-9007199254740995.0"], "-9007199254740995.0"),
        (["1", str(2**60)], None),  # float64 represents it exactly
        (["9007199254740992", "1e300", "0.1", "12345678901234567.25"], None),
    ],
)
@pytest.mark.parametrize("column", ["a", "c"])
def test_a_note_warns_of_whole_numbers_that_float64_rounds(values, value, column, csv):
    other = "c" if column == "a" else "a"
    notes = load(csv, f"{column},{other}\n" + "".join(f"{v},{k % 2}\n" for k, v in enumerate(values))).notes
    told = [f"column {column} holds whole numbers beyond 2^53, such as {value}, which are rounded to 16 digits"]
    assert notes == (told if value else [])


def test_a_note_warns_of_rounded_numbers_in_parquet_too(tmp_path):
    pl.DataFrame({"a": [2**53 + 1, 1], "c": [1, 2]}).write_parquet(tmp_path / "my.parquet")
    assert "such as 9007199254740993" in load(tmp_path / "my.parquet").notes[0]


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        ("id,a,c\n1,5,2\n2,9,4\n3,6,6\n", {}, "id"),
        ("a,c,n\n5,2,7\n7,4,5\n6,6,6\n5,2,8\n", {}, "n"),  # in any order
        (",a,c\n0,5,2\n1,9,4\n2,6,6\n", {}, None),  # without a name, so it is left out anyway
        ("id,a,c\n1,5,2\n2,9,4\n3,6,6\n", {"x": ["id", "a"]}, None),  # named by the user
        ("id,c\n1,2\n2,4\n3,6\n", {}, None),  # nothing else to predict from
        ("id,a,c\n1,5,2\n2,9,4\n2,6,6\n", {}, None),
        ("id,a,c\n1,5,2\n3,9,4\n5,6,6\n", {}, None),
        ("id,a,c\n1.5,5,2\n2.5,9,4\n3.5,6,6\n", {}, None),
    ],
)
def test_a_column_that_counts_the_rows_has_a_note(content, arguments, told, csv):
    notes = [note for note in load(csv, content, **arguments).notes if "counts" in note]
    advice = "if it is an index, leave it out with data.x=[a]"
    assert notes == ([f"{told} in x counts the rows: {advice}"] if told else [])


def test_a_centre_that_is_no_choice_is_refused(csv):
    with pytest.raises(ValueError, match="center must be true or false, got yes"):
        load(csv, "a,c\n1,2\n2,3\n", center="yes")
