"""CSV files: the rows that are read, and the messages about files that cannot be read."""

import csv
import io
import re

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linear_lab.data import files
from linear_lab.data.files import TableFile

INCHES = 'x,y,note\n1,1,a"\n2,900,b\n3,3,c"\n4,4,d\n5,5,e\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my.csv"


def table(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TableFile(path, "path", **options)


def cells(frame):
    """The rows of a frame, with empty cells as empty texts."""
    return [tuple(cell or "" for cell in row) for row in frame.rows()]


def rows(path, content, columns=("x", "y"), **options):
    return cells(table(path, content, **options).read(columns))


def test_a_quote_in_a_column_that_is_not_read_costs_no_row(path):
    expected = [("1", "1"), ("2", "900"), ("3", "3"), ("4", "4"), ("5", "5")]
    assert rows(path, INCHES) == expected
    assert rows(path, INCHES.replace("\n", "\r\n")) == expected
    assert rows(path, INCHES.encode("utf-16")) == expected
    assert [row[0] for row in rows(path, INCHES, ["x"])] == ["1", "2", "3", "4", "5"]
    batches = table(path, INCHES).batches(2)
    assert [row for batch in batches for row in batch["note"]] == ['a"', "b", 'c"', "d", "e"]


def test_two_inch_marks_in_a_long_file_cost_no_row(path):
    notes = {70_000: '19" screen', 121_000: 'the other 24"'}
    content = "x,y,note\n" + "".join(f"{k},{2 * k},{notes.get(k, 'no')}\n" for k in range(200_000))
    assert rows(path, content) == [(str(k), str(2 * k)) for k in range(200_000)]


TEXT = st.text('ab" ,\n\r;', max_size=5)
QUOTED = TEXT.map(lambda text: '"' + text.replace('"', '""') + '"')
BARE = st.one_of(st.integers(0, 99).map(str), st.text('ab" ;', max_size=5).map(lambda text: text.lstrip('"')))
ENDS = st.sampled_from(["\n", "\r\n"])


def content_with(notes, end):
    lines = [f"{k},{one},{10 * k},{other}" for k, (one, other) in enumerate(notes)]
    return end.join(["x,one,y,other", *lines, ""])


def agrees(path, content):
    """Compare rows and values with those of the csv module and return True, or return the error of a refused file."""
    try:
        file = table(path, content)
        some = cells(file.read(["x", "y"]))
    except ValueError as error:
        return str(error)
    expected = [tuple([*row, "", "", "", ""][:4]) for row in csv.reader(io.StringIO(content, newline=""))][1:]
    while expected and not any(expected[-1]):
        expected.pop()
    assert some == [(row[0], row[2]) for row in expected]
    assert cells(file.read(file.names)) == expected
    assert [row for batch in file.batches(3) for row in cells(batch)] == expected
    return True


@given(notes=st.lists(st.tuples(BARE | QUOTED, BARE | QUOTED), min_size=1, max_size=8), end=ENDS)
@example(notes=[('a"', "1"), ("b", "2"), ('c"', "3")], end="\n")
def test_rows_and_values_are_those_of_the_csv_module(notes, end, tmp_path_factory):
    assert agrees(tmp_path_factory.getbasetemp() / "quotes.csv", content_with(notes, end)) is True


@given(notes=st.lists(st.tuples(BARE | QUOTED | TEXT, BARE | TEXT), min_size=1, max_size=4), end=ENDS)
@example(notes=[('"a', '1"'), ("b", "2")], end="\n")
def test_other_rows_are_read_alike_or_refused_by_number(notes, end, tmp_path_factory):
    outcome = agrees(tmp_path_factory.getbasetemp() / "more.csv", content_with(notes, end))
    assert outcome is True or re.search(r"more\.csv: row \d+ (has \d+ values|ends in CR|opens a quote)", outcome)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('x,y,note\n1,2,"19" screen"\n3,4,b\n', [("1", "2"), ("3", "4")]),
        ('x,y,note\n1,2,"a\rb"\n3,4,b"\n', [("1", "2"), ("3", "4")]),  # CR within quotes ends no row
        ('"x","y","note"\n"1","2","two\nlines"\n"3","4",""""\n', [("1", "2"), ("3", "4")]),
        ("x,y,,\n1,2,,\n3,4,,\n", [("1", "2"), ("3", "4")]),
        (",x,,y,\n0,1,,2,\n1,3,,4,\n", [("1", "2"), ("3", "4")]),
        ("sep=;\nx;y\n1;2\n3;4\n", [("1", "2"), ("3", "4")]),
        ('sep=;\r\n"x";"y"\r\n1;2\r\n3;4\r\n', [("1", "2"), ("3", "4")]),
        ("\ufeffsep=\t\nx\ty\n1\t2\n3\t4\n", [("1", "2"), ("3", "4")]),
        (f'x,y,note\n1,2,"{"a" * 200_000}"\n3,4,"b\n{"c" * 200_000}"\n', [("1", "2"), ("3", "4")]),
        (f'x,y,note\n1,2,i"\n3,4,"{"c" * 200_000}"\n', [("1", "2"), ("3", "4")]),
    ],
)
def test_what_programs_write_is_read(content, expected, path):
    assert rows(path, content) == expected


