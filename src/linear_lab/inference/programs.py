"""Exports a run as a program: a file that predicts without this package."""

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

TOLERANCE = 1e-6  # largest difference between predictions of the file and of the run, relative to the largest value
CHECKED_ROWS = 100  # random rows on which they are compared


def export(folder: str, which: str = "best", output: str | None = None, kind: str = "pt2", trust: Trust = None) -> Path:
    """Write a run's model as a program that includes the units, and check its predictions against the run's.

    Args:
        folder: the run folder.
        which: the checkpoint, ``best`` or ``last``.
        output: the file to write; by default ``model.pt2`` or ``model.onnx`` in the run folder.
        kind: ``pt2`` for torch.export, ``onnx`` for ONNX.
        trust: names of other classes that the run's config may build; see `check_targets`.

    Returns:
        The path of the file.

    Raises:
        UserError: if the run or the file cannot be used, a package is missing, or the predictions differ.
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
            raise UserError(f"format={kind}: its predictions differ by {difference:.1g} of the largest; try another")
    report.show_export(layout.screen(), target, kind, meaning, difference)
    return target


def to_pt2(predictor: Predictor, x: Tensor, file: BinaryIO, meaning: dict[str, str]) -> Tensor:
    """Write a ``.pt2`` file by torch.export, and return the predictions of that file."""
    program = torch.export.export(predictor, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},), strict=True)
    content = io.BytesIO()  # on a full disk, PyTorch's own writer would crash the process
    torch.export.save(program, content, extra_files=meaning)
    file.write(content.getbuffer())
    file.seek(0)
    y_hat: Tensor = torch.export.load(file).module()(x)
    return y_hat.detach()


def to_onnx(predictor: Predictor, x: Tensor, file: BinaryIO, meaning: dict[str, str]) -> Tensor:
    """Write an ONNX file, and return the predictions of that file."""
    try:
        onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise UserError(f"format=onnx: {error.name} is missing; install it by {layout.installing('onnx')}") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of missing packages that are not needed
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
