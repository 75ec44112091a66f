"""Which gammas decay: their classes on models that users train, and what scaling them does to the output."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import timm_model
from torch import fx, nn
from typer.testing import CliRunner

import rewriter
from rewriter import zoo
from rewriter.analysis.gamma_positions import Category
from rewriter.analysis.gammas import find_gammas
from rewriter.cli import commands as cli
from rewriter.passes import WeightDecay
from rewriter.reasons import Reason

LAST, OTHER, SHORTCUT, MAIN = "branch_last", "branch_other", "shortcut", "main"


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return zoo.create(name, **options).model


def classes(model: nn.Module, **inputs: Any) -> dict[str, set[str]]:
    """The modules of each category, with ``#`` for numbers."""
    found: dict[str, set[str]] = {}
    for gamma in find_gammas(rewriter.trace(model, **inputs)):
        if gamma.name is not None:
            found.setdefault(gamma.category, set()).add(re.sub(r"\d+", "#", gamma.path))
    return found


def category_of(model: nn.Module, path: str, **inputs: Any) -> str:
    """The category of the gamma in the module at ``path``."""
    return next(gamma.category for gamma in find_gammas(rewriter.trace(model, **inputs)) if gamma.path == path)


# -------------------------------------------------------------------------------------------------------------- classes

