"""Layers with weights keep exactly the class they had, for tools that ask for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.ao.quantization as quantization
import torchvision
from helpers import image, output
from torch import nn

import rewriter
from rewriter.passes import Dropout

INSERTED = Dropout(p=0.1, head_p=0)


class Block(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.n1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.n2, self.last = nn.BatchNorm2d(8), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.n2(self.conv1(self.n1(x).relu())).relu())


def network() -> nn.Module:
    blocks = [Block(nn.Conv2d(8, 8, 3, padding=1)), Block(nn.Conv2d(8, 8, 1)), Block(nn.ConvTranspose2d(8, 8, 1))]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def with_weights(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules() if hasattr(module, "weight")}


MODELS: dict[str, Any] = {
    "own blocks": network,
    "resnetv2": lambda: timm.create_model("resnetv2_50", layers=(1, 1, 1, 1)),
    "vit": lambda: timm.create_model("test_vit"),
    "convnext": lambda: timm.create_model("test_convnext"),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_layers_with_weights_keep_exactly_their_class(make: Any) -> None:
    model = make()
    given = {} if hasattr(model, "pretrained_cfg") else {"input_size": 64}
    result = rewriter.rewrite(model, INSERTED, verify=False, **given)
    assert rewriter.report(result).applied
    assert with_weights(result) == with_weights(model)
    undone = rewriter.undo(result)
    assert [type(module) for module in undone.modules()] == [type(module) for module in model.modules()]


def test_quantization_aware_training_leaves_no_layer_out() -> None:
    model = network()
    result = rewriter.rewrite(model, INSERTED, input_size=16)
    assert len(rewriter.report(result).applied) == 3
    quantized = []
    for each in (model, result):
        trained = copy.deepcopy(each).train()
        trained.qconfig = quantization.get_default_qat_qconfig("x86")
        prepared = quantization.prepare_qat(trained)
        quantized.append([path for path, module in prepared.named_modules() if hasattr(module, "weight_fake_quant")])
    assert quantized[0] == quantized[1] and len(quantized[0]) == 7


@pytest.mark.thorough
def test_the_inserted_dropout_acts_and_the_layer_s_hooks_see_its_result() -> None:
    model = network()
    seen: list[torch.Tensor] = []
    model[1].last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    result = rewriter.rewrite(model, INSERTED, input_size=16)
    assert torch.equal(output(result, image(16)), output(model, image(16)))
    seen.clear()
    result.train()(image(16))
    assert (seen[0] == 0).float().mean() > (seen[0] == 0).logical_not().float().mean() * 0.05
    assert isinstance(result[1].dropout, nn.Dropout) and result[1].dropout.p == 0.1
    compiled = torch.compile(result.eval(), backend="eager")
    assert torch.equal(compiled(image(16)), result(image(16)))


def test_a_layer_in_a_container_of_torch_gets_a_class_of_its_own_and_the_plan_says_so() -> None:
    """Its caller is a loop of torch's; the layer is the only place that can be edited."""

    class InSequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm, conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
            self.stem, self.branch = nn.Conv2d(3, 8, 1), nn.Sequential(norm, nn.ReLU(), conv)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return x + self.branch(x)

    plan = rewriter.plan(InSequence(), INSERTED, input_size=16)
    assert len(plan.sites) == 1 and "class of its own: branch.2" in str(plan)
    assert "class of its own" not in str(rewriter.plan(network(), INSERTED, input_size=16))
