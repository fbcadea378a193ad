"""The typed content of result.json: what is written, what is read, and what is refused."""

import json
import math
import os
import sys

import pytest
import torch
from pydantic import ValidationError

import linear_lab
from linear_lab.runs.record import Best, FirstStep, Job, Record, finite, read, unicode, versions


def test_numbers_that_json_cannot_represent_become_null():
    assert [finite(value) for value in (math.nan, math.inf, -math.inf)] == [None] * 3
    assert [finite(value) for value in (0.5, 3, "nan", None)] == [0.5, 3, "nan", None]
    record = Record(
        metrics={"a": math.nan, "b": 1.5}, parameters={"w": [[math.inf, 2.0]], "b": None}, seconds=-math.inf
    )
    assert record.metrics == {"a": None, "b": 1.5}
    assert record.parameters == {"w": [[None, 2.0]], "b": None}
    assert record.seconds is None


def test_characters_that_utf8_cannot_encode_are_replaced():
    assert [unicode(value) for value in ("a\udcffb", "ä €", 3)] == ["a?b", "ä €", 3]
    assert Record(error="a\udcffb").error == "a?b"


def test_json_has_one_line_per_key_that_is_set_in_the_order_of_the_fields():
    job = Job(overrides=["a=1"], lr=0.1, pictures=True)
    assert not Job().pictures
    record = Record(seconds=1.5, status="completed", rows={"train": 4}, initial=None, job=job)
    assert record.as_json() == (
        b'{\n  "status": "completed",\n  "job": {"overrides": ["a=1"], "lr": 0.1, "pictures": true},\n'
        b'  "rows": {"train": 4},\n  "initial": null,\n  "seconds": 1.5\n}\n'
    )


def test_json_never_has_nan():
    record = Record(seconds=1.5)
    record.seconds = math.nan  # without validation
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.as_json()


def test_an_update_changes_only_the_fields_that_it_names():
    record = Record(status="running", seed=3, columns={"x": ["a"], "y": ["b"]}, metrics={"a": 1.0})
    updated = record.updated(status="completed", steps=7, metrics={"b": 2.0})
    assert json.loads(updated.as_json()) == {
        "status": "completed", "seed": 3, "columns": {"x": ["a"], "y": ["b"]}, "steps": 7, "metrics": {"b": 2.0}
    }  # fmt: skip
    assert (record.status, record.steps) == ("running", None)
    with pytest.raises(ValidationError, match="seed"):
        record.updated(seed="3")


def test_what_is_written_is_read(tmp_path):
    record = Record(
        status="diverged", error="ä", versions={"torch": "2"}, seed=0, job=Job(mode="max", tags="[a]"), rows={"val": 2},
        first_step=FirstStep(loss=1.0, gradient={"weight": [[1.0, 2.0]]}), best=Best(step=5, metrics={"val/loss": 0.5}),
    )  # fmt: skip
    (tmp_path / "result.json").write_bytes(record.as_json())
    assert read(tmp_path / "result.json") == record


def test_only_a_regular_file_is_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "result.json")
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"^it is not a regular file$"):
        read(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"status": "done"}', "status: Input should be 'running'"),
        ('{"job": {"lr": "0.1"}, "seed": "3"}', "seed: Input should be a valid integer"),
        ('{"job": {"lr": "0.1"}}', "job.lr: Input should be a valid number"),
        ('{"seed": -1}', "seed: Input should be greater than or equal to 0"),
        ('{"steps": 9223372036854775808}', "steps: Input should be less than 9223372036854775808"),
        ('{"best": {}}', "best.step: Field required"),
        ("{", "Invalid JSON: EOF while parsing an object"),
        ("[]", "Input should be an object"),
    ],
)
def test_the_first_error_of_a_record_is_named(content, message, tmp_path):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r".") as error:
        read(tmp_path / "result.json")
    assert not isinstance(error.value, ValidationError)
    assert str(error.value).startswith(message)
    assert error.value.__suppress_context__


def test_versions_are_those_of_the_packages_that_run():
    found = versions()
    assert list(found) == ["linear_lab", "python", "torch", "lightning", "hydra-core"]
    assert found["linear_lab"] == linear_lab.__version__
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    assert torch.__version__.startswith(found["torch"])
