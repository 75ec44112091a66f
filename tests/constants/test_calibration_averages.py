"""Averages of the weights (EMA) that were made before calibration: where they are off, and which follow."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import rewriter
from rewriter.layers.registry import calibrated_layers
from rewriter.model.copying import copy_model

pytestmark = pytest.mark.slow

TOLD = "this copy of a model .* was made before the model was calibrated"


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fresh() -> nn.Module:
    torch.manual_seed(0)
    model = smp.PSPNet("resnet18", encoder_weights=None)
    return rewriter.rewrite(model, "scale-equalizer", input_size=64, verify=False)


@pytest.fixture
def model(fresh: nn.Module) -> nn.Module:
    return copy_model(fresh)


@pytest.fixture(autouse=True)
def other_warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def difference(first: Any, second: Any) -> float:
    with torch.no_grad():
        one, other = first.eval()(images()), second.eval()(images())
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("average", [ModelEmaV2, ModelEmaV3, copy.deepcopy, copy_model])
def test_an_average_made_before_says_so_once_when_it_is_evaluated(average: Any, model: nn.Module) -> None:
    ema: Any = average(model)
    inner = getattr(ema, "module", ema)
    inner.eval()
    rewriter.calibrate(model, images())
    inner.train()
    if inner is not ema:
        ema.update(model)  # a step of ten thousand towards the constants
    with pytest.warns(UserWarning, match=TOLD):
        inner.eval()
    assert difference(model, inner.eval()) > 0.1
    inner.load_state_dict(model.state_dict())
    assert difference(model, inner) == 0


@pytest.mark.parametrize("remedy", ["made after", "load_state_dict", "set", "calibrate"])
def test_what_was_told_to_do_helps(remedy: str, model: nn.Module) -> None:
    ema = ModelEmaV3(model)
    rewriter.calibrate(model, images())
    if remedy == "made after":
        ema = ModelEmaV3(model)
    elif remedy == "load_state_dict":
        ema.module.load_state_dict(model.state_dict())
    elif remedy == "set":
        ema.set(model)
    else:
        rewriter.calibrate(ema.module, images())
    assert difference(model, ema.module) < 1e-5


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_of_torch_follows_at_its_first_update(use_buffers: bool, model: nn.Module) -> None:
    ema = AveragedModel(model, use_buffers=use_buffers)
    rewriter.calibrate(model, images())
    ema.update_parameters(model)
    assert difference(model, ema) == 0


def test_measuring_anew_is_told_too(model: nn.Module) -> None:
    rewriter.calibrate(model, images())
    ema = copy.deepcopy(model)
    ema.eval()
    rewriter.calibrate(model, images().cumsum(-1))
    with pytest.warns(UserWarning, match=TOLD):
        ema.eval()


def test_others_are_not_told(model: nn.Module) -> None:
    """The original of a calibrated copy, its other copies, pickles, and copies of a model that is gone."""
    sibling, source = copy.deepcopy(model), copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(source, buffer)
    orphan = copy.deepcopy(source)
    rewriter.calibrate(source, images())
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    del source
    for other in (model, sibling, orphan, loaded):
        other.train().eval()
        assert not any(layer.calibrated for layer in calibrated_layers(other).values())
    rewriter.calibrate(loaded, images())
    again = copy.deepcopy(loaded)
    rewriter.fold(again).eval()


def test_a_model_pickled_before_this_was_known(model: nn.Module) -> None:
    for layer in calibrated_layers(model).values():
        del layer.__dict__["measured"]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    ema = copy.deepcopy(loaded)
    rewriter.calibrate(loaded, images())
    with pytest.warns(UserWarning, match=TOLD):
        ema.eval()
