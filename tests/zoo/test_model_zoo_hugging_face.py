"""Models of transformers and diffusers by name: options, inputs, the command line, and the hub without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

import rewriter
from rewriter import zoo
from rewriter.cli import commands as cli
from rewriter.sweep.check import check_model_by_name
from rewriter.sweep.request import SweepRequest

pytestmark = pytest.mark.slow

TINY_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "hidden_dropout_prob": 0.1,
}  # fmt: skip
TINY_UNET: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "attention_head_dim": 4}


def on_meta(name: str, **options: Any) -> zoo.Entry:
    with torch.device("meta"):
        return zoo.create(name, **options)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "options", "input_size"),
    [
        ("hf:ViTForImageClassification", {"num_labels": 7}, (3, 224, 224)),
        ("hf:ViTForImageClassification", {"image_size": 64, "num_channels": 1}, (1, 64, 64)),
        ("hf:ResNetForImageClassification", {}, (3, 224, 224)),
        ("hf:CLIPForImageClassification", {}, (3, 224, 224)),
        ("hf:YolosForObjectDetection", {}, (3, 512, 864)),
        ("hf:BeitForSemanticSegmentation", {}, (3, 224, 224)),
        ("hf:UperNetForSemanticSegmentation", {}, (3, 224, 224)),
    ],
)
def test_classes_of_transformers(name: str, options: dict[str, Any], input_size: Any) -> None:
    entry = on_meta(name, **options)
    assert type(entry.model) is getattr(transformers, name.removeprefix("hf:"))
    assert (entry.name, entry.input_size, entry.options, entry.example_inputs) == (name, input_size, options, None)
    if "num_labels" in options:
        assert entry.model.classifier.out_features == 7


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("UNet2DModel", {"sample": (2, 3, 32, 32), "timestep": (2,)}),
        (
            "UNet2DConditionModel",
            {"sample": (2, 4, 32, 32), "timestep": (2,), "encoder_hidden_states": (2, 4, 1280)},
        ),
        ("AutoencoderKL", {"sample": (2, 3, 32, 32)}),
        ("AutoencoderKLLTXVideo", {"sample": (2, 3, 9, 64, 64)}),
        ("DiTTransformer2DModel", {"hidden_states": (2, 4, 32, 32), "timestep": (2,), "class_labels": (2,)}),
    ],
)  # fmt: skip
def test_classes_of_diffusers(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    entry = on_meta(f"diffusers:{name}")
    assert isinstance(entry.example_inputs, dict) and entry.input_size is None
    assert {key: tuple(value.shape) for key, value in entry.example_inputs.items()} == shapes
    assert all(value.device.type == "cpu" for value in entry.example_inputs.values())


def test_options_decide_about_inputs() -> None:
    inputs = on_meta("diffusers:UNet2DConditionModel", in_channels=9, cross_attention_dim=64).example_inputs
    assert isinstance(inputs, dict)
    assert inputs["sample"].shape[1] == 9 and inputs["encoder_hidden_states"].shape[2] == 64


def test_names() -> None:
    """From the libraries' own lists; what cannot be built as it comes is left out."""
    every = zoo.names("hf:*", check=False)
    assert {"hf:ViTForImageClassification", "hf:DetrForObjectDetection", "hf:DPTForDepthEstimation"} <= set(every)
    assert len(every) > 60 and all(name.startswith("hf:") for name in every)
    assert "hf:PerceiverForImageClassificationFourier" in every, "its default configuration contradicts itself"
    assert zoo.names("hf:Perceiver*Fourier") == zoo.names("hf:ImageGPT*") == []
    assert zoo.names("hf:ViTFor*") == zoo.names("ViTFor*") == ["hf:ViTForImageClassification"]
    assert {"diffusers:UNet2DModel", "diffusers:VQModel"} <= set(zoo.names("diffusers:*", check=False))
    assert "diffusers:FluxTransformer2DModel" not in zoo.names("diffusers:*", check=False)
    assert zoo.names("diffusers:UNet?DModel") == ["diffusers:UNet2DModel"], "the default UNet1DModel does not run"


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("hf:ViTForImageClasification", {}, zoo.UnknownModel, "hf:ViTForImageClassification"),
        ("hf:ViTForImageClassification", {"no_such": 1}, zoo.CreationError, "no option 'no_such'; its options: "),
        ("hf:ViTForImageClassification", {"pretrained": True}, zoo.CreationError, "hub id"),
        ("hf:ViTForImageClassification", {"patch_size": 0}, zoo.CreationError, "patch_size=0"),
        ("diffusers:UNet2D", {}, zoo.UnknownModel, "diffusers:UNet2DModel"),
        ("diffusers:UNet2DModel", {"no_such": 1}, zoo.CreationError, "no option 'no_such'; its options: "),
        ("diffusers:UNet2DModel", {"pretrained": True}, zoo.CreationError, "without weights"),
    ],
)
def test_errors(name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        on_meta(name, **options)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory stands for the hub, as transformers allows."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT))
    model.save_pretrained(tmp_path / "somebody" / "vit")
    monkeypatch.chdir(tmp_path)
    entry = zoo.create("hf:somebody/vit")
    assert entry.input_size == (3, 32, 32) and entry.model.config.hidden_size == 32
    assert not torch.equal(entry.model.classifier.weight, model.classifier.weight)
    pretrained = zoo.create("hf:somebody/vit", pretrained=True, hidden_dropout_prob=0.3).model
    assert torch.equal(pretrained.classifier.weight, model.classifier.weight)
    assert pretrained.config.hidden_dropout_prob == 0.3
    with pytest.raises(zoo.CreationError, match="no option 'no_such'"):
        zoo.create("hf:somebody/vit", pretrained=True, no_such=1)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(zoo.CreationError, match=r"needs the network: OSError: We couldn't connect"):
        zoo.create("hf:somebody/vit")


@pytest.mark.parametrize(
    ("name", "options"), [("hf:ViTForImageClassification", TINY_VIT), ("diffusers:UNet2DModel", TINY_UNET)]
)
def test_sweep(name: str, options: dict[str, Any]) -> None:
    row = check_model_by_name(name, SweepRequest.of(["dropout"], "auto", options, numerics=False))
    assert (row.status, row.backend, row.verified, row.undo) == ("ok", "meta", "held", "held"), row
    assert row.passes["dropout"]["applied"] > 0


def test_command_line(tmp_path: Path) -> None:
    """Inputs are shown by name, and the recipe makes the original again."""
    options = " ".join(f"{key}={value}" for key, value in TINY_UNET.items()).replace(", ", ",")
    arguments = ("diffusers:UNet2DModel", "-k", options, "-o", str(tmp_path / "out"))
    done = CliRunner().invoke(cli.application(), ["rewrite", *arguments])
    assert done.exit_code == 0, done.stderr
    assert "on sample 2 x 3 x 32 x 32, timestep 2" in flat(done.stdout)
    loaded = rewriter.load(tmp_path / "out")
    assert type(loaded).__name__ == "UNet2DModel" and rewriter.report(loaded).inactive
    assert loaded.config.block_out_channels == TINY_UNET["block_out_channels"]
