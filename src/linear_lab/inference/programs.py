"""A run as a file that predicts without this package."""

import importlib
import io
import json
import logging
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from linear_lab import UserError
from linear_lab.fitting.checks import user_errors
from linear_lab.inference.rows import Predictor, load, target_file
from linear_lab.runs.atomic import writing
from linear_lab.runs.folder import Trust
from linear_lab.terminal import layout, report

TOLERANCE = 1e-6  # largest difference between the file's predictions and predict's, relative to the largest
CHECKED_ROWS = 100


def export(folder: str, which: str = "best", output: str | None = None, kind: str = "pt2", trust: Trust = None) -> Path:
    """Write a run's model, its units included, and check that the file predicts what predict does.

    Args:
        folder: the run folder.
        which: ``best`` or ``last`` checkpoint.
        output: the file; None is ``model.pt2`` or ``model.onnx`` in the run folder.
        kind: ``pt2`` for torch.export, ``onnx`` for ONNX.
        trust: classes of your own that the run's config may name; see `check_targets`.

    Returns:
        The file.

    Raises:
        UserError: if the run or the place cannot be used, a package is missing, or the file predicts otherwise.
    """
    if kind not in EXPORTS:
        raise UserError(f"format={kind}: choose format={' or format='.join(EXPORTS)}")
    run, _, predictor = load(folder, which, trust)
    with user_errors("export"):
        target = target_file(run, output, f"model.{kind}")
    schema = predictor.schema
    mean, scale = schema.x_units
    x = mean + scale * torch.randn(CHECKED_ROWS, len(mean), generator=torch.Generator().manual_seed(0)).double()
    meaning = {"x": schema.x, "y": schema.y, "labels": schema.labels}
    with writing(target) as file:
        y_hat = EXPORTS[kind](predictor, x, file, {key: json.dumps(value) for key, value in meaning.items()})
        expected = predictor(x).detach()
        difference = (y_hat - expected).abs().max().item() / max(expected.abs().max().item(), 1e-300)
        if not difference <= TOLERANCE:
            raise UserError(f"format={kind}: the file predicts otherwise, by {difference:.1g} of the largest value")
    report.show_export(layout.screen(), target, kind, meaning, difference)
    return target


def to_pt2(predictor: Predictor, x: Tensor, file: BinaryIO, meaning: dict[str, str]) -> Tensor:
    """Write with torch.export, and return the file's predictions."""
    program = torch.export.export(predictor, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},), strict=True)
    content = io.BytesIO()  # PyTorch's writer ends the process where the disk is full
    torch.export.save(program, content, extra_files=meaning)
    file.write(content.getbuffer())
    file.seek(0)
    y_hat: Tensor = torch.export.load(file).module()(x)
    return y_hat.detach()


def to_onnx(predictor: Predictor, x: Tensor, file: BinaryIO, meaning: dict[str, str]) -> Tensor:
    """Write as ONNX, and return the file's predictions."""
    try:
        onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise UserError(f"format=onnx: {error.name} is missing; {layout.installing('onnx')}") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y_hat"]}
    shapes = ({0: torch.export.Dim("rows")},)
    program: Any = torch.onnx.export(predictor, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    model = program.model_proto
    onnx.helper.set_model_props(model, meaning)
    file.write(model.SerializeToString())
    file.seek(0)
    session = runtime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(["y_hat"], {"x": x.numpy()})[0]))


EXPORTS = {"pt2": to_pt2, "onnx": to_onnx}