PLACES: dict[str, dict[str, str]] = {
    "resnet18": {"bn1": MAIN, "layer1.0.bn1": OTHER, "layer1.0.bn2": LAST, "layer2.0.downsample.1": SHORTCUT},
    "resnet50": {"bn1": MAIN, "layer3.2.bn1": OTHER, "layer3.2.bn2": OTHER, "layer3.2.bn3": LAST},
    "resnext50_32x4d": {"layer1.0.bn2": OTHER, "layer1.0.bn3": LAST, "layer1.0.downsample.1": SHORTCUT},
    "res2net50_26w_4s": {"layer1.1.bns.0": OTHER, "layer1.1.bn3": LAST},
    "rexnet_100": {"features.4.se.bn": OTHER, "features.4.conv_pwl.bn": LAST, "features.3.conv_pwl.bn": MAIN},
    "torchvision:resnet50": {"bn1": MAIN, "layer3.2.bn1": OTHER, "layer3.2.bn2": OTHER, "layer3.2.bn3": LAST},
    "resnetv2_50": {
        "stages.1.blocks.0.norm1": MAIN,  # feeds the branch and the projection
        "stages.1.blocks.0.norm2": OTHER,
        "stages.1.blocks.0.norm3": LAST,
        "stages.1.blocks.1.norm1": OTHER,
        "norm": MAIN,
    },
    "regnety_002": {"stem.bn": MAIN, "s1.b1.conv3.bn": LAST, "s1.b1.conv1.bn": OTHER, "s1.b1.downsample.bn": SHORTCUT},
    "efficientnet_b0": {
        "bn1": MAIN,
        "bn2": MAIN,
        "blocks.1.0.bn3": MAIN,
        "blocks.1.1.bn3": LAST,
        "blocks.1.1.bn2": OTHER,
    },
    "densenet121": {
        "features.norm0": MAIN,
        "features.denseblock1.denselayer1.norm1": OTHER,
        "features.denseblock1.denselayer1.norm2": OTHER,
        "features.transition1.norm": OTHER,
        "features.norm5": MAIN,
    },
    "convnext_tiny": {"stem.1": MAIN, "stages.1.downsample.0": MAIN, "stages.1.blocks.0.norm": LAST, "head.norm": MAIN},
    "vit_tiny_patch16_224": {"blocks.0.norm1": LAST, "blocks.0.norm2": LAST, "norm": MAIN},
    "deit3_small_patch16_224": {"blocks.0.norm1": LAST, "blocks.0.norm2": LAST, "norm": MAIN},
    "swin_tiny_patch4_window7_224": {
        "patch_embed.norm": MAIN,
        "layers.0.blocks.0.norm1": LAST,
        "layers.1.downsample.norm": MAIN,
        "norm": MAIN,
    },
    "poolformer_s12": {"stages.0.blocks.0.norm1": LAST, "stages.0.blocks.0.norm2": LAST, "head.norm": MAIN},
    "lambda_resnet26t": {"stages.2.1.self_attn.norm_q": OTHER, "stages.2.1.self_attn.norm_v": OTHER},
    "ghostnet_050": {
        "blocks.1.0.bn_dw": OTHER,
        "blocks.1.0.ghost2.primary_conv.1": LAST,
        "blocks.1.0.ghost2.cheap_operation.1": LAST,
        "blocks.1.0.shortcut.1": SHORTCUT,  # of two weights
        "blocks.1.0.shortcut.3": SHORTCUT,
        "blocks.2.0.ghost1.cheap_operation.1": OTHER,
        "blocks.2.0.ghost2.primary_conv.1": LAST,
        "blocks.2.0.ghost2.cheap_operation.1": LAST,
    },
    "swinv2_tiny_window8_256": {"layers.0.blocks.0.norm1": LAST, "layers.1.downsample.norm": MAIN},
    "smp:unet-resnet18": {
        "encoder.bn1": MAIN,
        "encoder.layer2.0.bn1": OTHER,
        "encoder.layer2.0.bn2": LAST,
        "encoder.layer2.0.downsample.1": SHORTCUT,
        "decoder.blocks.0.conv1.1": MAIN,
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_gammas_are_classed_by_their_place(name: str) -> None:
    found = find_gammas(rewriter.trace(on_meta(name), input_size=256 if "256" in name else 224))
    by_path = {gamma.path: str(gamma.category) for gamma in found}
    assert {path: by_path[path] for path in PLACES[name]} == PLACES[name]


def test_every_gamma_of_a_resnet_has_its_class() -> None:
    numbers = Counter(gamma.category for gamma in find_gammas(rewriter.trace(on_meta("resnet50"))))
    assert numbers == {LAST: 16, OTHER: 32, SHORTCUT: 4, MAIN: 1}


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TOKENS = {"input_ids": torch.zeros(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}


@pytest.mark.slow
def test_encoders_of_both_orders_are_told_apart_whatever_enters_from_the_side() -> None:
    transformers = pytest.importorskip("transformers")
    post = transformers.BertModel(transformers.BertConfig(vocab_size=20, **SMALL))
    pre = transformers.RobertaPreLayerNormModel(transformers.RobertaPreLayerNormConfig(vocab_size=20, **SMALL))
    for inputs in (TOKENS, {"input_ids": TOKENS["input_ids"]}):
        assert set(classes(post, example_inputs=inputs)) == {MAIN}
        assert classes(pre, example_inputs=inputs) == {
            MAIN: {"embeddings.LayerNorm", "LayerNorm"},
            LAST: {"encoder.layer.#.attention.LayerNorm", "encoder.layer.#.intermediate.LayerNorm"},
        }


def test_a_vit_of_transformers_and_one_with_norms_of_its_own() -> None:
    transformers = pytest.importorskip("transformers")
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SMALL))
    found = classes(vit)
    assert {path.rsplit(".", 1)[-1] for path in found[LAST]} == {"layernorm_before", "layernorm_after"}
    assert found[MAIN] == {"layernorm"}
    llama = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=20, **SMALL))  # RMS norms written by hand
    assert classes(llama, example_inputs=TOKENS) == {
        LAST: {"layers.#.input_layernorm", "layers.#.post_attention_layernorm"},
        MAIN: {"norm"},
    }


