"""Names → models, and what is said about names and options that do not exist."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from rewriter import zoo

_TV_VIT = "torchvision.models.vision_transformer.VisionTransformer"


def on_meta(name: str, **kwargs: Any) -> zoo.Entry:
    with torch.device("meta"):
        return zoo.create(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "class_name", "input_size"),
    [
        ("resnet18", {}, "timm.models.resnet.ResNet", (3, 224, 224)),
        ("timm:resnet18", {"in_chans": 1}, "timm.models.resnet.ResNet", (1, 224, 224)),
        ("resnet18.a1_in1k", {}, "timm.models.resnet.ResNet", (3, 224, 224)),
        ("test_vit", {"img_size": (64, 96)}, "timm.models.vision_transformer.VisionTransformer", (3, 64, 96)),
        ("torchvision:resnet18", {"num_classes": 7}, "torchvision.models.resnet.ResNet", (3, 224, 224)),
        ("torchvision:vit_b_16", {"image_size": 64}, _TV_VIT, (3, 64, 64)),
        ("torchvision:lraspp_mobilenet_v3_large", {}, "torchvision.models.segmentation.lraspp.LRASPP", (3, 224, 224)),
        ("torchvision:retinanet_resnet50_fpn", {}, "torchvision.models.detection.retinanet.RetinaNet", None),
    ],
)  # fmt: skip
def test_create(name: str, kwargs: dict[str, Any], class_name: str, input_size: Any) -> None:
    entry = on_meta(name, **kwargs)
    cls = type(entry.model)
    assert f"{cls.__module__}.{cls.__qualname__}" == class_name
    assert (entry.name, entry.input_size, entry.options) == (name, input_size, kwargs)


def test_models_that_take_more_than_images() -> None:
    """The inputs have values on the CPU, even if the model has none, and what the model's heads need."""
    images, targets = on_meta("torchvision:keypointrcnn_resnet50_fpn").example_inputs or ((), ())
    assert [image.shape for image in images] == [(3, 64, 64)] * 2 and len(targets) == 2
    assert {name: tuple(value.shape) for name, value in targets[0].items()} == {
        "boxes": (1, 4), "labels": (1,), "keypoints": (1, 17, 3),
    }  # fmt: skip
    assert all(value.device.type == "cpu" for value in (*images, *targets[0].values()))
    _, targets = on_meta("torchvision:maskrcnn_resnet50_fpn").example_inputs or ((), ())
    assert targets[0]["masks"].shape == (1, 64, 64)
    (clips,) = on_meta("torchvision:mvit_v1_b").example_inputs or ()
    assert clips.shape == (2, 3, 16, 224, 224)
    first, second = on_meta("torchvision:raft_small").example_inputs or ()
    assert first.shape == second.shape == (2, 3, 128, 128) and not torch.equal(first, second)
    assert on_meta("torchvision:resnet18").example_inputs is on_meta("resnet18").example_inputs is None


def test_options_decide_about_inputs() -> None:
    _, targets = on_meta("torchvision:keypointrcnn_resnet50_fpn", num_keypoints=5).example_inputs or ((), ())
    assert targets[0]["keypoints"].shape == (1, 5, 3)


def test_quick_options_keep_the_structure() -> None:
    name = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
    options = zoo.quick_options(name)
    plain, quick = on_meta(name).model, on_meta(name, **options).model
    assert quick.transform.min_size == (64,) != plain.transform.min_size
    assert str(list(quick.backbone.modules())) == str(list(plain.backbone.modules()))
    assert list(quick.state_dict()) == list(plain.state_dict())
    for other in ("torchvision:ssd300_vgg16", "torchvision:resnet18", "resnet18", "smp:unet", "a:b:c", "no:where"):
        assert zoo.quick_options(other) == {}


