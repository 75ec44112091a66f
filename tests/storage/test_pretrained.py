"""Rewritten models in the format of their own libraries."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from torch import nn

import rewriter
from rewriter.errors import PlanError, RewriterError, RewriterWarning, StorageError

SEGFORMER: dict[str, Any] = {
    "hidden_sizes": [16, 24, 32, 48], "depths": [1] * 4, "decoder_hidden_size": 32, "num_attention_heads": [1, 1, 2, 2],
    "num_labels": 4,
}  # fmt: skip


def segformer() -> nn.Module:
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SEGFORMER))


def unet() -> nn.Module:
    return diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def deeplab() -> nn.Module:
    return smp.DeepLabV3("resnet18", encoder_weights=None, classes=4)


def efficientnet() -> nn.Module:
    return timm.create_model("test_efficientnet_gn", num_classes=4)


NOISE = (torch.randn(2, 3, 16, 16), torch.tensor([1, 500]))
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any]] = {
    "transformers": (segformer, transformers.SegformerForSemanticSegmentation, None, {"input_size": 64}),
    "transformers, automatic": (segformer, transformers.AutoModelForSemanticSegmentation, None, {"input_size": 64}),
    "diffusers": (unet, diffusers.UNet2DModel, {"group-count": {"tolerance": 0}}, {"example_inputs": NOISE}),
    "smp": (deeplab, smp.DeepLabV3, "atrous-rates", {"input_size": 64}),
    "timm": (efficientnet, efficientnet, {"group-count": {"tolerance": 0}}, {"input_size": 64}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    make, reader, passes, inputs = CASES[request.param]
    model = rewriter.rewrite(make(), passes, **inputs, preserve="nothing")
    if any("scale_equalizer" in key for key in model.state_dict()):
        rewriter.calibrate(model, [torch.randn(4, 3, 64, 64)], progress=False)
    assert rewriter.report(model).applied
    return make, reader, model, inputs.get("example_inputs", (torch.randn(2, 3, 64, 64),))


def logits(model: nn.Module, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(*inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.slow
def test_there_and_back_in_the_format_of_the_library(case: Any, tmp_path: Path) -> None:
    make, reader, model, inputs = case
    rewriter.save_pretrained(model, tmp_path / "saved")
    copied = shutil.copytree(tmp_path / "saved", tmp_path / "elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewriterWarning)
        again = [rewriter.from_pretrained(reader, copied), rewriter.from_pretrained(make, str(copied))]
    for found in again:
        assert not found.training and isinstance(found, type(make()))
        assert torch.equal(logits(found, inputs), logits(model, inputs))
        assert [r.plan for r in rewriter.report(found).records] == [r.plan for r in rewriter.report(model).records]
        assert not rewriter.report(found).stale
    (copied / "rewriter-plan.json").unlink()  # the configuration has it, too
    assert torch.equal(logits(rewriter.from_pretrained(reader, copied), inputs), logits(model, inputs))


@pytest.mark.slow
def test_the_library_itself_speaks_up(case: Any, tmp_path: Path, capfd: Any, caplog: Any) -> None:
    make, reader, model, _ = case
    rewriter.save_pretrained(model, tmp_path)
    transformers.utils.logging.enable_propagation()
    try:
        if reader is smp.DeepLabV3:
            smp.from_pretrained(str(tmp_path))
        elif reader is make:
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        else:
            reader.from_pretrained(str(tmp_path))
        said = caplog.text + "".join(capfd.readouterr())
    except RuntimeError as error:
        said = str(error)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "rewriter_plan" in said or "scale_equalizer" in said


@pytest.mark.slow
def test_parts_half_precision_and_tied_weights(tmp_path: Path) -> None:
    model = rewriter.rewrite(segformer(), input_size=64).bfloat16()
    rewriter.save_pretrained(model, tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and not (tmp_path / "model.safetensors").exists()
    found = rewriter.from_pretrained(transformers.SegformerForSemanticSegmentation, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), model.state_dict().values(), strict=True))
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_what_cannot_be_saved_or_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="was not rewritten"):
        rewriter.save_pretrained(segformer(), tmp_path / "a")
    own = rewriter.rewrite(nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(16, 32)), "group-count", input_size=8)
    with pytest.raises(StorageError, match=r"rewriter.save\(model, directory\) saves any model"):
        rewriter.save_pretrained(own, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    segformer().save_pretrained(tmp_path / "plain")
    with pytest.raises(StorageError, match="was not written by"):
        rewriter.from_pretrained(transformers.SegformerForSemanticSegmentation, tmp_path / "plain")
    with pytest.raises(StorageError, match="no such directory"):
        rewriter.from_pretrained(transformers.SegformerForSemanticSegmentation, tmp_path / "nowhere")
    rewriter.save_pretrained(rewriter.rewrite(segformer(), input_size=64), tmp_path / "b")
    with pytest.raises(PlanError):
        rewriter.from_pretrained(efficientnet, tmp_path / "b")
    with pytest.raises(StorageError, match="expected a class with from_pretrained"):
        rewriter.from_pretrained(3, tmp_path / "b")
    (tmp_path / "b" / "rewriter-plan.json").write_text(json.dumps([{"format": 3}]))
    with pytest.raises(RewriterError, match="damaged"):
        rewriter.from_pretrained(transformers.SegformerForSemanticSegmentation, tmp_path / "b")