def test_a_response_of_the_features_is_no_norm() -> None:
    """``x * norm(x) / mean(norm(x))``, written out by transformers, and as one function by timm."""
    transformers = pytest.importorskip("transformers")
    model = transformers.ConvNextV2Model(transformers.ConvNextV2Config(depths=[1] * 4, hidden_sizes=[8] * 4))
    found = classes(model, input_size=32)
    assert found[LAST] == {"encoder.stages.#.layers.#.layernorm"}
    groups = rewriter.param_groups(model, input_size=32)
    decisions = {d.name: d for d in groups.decisions}
    assert not decisions["encoder.stages.0.layers.0.grn.weight"].decays


@pytest.mark.slow
def test_a_denoising_unet_keeps_its_blocks_though_the_timestep_enters_them() -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    inputs = {"sample": torch.randn(2, 3, 16, 16), "timestep": torch.tensor([1, 2])}
    found = classes(unet, example_inputs=inputs)
    assert found[MAIN] == {"conv_norm_out"}
    assert {path.rsplit(".", 1)[-1] for path in found[OTHER]} == {"norm#"}
    assert {path.rsplit(".", 1)[-1] for path in found[LAST]} == {"norm#", "group_norm"}
    assert category_of(unet, "down_blocks.0.resnets.0.norm1", example_inputs=inputs) == OTHER
    assert category_of(unet, "down_blocks.0.resnets.0.norm2", example_inputs=inputs) == LAST


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("resnet18", "groupnorm"),
        ("vit_tiny_patch16_224", "rmsnorm"),
        ("vit_tiny_patch16_224", "simplenorm"),
        ("convnext_atto", "rmsnorm2d"),
    ],
)
def test_other_norms_have_the_same_places(name: str, norm: str) -> None:
    assert classes(on_meta(name, norm_layer=norm)) == classes(on_meta(name))


def test_synchronised_batch_norms_have_the_same_places() -> None:
    model = on_meta("resnet18")
    expected = classes(model)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    assert classes(synchronised) == expected


def test_qk_norms_scale_attention_weights_and_not_the_branch() -> None:
    model = on_meta("vit_tiny_patch16_224", qk_norm=True, depth=1)
    advice = rewriter.plan(model, "weight-decay").advice
    by_path = {item.path: item for item in advice}
    assert by_path["blocks.0.norm1"].pattern.startswith(LAST)
    for path in ("blocks.0.attn.q_norm", "blocks.0.attn.k_norm"):
        assert by_path[path].pattern == "branch_other, norm of a gate or of attention weights"


# ------------------------------------------------------------------------------------------------- the graph, not names


def renamed(model: nn.Module, seed: int) -> nn.Module:
    """The same operations on the same parameters, each module under a random name, all on one level."""
    module = rewriter.to_graph_module(model, input_size=224)
    generator = random.Random(seed)
    graph, attributes = fx.Graph(), {}
    graph.output(graph.graph_copy(module.graph, {}))
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            old = str(node.target)
            names.setdefault(old, f"x{generator.getrandbits(40):x}")
            owner, _, leaf = old.rpartition(".")
            found = model.get_submodule(old) if node.op == "call_module" else getattr(model.get_submodule(owner), leaf)
            node.target = names[old]
            attributes[node.target] = found
    return fx.GraphModule(attributes, graph)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["torchvision:resnet18", "resnetv2_18", "densenet121", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"],
)
def test_a_copy_with_random_names_has_the_same_classes(name: str) -> None:
    model = on_meta(name).eval()
    copied = renamed(model, seed=1)
    assert not {name for name, _ in copied.named_modules()} & {name for name, _ in model.named_modules() if name}
    expected, found = (
        {id(m.get_parameter(g.name)): g.category for g in find_gammas(rewriter.trace(m, input_size=224)) if g.name}
        for m in (model, copied)
    )
    assert len(expected) > 10
    assert found == expected


# ----------------------------------------------------------------------------------------------------- why, in numbers


