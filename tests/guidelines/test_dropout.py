"""What the dropout pass does to models that users train."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import rewriter
from rewriter.passes import Dropout
from rewriter.reasons import Reason


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def full_size() -> torch.Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def inputs_of(model: nn.Module, path: str, images: torch.Tensor, runs: int = 1) -> torch.Tensor:
    """What the module at ``path`` reads in training mode, one row a run."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for _ in range(runs):
            model.train()(images)
    handle.remove()
    return torch.stack(seen)


def zeros(tensor: torch.Tensor) -> float:
    return float((tensor == 0).float().mean())


# ---------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.thorough
def test_classifier_reads_no_zeroed_features_once_head_dropout_is_moved(full_size: torch.Tensor) -> None:
    model = timm.create_model("resnet18", drop_rate=0.5)
    rewritten = rewriter.rewrite(model)
    assert zeros(inputs_of(model, "fc", full_size)) > 0.4
    assert zeros(inputs_of(rewritten, "fc", full_size)) == 0


def test_noise_of_the_logits_falls_as_the_law_says() -> None:
    """Variance after over before pooling is HW (E[x]^2 + Var/HW) / E[x^2] for independent positions, at any rate."""
    side, draws = 7, 4000
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, side, side, generator=generator).relu()

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_rate = 0.3
            self.fc = nn.Linear(64, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.mean((2, 3))
            x = F.dropout(x, self.drop_rate, self.training)
            return self.fc(x)

    torch.manual_seed(0)
    model = Tail()
    rewritten = rewriter.rewrite(model, example_inputs=features)
    batch = features.expand(draws, -1, -1, -1)
    with torch.no_grad():
        before = model.train()(batch).double().flatten()
        after = rewritten.train()(batch).double().flatten()
    ratio = float(before.var() / after.var())
    # exact for this feature map and these weights: the mask's variance is that of sum_c w_c^2 (.)_c
    weights = model.fc.weight.detach().square().double().flatten()
    maps = features.double()[0]
    law = float((weights * maps.mean((1, 2)).square()).sum() / (weights * maps.square().mean((1, 2))).sum()) * side**2
    # the log of a ratio of two sample variances has standard error sqrt(2/n + 2/n) for normal noise; five of them
    assert abs(math.log(ratio / law)) < 5 * math.sqrt(4 / draws)
    assert 10 < law < 22
    assert abs(float(before.mean() - after.mean())) < 6 * float(before.std() + after.std()) / math.sqrt(draws)


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("mobilenetv3_small_050", {"drop_rate": 0.2}, Reason.WEIGHT_BETWEEN),
        ("ghostnet_050", {"drop_rate": 0.2}, Reason.WEIGHT_BETWEEN),
        ("lcnet_035", {"drop_rate": 0.2}, Reason.WEIGHT_BETWEEN),
        ("vit_tiny_patch16_224", {"drop_rate": 0.2}, Reason.CLASS_TOKEN),
        ("resnet18", {"drop_rate": 0.2, "global_pool": "max"}, Reason.MAX_POOLING),
    ],
)
def test_head_without_a_compliant_place_is_left_alone_with_the_reason(
    name: str, kwargs: dict[str, Any], reason: Reason
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    plan = rewriter.plan(model, "dropout")
    heads = [skip for skip in plan.skipped if skip.pattern == "head"]
    assert reason in [skip.reason for skip in heads]
    assert not [site for site in plan.sites if site.pattern == "head"]


@pytest.mark.slow
def test_dropout_in_a_sequential_head_moves_before_a_functional_pooling(full_size: torch.Tensor) -> None:
    model = torchvision.models.mobilenet_v2(dropout=0.5)
    rewritten = rewriter.rewrite(model, input_size=224)
    assert zeros(inputs_of(model, "classifier.1", full_size)) > 0.4
    assert zeros(inputs_of(rewritten, "classifier.1", full_size)) < 0.01  # a channel may be all zero by itself
    assert not torch.equal(*inputs_of(rewritten, "classifier.1", full_size, runs=2))
    assert list(rewritten.state_dict()) == list(model.state_dict())


def test_token_mean_head_drops_tokens_features_before_the_mean(images: torch.Tensor) -> None:
    model = timm.create_model("test_vit", global_pool="avg", drop_rate=0.5, img_size=64)
    rewritten = rewriter.rewrite(model)
    assert zeros(inputs_of(model, "head", images)) > 0.4
    assert zeros(inputs_of(rewritten, "head", images)) == 0


def test_channel_dropout_becomes_element_wise_before_the_pooling() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 32, 3), nn.AdaptiveAvgPool2d(1)
            self.drop, self.fc = nn.Dropout2d(0.5), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.drop(self.pool(self.conv(x))).flatten(1))

    x = torch.randn(2, 3, 16, 16)
    rewritten = rewriter.rewrite(Net(), example_inputs=x)
    assert zeros(inputs_of(rewritten, "fc", x)) == 0
    assert not torch.equal(*inputs_of(rewritten, "fc", x, runs=2))
    assert 0.4 < zeros(_outputs_of(rewritten, "dropout", x)) < 0.6