def test_a_declared_separator_gives_way_to_a_typed_one(path):
    assert rows(path, "sep=;\nx,y\n1,2\n", separator=",") == [("1", "2")]


@pytest.mark.parametrize("columns", [["x"], ["x", "y"], ["x", "y", "note"]])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('x,y,note\n1,1,a\n2,2,"a\n3,3,c\n', "row 2 opens a quote that is not closed at the end of its cell"),
        ('x,y,note\n1,1,"a\n2,900,b\n3,3,"c\n4,4,d\n', "row 1 opens a quote that is not closed"),
        ('x,y,note\n1,1,i"\n2,2,"a\n3,3,c\n', "row 2 opens a quote"),
        ("x,y,note\n1,1,a\n2,2,b\r3,3,c\n4,4,d\n", "row 2 ends in CR alone.*save the file with LF"),
        ('x,y,note\n1,1,"a"\n2,2,"b"\r3,3,c\n', "row 2 ends in CR alone"),
        ("x,y,note\n1,1,a\n2,2,b\r\r\n", "row 2 ends in CR alone"),
        ("x,y,note\n1,1,a\n2,2,b,c\n", "row 2 has 4 values, but the header 3"),
        ("x,y,note\n1,5,1,a\n", "row 1 has 4 values, but the header 3"),  # a decimal comma
        ('x,y,note\n1,1,i"\n2,2,b,c\n', "row 2 has 4 values, but the header 3"),
        ("x,y,note\n1,1,a\n2,2,\xe9\n".encode("latin-1"), r"the file is not text in UTF-8.*data\.encoding=latin-1"),
        ('x,y,note\n1,1,a"\n2,2,\xe9\n'.encode("latin-1"), r"the file is not text in UTF-8.*data\.encoding=latin-1"),
    ],
)
def test_a_bad_row_is_named_whichever_columns_are_read(content, message, columns, path):
    for read in (lambda file: file.read(columns), lambda file: [*file.batches(1)]):
        with pytest.raises(ValueError, match=r"path=.*my\.csv: " + message):
            read(table(path, content))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("Sales of 2024\nx,y\n1,2\n", 2),
        ("Sales of 2024,,\nin EUR,,\nx,y,z\n1,2,3\n", 3),
        ("# made by a program\n# on a day\nx;y\n1;2\n", 3),
        ('Sales\n\n"x"\t"y"\n1\t2\n', 3),
    ],
)
def test_lines_before_the_header_are_reported(content, line, path):
    file = table(path, content)
    with pytest.raises(ValueError, match=rf"there is no column 'y'.*line {line} names.*delete the lines before it"):
        file.check_columns(["y"], "y")
    with pytest.raises(ValueError, match=r"there is no column 'nowhere'; [^;]*$"):
        file.check_columns(["nowhere"], "y")