@torch.no_grad()
def change_of_output(model: nn.Module, category: str, images: torch.Tensor) -> float:
    """How far the output moves, relative to its spread, when gamma and beta of one category are halved."""
    model = model.double().train()  # batch statistics, as in training
    halved = copy.deepcopy(model)
    for gamma in find_gammas(rewriter.trace(model, input_size=64)):
        if gamma.category == category:
            norm = halved.get_submodule(gamma.path)
            norm.weight *= 0.5
            norm.bias *= 0.5
    before, after = (m(images.double()) for m in (copy.deepcopy(model), halved))
    return float((after - before).std() / before.std())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_what_halving_the_gammas_of_a_category_does(name: str) -> None:
    """Only those inside branches do not matter: a later norm takes their scale out."""
    model = timm_model(name, num_classes=10, zero_init_last=False)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    images = torch.randn(8, 3, 64, 64, generator=generator)
    change = {category: change_of_output(model, category, images) for category in Category}
    assert change[Category.BRANCH_OTHER] < 1e-6
    assert change[Category.BRANCH_LAST] > 0.05
    assert change[Category.MAIN] > 0.05
    if name == "resnet18":
        assert change[Category.SHORTCUT] > 0.05


def test_the_variance_of_a_branch_falls_with_the_square_of_its_last_gamma() -> None:
    block = timm_model("resnet18", zero_init_last=False).layer1[1].train()
    x = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    branch: list[torch.Tensor] = []
    block.bn2.register_forward_hook(lambda *args: branch.append(args[2].detach().clone()))
    for scale in (1.0, 0.5, 0.25):
        nn.init.constant_(block.bn2.weight, scale)
        block(x)
    variances = [float(values.var()) for values in branch]
    assert variances[1] / variances[0] == pytest.approx(1 / 4, rel=1e-4)
    assert variances[2] / variances[0] == pytest.approx(1 / 16, rel=1e-4)


def test_gradients_before_an_inner_gamma_grow_as_it_falls() -> None:
    """The effective learning rate: the gradient of an inner gamma is inversely proportional to it."""
    block = timm_model("resnet18", zero_init_last=False).layer1[1].double().train()
    block.bn2.eps = 1e-12
    x = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    norms = []
    for scale in (1.0, 0.5, 0.25):
        nn.init.constant_(block.bn1.weight, scale)
        block.zero_grad()
        block(x).square().mean().backward()
        norms.append(float(block.bn1.weight.grad.norm()))
    assert norms[1] / norms[0] == pytest.approx(2, rel=1e-3)
    assert norms[2] / norms[0] == pytest.approx(4, rel=1e-3)


# ------------------------------------------------------------------------------------------------ hand-made edge cases

HANDMADE = """
import torch
import torch.nn.functional as F
from torch import nn


class ByHand(nn.Module):
    '''A layer norm over channels, in arithmetic.'''

    def __init__(self, width):
        super().__init__()
        self.first = nn.Parameter(torch.ones(width))
        self.second = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.first[:, None, None] * x + self.second[:, None, None]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.by_hand = ByHand(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.GroupNorm(2, 8)
        self.twice = nn.GroupNorm(2, 8)
        self.unused = nn.BatchNorm2d(3)
        self.only_eval = nn.GroupNorm(2, 8)
        self.plain = nn.BatchNorm2d(8, affine=False)

    def forward(self, x):
        x = self.plain(self.stem(x))
        x = x + self.conv(self.by_hand(x))
        x = self.shared(x + self.conv(self.shared(x)))
        x = x + self.conv(self.twice(x))
        x = x + self.conv(self.twice(x))
        if not self.training:
            x = x + self.conv(self.only_eval(x))
        return x.mean((2, 3))
"""


@pytest.fixture
def handmade(import_text: Callable[[str], ModuleType]) -> nn.Module:
    return import_text(HANDMADE).Net()