# ------------------------------------------------------------------------------------------------------------- branches


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "last_weight"),
    [("resnetv2_18", "stages.0.blocks.0.conv2"), ("test_convnext", "stages.0.blocks.0.mlp.fc2")],
)
def test_inserted_dropout_acts_directly_before_the_last_weight(
    name: str, last_weight: str, images: torch.Tensor
) -> None:
    model = timm.create_model(name)
    rewritten = rewriter.rewrite(model, [Dropout(p=0.5)], input_size=64)
    # the hook of a module that drops its own input sees it undropped, so look at what the weight's output varies with
    first, second = (_outputs_of(rewritten, last_weight, images) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(_outputs_of(model, last_weight, images), _outputs_of(model, last_weight, images))


def _outputs_of(model: nn.Module, path: str, images: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    with torch.no_grad():
        model.train()(images)
    handle.remove()
    return seen[0]


def test_dense_layers_drop_before_their_last_convolution(images: torch.Tensor) -> None:
    model = torchvision.models.DenseNet(8, (2, 2), 16, drop_rate=0.5)
    rewritten = rewriter.rewrite(model, input_size=64)
    path = "features.denseblock1.denselayer1.conv2"
    plain, moved = (inputs_of(m, path, images) for m in (model, rewritten))
    assert zeros(moved) > zeros(plain) + 0.2
    assert "new_features = F.dropout" not in rewriter.plan(model, input_size=64).diff(model).split("+")[-1]


@pytest.mark.thorough
def test_drop_path_is_kept() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", drop_path_rate=0.5, proj_drop_rate=0.2)
    rewritten = rewriter.rewrite(model)
    x = torch.randn(2, 3, 160, 160)

    def masks(m: nn.Module) -> int:
        trace = rewriter.trace(m, example_inputs=x)
        return sum(getattr(node.target, "__name__", "") == "bernoulli_" for node in trace.train.graph.nodes)

    assert masks(rewritten) == masks(model) > 0


def test_wide_resnet_with_dropout_after_the_first_convolution_is_mended() -> None:
    """Some ports put dropout on the output of the first convolution, in front of a norm."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
            self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.dropout(self.conv1(F.relu(self.bn1(x))))
            out = self.conv2(F.relu(self.bn2(out)))
            return x + out

    model = Block()
    x = torch.randn(4, 8, 6, 6)
    rewritten = rewriter.rewrite(model, example_inputs=x)
    assert zeros(inputs_of(model, "bn2", x)) > 0.4
    assert zeros(inputs_of(rewritten, "bn2", x)) == 0
    assert zeros(inputs_of(rewritten, "conv2", x)) > zeros(inputs_of(model, "conv2", x)) + 0.2


def test_a_dropout_that_is_in_place_never_reaches_the_shortcut() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)
            self.drop = nn.Dropout(0.5, inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return x + y + self.drop(self.fc(y))

    model = Block()
    x = torch.randn(4, 5, 8)
    rewritten = rewriter.rewrite(model, example_inputs=x)
    assert rewriter.report(rewritten).applied
    rewritten.fc.weight.data.zero_()
    rewritten.fc.bias.data.zero_()
    assert torch.equal(rewritten.train()(x), x + rewritten.norm(x))


# ---------------------------------------------------------------------------------------------------------------- rates


def noise(model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(torch.stack([model.train()(images) for _ in range(8)]).var(0).mean())


@pytest.mark.thorough
def test_a_functional_rate_is_still_read_from_the_model(images: torch.Tensor) -> None:
    rewritten = rewriter.rewrite(timm.create_model("resnet18", drop_rate=0.2))
    for module in rewritten.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    low = noise(rewritten, images)
    rewritten.drop_rate = 0.8
    assert noise(rewritten, images) > 2 * low
    rewritten.drop_rate = 0.0
    assert noise(rewritten, images) == 0


@pytest.mark.thorough
def test_a_moved_modules_rate_is_changed_where_it_was(images: torch.Tensor) -> None:
    rewritten = rewriter.rewrite(torchvision.models.mobilenet_v2(), input_size=64)
    rewritten.classifier[0].p = 0.0
    assert noise(rewritten, images) == 0
    for module in rewritten.modules():  # the loop that schedules use
        if isinstance(module, nn.Dropout):
            module.p = 0.7
    assert rewritten.classifier[0].p == 0.7
    assert noise(rewritten, images) > 0


@pytest.mark.thorough
def test_the_rate_follows_a_copy_not_the_original() -> None:
    rewritten = rewriter.rewrite(torchvision.models.mobilenet_v2(), input_size=64)
    twin = copy.deepcopy(rewritten)
    twin.classifier[0].p = 0.9
    moved = [m for m in twin.modules() if type(m).__name__ == "MovedDropout"]
    assert [m.p for m in moved] == [0.9]
    assert rewritten.classifier[0].p == 0.2


@pytest.mark.thorough
def test_a_rate_of_zero_is_switched_on_when_asked_and_undo_restores_it() -> None:
    model = timm.create_model("test_vit")
    rewritten = rewriter.rewrite(model, [Dropout(p=0.3)])
    assert rewritten.blocks[0].mlp.drop1.p == 0.3
    assert rewriter.undo(rewritten).blocks[0].mlp.drop1.p == 0.0
    assert model.blocks[0].mlp.drop1.p == 0.0


@pytest.mark.thorough
def test_rewriting_twice_finds_nothing_more_to_do() -> None:
    once = rewriter.rewrite(timm.create_model("test_vit", drop_rate=0.1, proj_drop_rate=0.1), [Dropout(p=0.1)])
    assert not rewriter.plan(once, [Dropout(p=0.1)]).sites
    twice = rewriter.rewrite(once, [Dropout(p=0.1)])
    assert [type(a) for a in once.modules()] == [type(b) for b in twice.modules()]


def test_a_method_that_runs_twice_in_one_forward_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
            self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def block(self, x: torch.Tensor, index: int) -> torch.Tensor:
            y = self.linears[index](F.gelu(self.norms[index](x)))
            return x + F.dropout(y, 0.5, self.training)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.block(x, 0), 1)

    plan = rewriter.plan(Net(), "dropout", example_inputs=torch.randn(4, 5, 8))
    assert not plan.sites
    assert [skip.reason for skip in plan.skipped] == [Reason.SHARED_MODULE] * 2


def test_report_notices_an_added_layer_that_was_exchanged() -> None:
    model: Any = rewriter.rewrite(timm.create_model("resnet10t"), [Dropout(head_p=0.1)], input_size=64)
    (path,) = (path for path, module in model.named_modules() if isinstance(module, nn.Dropout))
    model.set_submodule(path, nn.Dropout(0.5))
    assert not rewriter.report(model).stale
    model.set_submodule(path, nn.Identity())
    assert rewriter.report(model).stale == (path,)


@pytest.mark.thorough
def test_report_notices_what_later_surgery_made_stale_and_rewriting_mends_it() -> None:
    model = timm.create_model("test_vit", drop_rate=0.1, proj_drop_rate=0.2)
    rewritten = rewriter.rewrite(model)
    assert not rewriter.report(rewritten).stale
    rewritten.blocks[0].attn = copy.deepcopy(model.blocks[0].attn)
    assert rewriter.report(rewritten).stale == ("blocks.0.attn",)
    mended = rewriter.rewrite(rewritten)
    assert type(mended.blocks[0].attn) is type(mended.blocks[1].attn)
    assert not rewriter.report(mended).stale
    restored = rewriter.undo(mended)
    assert [type(module) for module in restored.modules()] == [type(module) for module in model.modules()]


def test_a_branch_that_fills_memory_made_before_it() -> None:
    """What is read there has no source among its arguments, only the write."""

    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            filled = torch.empty(x.shape, device=x.device)
            filled[:] = self.conv(self.norm(x))
            return x + filled.view_as(x)

    plan = rewriter.plan(Fills(), [Dropout(p=0.1)], input_size=8)
    assert [skip.pattern for skip in plan.skipped] == ["residual branch"]
