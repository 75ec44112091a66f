"""Exports to ONNX compute what the rewritten model computes, and what the original did where a rewrite keeps that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from trainer_table import IMAGES, Scene

import rewriter

runtime = pytest.importorskip("onnxruntime", reason="needs the extra trainers")
pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

MODELS: dict[str, Any] = {
    "a block's dropout moved": lambda: timm.create_model("test_resnet", drop_rate=0.2, num_classes=4),
    "dropout in a transformer": lambda: timm.create_model("test_vit", img_size=64, proj_drop_rate=0.1, num_classes=4),
    "everything": Scene,
}


def exported(model: nn.Module, file: Path) -> Any:
    torch.onnx.export(model.eval(), (IMAGES,), str(file), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})[0]


@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = MODELS[name]()
    keeping = rewriter.rewrite(original, ["dropout", "stochastic-pooling"], input_size=64)
    assert rewriter.report(keeping).applied
    before = exported(original, tmp_path / "before.onnx")
    assert np.array_equal(exported(keeping, tmp_path / "after.onnx"), before)
    found = rewriter.rewrite(original, input_size=64)
    if name == "everything":
        rewriter.calibrate(found, [IMAGES], progress=False)
    with torch.no_grad():
        expected = found.eval()(IMAGES).numpy()
    assert np.abs(exported(found, tmp_path / "all.onnx") - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (name == "everything") == (not np.allclose(before, expected))