def test_uses_that_disagree_take_the_careful_category(handmade: nn.Module) -> None:
    found = {gamma.path: gamma for gamma in find_gammas(rewriter.trace(handmade, input_size=16))}
    assert (found["shared"].category, found["shared"].uses) == (MAIN, 2)
    assert (found["twice"].category, found["twice"].uses) == (LAST, 2)
    assert (found["by_hand"].category, found["by_hand"].name) == (LAST, "by_hand.first")
    assert (found["only_eval"].category, found["unused"].category) == (LAST, MAIN)


def test_the_plan_has_advice_for_every_gamma_and_edits_nothing(handmade: nn.Module) -> None:
    handmade.twice.weight.requires_grad_(False)
    plan = rewriter.plan(handmade, "weight-decay", input_size=16)
    assert not plan.sites
    assert {item.path: item.advice for item in plan.advice} == {
        "by_hand": "decay",
        "shared": "no decay",
        "only_eval": "decay",
        "unused": "no decay",
    }
    assert {skip.path: skip.reason for skip in plan.skipped} == {"plain": Reason.NO_GAMMA, "twice": Reason.FROZEN}
    assert "no recording reached it" in next(item.reason for item in plan.advice if item.path == "unused")
    rewritten = rewriter.rewrite(handmade, "weight-decay", input_size=16)
    assert "4 advised on" in str(rewriter.report(rewritten))
    assert [type(module) for module in rewritten.modules()] == [type(module) for module in handmade.modules()]


def test_models_without_norms_or_with_nothing_else() -> None:
    linear = rewriter.plan(nn.Linear(3, 4), "weight-decay", example_inputs=torch.randn(2, 3))
    assert not linear.advice and not linear.sites
    norm = rewriter.plan(nn.BatchNorm2d(3), "weight-decay", example_inputs=torch.randn(2, 3, 8, 8))
    assert [item.advice for item in norm.advice] == ["no decay"]


# -------------------------------------------------------------------------------------------------------------- options


def test_policies() -> None:
    trace = rewriter.trace(on_meta("resnet18"))
    gammas = find_gammas(trace)

    def decided(gamma: Any) -> dict[str, bool]:
        return {g.category: WeightDecay(gamma).policy(g)[0] for g in gammas}

    assert decided("guideline") == {LAST: True, OTHER: True, SHORTCUT: False, MAIN: False}
    assert set(decided("exclude-all").values()) == {False}
    assert set(decided("decay-all").values()) == {True}
    assert decided({"main": True, Category.BRANCH_OTHER: False}) == {
        LAST: True,
        OTHER: False,
        SHORTCUT: False,
        MAIN: True,
    }


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        ("everything", "expected one of 'guideline', 'exclude-all', 'decay-all'"),
        ({"branch": True}, "unknown category 'branch'; the categories: main, shortcut, branch_other, branch_last"),
        ({"main": 1}, "expected True or False for main, found 1"),
        (["main"], "expected one of"),
        (None, "expected one of"),
    ],
)
def test_unknown_policies_are_refused(gamma: Any, message: str) -> None:
    with pytest.raises(rewriter.SelectorError, match=re.escape(message)):
        rewriter.plan(on_meta("resnet18"), [{"weight-decay": {"gamma": gamma}}])


def test_a_policy_by_category_survives_json() -> None:
    plan = rewriter.plan(on_meta("resnet18"), [WeightDecay({"main": True})])
    again = rewriter.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.passes == (("weight-decay", {"gamma": {"main": True}}),)


def test_the_command_line_shows_the_advice() -> None:
    shown = CliRunner().invoke(cli.application(), ["plan", "resnet18", "--pass", "weight-decay:gamma=exclude-all"])
    assert shown.exit_code == 0
    assert "nothing is edited; it says:" in shown.output
    assert "layer{2-4}.0.downsample.1 (3)  shortcut, norm on a shortcut: no decay" in shown.output


def test_contract_holds() -> None:
    rewriter.testing.check_contract(timm_model("test_resnet"), "weight-decay", input_size=64)