def test_a_cell_is_no_header(path):
    file = table(path, "city,y\nRome,1\nOslo,2\n")
    with pytest.raises(ValueError, match=r"there is no column 'Rome'; my\.csv has the columns city, y$"):
        file.check_columns(["Rome"], "y")


def test_an_error_of_polars_is_located_in_the_file_whatever_its_message(path, monkeypatch):
    file = table(path, "x,y\n1,2\n3,4,5\n")
    error = files.pl.exceptions.ComputeError("in other words, as of another version")
    monkeypatch.setattr(files.pl.LazyFrame, "collect", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match="row 2 has 3 values, but the header 2"):
        file.read(["x"])


THOUSANDS = "if commas separate thousands, write the numbers without them"
DECIMAL = "if the comma is the decimal mark, try data.decimal=','"


@pytest.mark.parametrize(
    ("values", "decimal", "hint"),
    [
        (["990", "1,009"], ".", THOUSANDS),
        (["-1,234,567.5", "1,009"], ".", THOUSANDS),
        (["1,009.5", "12"], ".", THOUSANDS),
        (["1,5", "990", "1,009"], ".", DECIMAL),
        (["0,125", "1,009"], ".", DECIMAL),
        (["1500", "1,009"], ".", DECIMAL),  # thousands without a comma
        (["1,5e3", "-2,5", "", "NA", "NaN", " 3 "], ".", DECIMAL),
        (["1,500", "2,250"], ".", f"{THOUSANDS}; or {DECIMAL}"),
        (["1,5", "2.5"], ".", ""),  # no reading that fits the whole column
        (["1,5", "x"], ".", ""),
        (["1,009", "x"], ".", ""),
        (["1,2,3", "4"], ".", ""),
        (["990", "1.009"], ",", "if points separate thousands, write the numbers without them"),
        (["1", "-", "3"], ".", ""),
        (["1", "\uff11"], ".", ""),
        (["1.009,5", "2"], ",", "if points separate thousands, write the numbers without them"),
        (["1.5", "2"], ",", "if the point is the decimal mark, try data.decimal=."),
    ],
)
def test_a_hint_on_a_comma_must_fit_the_whole_column(values, decimal, hint, path):
    file = table(path, "x;y\n" + "".join(f"1;{value}\n" for value in values), decimal=decimal)
    with pytest.raises(ValueError, match="column y holds text: ") as error:
        file.numbers(file.read(["y"]), "y", hint="")
    assert re.sub(r".* in row \d+(; )?", "", str(error.value)) == hint


def test_an_encoding_that_is_no_name_is_refused(path):
    with pytest.raises(ValueError, match="encoding must be the name of an encoding, such as latin-1, got 7"):
        table(path, "x,y\n1,2\n", encoding=7)


def test_batches_that_are_blank_to_the_end_are_left_out(path):
    content = "x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(3)) + ",\n" * 7
    batches = [*table(path, content).batches(2)]
    assert [value for batch in batches for value in batch["x"]] == ["0", "1", "2"]
    assert all(map(len, batches))
    between = "x,y\n1,2\n" + ",\n" * 7 + "3,4\n"
    assert sum(map(len, table(path, between).batches(2))) == 9  # blank lines before a row are kept


def test_a_parquet_file_that_is_cut_is_named(path):
    pl.DataFrame({"x": [1.0, 2.0], "y": [2.0, 4.0]}).write_parquet(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"my\.csv: cannot be read as a table: "):
        table(path, content[: len(content) // 2])


def test_a_column_of_lists_holds_no_categories(path):
    pl.DataFrame({"x": [[1, 2], [3]], "y": [2.0, 4.0]}).write_parquet(path)
    file = table(path, path.read_bytes())
    with pytest.raises(ValueError, match=r"column x holds List\(Int64\), not categories"):
        file.texts(file.read(["x"]), "x", "categories")