def test_options_reach_the_constructor() -> None:
    assert on_meta("resnet18", drop_rate=0.2).model.drop_rate == 0.2


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    for name in ("torchvision:fasterrcnn_resnet50_fpn", "torchvision:fcn_resnet50", "torchvision:resnet18"):
        on_meta(name)
    with pytest.raises(zoo.CreationError, match="download"):
        on_meta("torchvision:resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "resnet18"),
        ("timm:resnet81", "resnet18"),
        ("resnet18.a9_in1k", "resnet18.a1_in1k"),
        ("torchvision:resnet81", "torchvision:resnet18"),
        ("alexnet", "torchvision:alexnet"),
        ("nowhere:resnet18", "smp:NAME"),
        ("timm:hf-hub:somebody/model", "timm:NAME"),
        ("", "rewriter.zoo.names()"),
        ("@@@@", "rewriter.zoo.names()"),
    ],
)
def test_unknown_name(name: str, words: str) -> None:
    with pytest.raises(zoo.UnknownModel) as caught:
        on_meta(name)
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_refused_option(name: str) -> None:
    with pytest.raises(zoo.CreationError, match=r"cannot be created with no_such=1: .*no_such"):
        on_meta(name, no_such=1)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "torchvision:resnet18", "smp:unet", "zoo:uperhead", "hf:ViTForImageClassification", "hf:a/b",
     "diffusers:UNet2DModel"],
)  # fmt: skip
def test_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library.split(".")[0])

    monkeypatch.setattr("rewriter.libraries.importlib.import_module", missing)
    with pytest.raises(zoo.MissingLibrary, match='is not installed; install it with: pip install "'):
        zoo.create(name)
    torch_alone = ("zoo:preact_resnet", "zoo:dropout_")
    assert all(name.startswith(torch_alone) for name in zoo.names())


def test_broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(library: str) -> None:
        raise ModuleNotFoundError("No module named 'inside'", name="inside")

    monkeypatch.setattr("rewriter.libraries.importlib.import_module", broken)
    with pytest.raises(zoo.MissingLibrary, match="timm cannot be imported: No module named 'inside'"):
        zoo.create("resnet18")


@pytest.mark.slow
def test_names() -> None:
    found = zoo.names("resnet18*")
    assert {"resnet18", "resnet18d", "torchvision:resnet18"} <= set(found)
    assert all(name.startswith("torchvision:") for name in zoo.names("torchvision:*"))
    assert "resnet18" in zoo.names("timm:resnet*")
    assert zoo.names("no such name") == []
    assert all(on_meta(name).name == name for name in found)


def test_smp() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    assert type(on_meta("smp:unet-resnet18").model).__name__ == "Unet"
    assert on_meta("smp:fpn-resnet18", in_channels=1, classes=4).input_size == (1, 224, 224)
    assert {"smp:unet", "smp:unet-resnet18"} <= set(zoo.names("smp:unet*"))
    with pytest.raises(zoo.UnknownModel, match="smp:unet"):
        on_meta("smp:unett")
    with pytest.raises(zoo.UnknownModel, match="smp:unet-resnet18"):
        on_meta("smp:unet-resnett18")
    with pytest.raises(zoo.CreationError, match="classes"):
        on_meta("smp:unet-resnet18", clases=4)


LIBRARIES = ("diffusers", "segmentation_models_pytorch", "timm", "torchvision", "transformers")


@pytest.mark.slow
def test_imports_what_is_needed() -> None:
    """Neither the compiler nor passes; of the libraries those that a name is about, and what they import."""
    code = f"""
import contextlib, sys
from rewriter import zoo
OURS = ('rewriter.zoo', 'rewriter.image_size', 'rewriter.libraries', 'rewriter.renamed', 'rewriter.version')
def show():
    ours = {{name for name in sys.modules if name.startswith('rewriter.') and not name.startswith(OURS)}}
    print(sorted(ours | {{name.split('.')[0] for name in sys.modules}} & {{*{LIBRARIES}}}))
show()
zoo.names('hf:*', check=False)
show()
with contextlib.suppress(zoo.UnknownModel):
    zoo.create('hf:nothing')
show()
zoo.names('zoo:preact*')
show()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    hugging_face, heads = ["transformers"], ["timm", "torchvision", "transformers"]
    assert done.stdout.splitlines() == [str(found) for found in ([], hugging_face, hugging_face, heads)]


def test_any_timm_model_may_be_an_encoder_of_smp_by_its_exact_name() -> None:
    assert zoo.names("smp:dpt-tu-vit_tiny_patch16_224") == ["smp:dpt-tu-vit_tiny_patch16_224"]
    for unknown in ("smp:dpt-tu-vit_tiny", "smp:dpd-tu-vit_tiny_patch16_224", "smp:dpt-tu-vit_*"):
        assert zoo.names(unknown) == []
