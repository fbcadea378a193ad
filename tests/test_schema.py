"""Units of columns: conversion to those of training and back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from linear_lab.data.schema import Schema, restore, standardize, units

VALUES = st.floats(-1e300, 1e300).filter(lambda v: v == 0 or abs(v) > 1e-290)
TABLES = arrays(float, st.tuples(st.integers(2, 8), st.integers(1, 3)), elements=VALUES)


@given(table=TABLES, center=st.booleans())
def test_standardized_columns_have_mean_0_and_mean_square_1(table, center):
    values = torch.from_numpy(table)
    mean, scale = units(values, center=center)
    z = standardize(values, mean, scale)
    assert z.isfinite().all()
    for column in range(values.shape[1]):
        constant = (values[:, column] == values[0, column]).all()
        if (center and constant) or not values[:, column].any():
            assert scale[column] == 0
            assert not z[:, column].any()
        else:
            spread = (values[:, column] - mean[column]).abs().max() / values[:, column].abs().max()
            tolerance = 1e-13 / spread.item()  # subtracting a large mean costs digits
            assert abs(z[:, column].square().mean().item() - 1) < 1e-12 + tolerance
            assert not center or abs(z[:, column].mean().item()) < 1e-12 + tolerance


@given(table=TABLES, center=st.booleans())
def test_restoring_undoes_standardizing(table, center):
    values = torch.from_numpy(table)
    mean, scale = units(values, center=center)
    largest = values.abs().amax(0).clamp(min=1e-300)
    torch.testing.assert_close(
        restore(standardize(values, mean, scale), mean, scale) / largest, values / largest, rtol=0, atol=1e-14
    )


@given(seed=st.integers(0, 99), center=st.booleans(), targets=st.integers(1, 3), biased=st.booleans())
def test_a_line_says_the_same_in_both_units(seed, center, targets, biased):
    generator = np.random.default_rng(seed)
    x, y = torch.from_numpy(generator.normal(3, 5, (9, 2))), torch.from_numpy(generator.normal(-7, 2, (9, targets)))
    schema = Schema.of(
        ["a", "b"], [f"c{k}" for k in range(targets)], None, units(x, center=center), units(y, center=center)
    )
    torch.testing.assert_close((schema.x_units, schema.y_units), (units(x, center=center), units(y, center=center)))
    weight, bias = generator.normal(size=(targets, 2)), generator.normal(size=targets) if biased else None
    seen = standardize(x, *schema.x_units) @ torch.from_numpy(weight).T + (
        0 if bias is None else torch.from_numpy(bias)
    )
    converted = schema.in_file_units({"weight": weight.tolist(), "bias": None if bias is None else bias.tolist()})
    line = x @ torch.tensor(converted["weight"], dtype=torch.float64).T
    line = line if converted["bias"] is None else line + torch.tensor(converted["bias"], dtype=torch.float64)
    torch.testing.assert_close(restore(seen, *schema.y_units), line)


def test_a_constant_column_has_no_weight_in_the_file():
    x = torch.tensor([[1.0, 0.1], [2, 0.1], [3, 0.1]], dtype=torch.float64)  # rounding moves the mean of b
    schema = Schema.of(["a", "b"], ["c"], None, units(x, center=True))
    assert schema.x_scale[1] == 0
    assert schema.in_file_units({"weight": [[2.0, 5.0]], "bias": [1.0]})["weight"][0][1] == 0


def test_plain_columns_stay_bit_for_bit():
    parameters = {"weight": [[0.1]], "bias": [0.2]}
    assert Schema.plain(1, 1).in_file_units(parameters) is parameters


def test_plain_columns_are_numbered_if_there_are_several():
    one, many = Schema.plain(1, 1), Schema.plain(3, 2)
    assert (one.x, one.y, one.labels) == (["x"], ["y"], None)
    assert (many.x, many.y, many.labels) == (["x1", "x2", "x3"], ["y1", "y2"], None)
    assert (many.x_mean, many.x_scale, many.y_mean, many.y_scale) == ([0] * 3, [1] * 3, [0] * 2, [1] * 2)
    classes = Schema.plain(2, 3, ["a", "b", "c"])
    assert (classes.x, classes.y, classes.labels) == (["x1", "x2"], ["y"], ["a", "b", "c"])


def test_columns_of_the_file_are_numbers_first_and_then_text():
    schema = Schema(["a", "b", "c=p", "c=q"], ["y"], [0.0] * 4, [1.0] * 4, [0.0], [1.0], None, {"c": ["p", "q"]})
    assert schema.columns == ["a", "b", "c"]
    assert Schema.plain(2, 1).columns == ["x1", "x2"]


def test_a_line_in_both_units_by_hand():
    schema = Schema(["a", "b"], ["y"], [2.0, 0.0], [0.5, 4.0], [3.0], [6.0])  # z = (x - mean) / scale
    assert schema.in_file_units({"weight": [[1.0, 2.0]], "bias": [0.5]}) == {
        "weight": [[6 * 1 / 0.5, 6 * 2 / 4]], "bias": [3 + 6 * 0.5 - 12 * 2]
    }  # fmt: skip
    assert schema.in_file_units({"weight": [[1.0, 2.0]], "bias": None})["bias"] == [3 - 12 * 2]
    shifted = Schema(["a"], ["y"], [0.0], [1.0], [3.0], [1.0])
    assert shifted.in_file_units({"weight": [[2.0]], "bias": None}) == {"weight": [[2.0]], "bias": [3.0]}
    scaled = Schema(["a"], ["y"], [0.0], [0.5], [0.0], [1.0])
    assert scaled.standardized
    assert scaled.in_file_units({"weight": [[1.0]], "bias": None}) == {"weight": [[2.0]], "bias": None}
    other = {"weight": [[1.0]], "gain": [1.0]}
    assert scaled.in_file_units(other) is other


def test_units_of_columns_by_hand():
    mean, scale = units(torch.tensor([[1.0, 5, 0], [3, 5, 0]], dtype=torch.float64), center=True)
    assert (mean.tolist(), scale.tolist()) == ([2, 5, 0], [1, 0, 0])
    mean, scale = units(torch.tensor([[3.0, 0], [4, 0]], dtype=torch.float64), center=False)
    assert mean.tolist() == [0, 0]
    torch.testing.assert_close(scale, torch.tensor([12.5**0.5, 0], dtype=torch.float64))
    schema = Schema.of(["a", "b"], ["y"], None, (mean, scale), None)
    assert (schema.x_units[0].dtype, schema.y_units[1].dtype) == (torch.float64, torch.float64)
    assert (schema.x_scale, schema.y_mean, schema.y_scale) == (scale.tolist(), [0], [1])
    z = standardize(torch.tensor([[3.0, 7]]), torch.tensor([1.0, 7]), torch.tensor([0.5, 0]))
    assert z.tolist() == [[4, 0]]
    assert restore(z, torch.tensor([1.0, 7]), torch.tensor([0.5, 0])).tolist() == [[3, 7]]


@pytest.mark.parametrize("field", ["x_mean", "x_scale", "y_mean", "y_scale"])
@pytest.mark.parametrize("value", [0.5, 3.0])
def test_one_unit_is_enough_to_be_standardized(field, value):
    plain = Schema.plain(2, 1)
    assert not plain.standardized
    assert replace(plain, **{field: [value] * len(getattr(plain, field))}).standardized


def test_units_are_tensors_of_float64():
    schema = Schema(["a"], ["y"], [0.1], [0.2], [0.3], [0.4])
    found, expected = (*schema.x_units, *schema.y_units), (0.1, 0.2, 0.3, 0.4)
    for values, number in zip(found, expected, strict=True):
        torch.testing.assert_close(values, torch.tensor([number], dtype=torch.float64), rtol=0, atol=0)
    with pytest.raises(AttributeError):
        schema.x_mean = [0.0]
