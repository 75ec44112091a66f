"""Atrous rates: the rule re-derived, and what the pass finds, changes and leaves on real models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from helpers import assert_unchanged, image, output, snapshot
from hypothesis import given, settings
from torch import nn

import rewriter
from rewriter.errors import InputError, SelectorError
from rewriter.passes import AtrousRates
from rewriter.passes.atrous_rates.rule import (
    best_reach,
    coverage,
    energy_times_reach,
    field_of_view,
    fitted,
    largest_rate,
    share_inside,
)
from rewriter.reasons import TECHNICAL, Reason
from rewriter.testing import check_contract

pytestmark = pytest.mark.slow

Segmentation = torchvision.models.segmentation


def dilations(model: nn.Module) -> list[int]:
    """The dilations above 1 of the 3x3 convolutions, in the order of the modules."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
    return [conv.dilation[0] for conv in convs if conv.dilation[0] > 1]


def reasons(plan: rewriter.Plan) -> list[Reason]:
    return [skip.reason for skip in plan.skipped]


class TestRule:
    @pytest.mark.parametrize("number", range(1, 13))
    def test_the_closed_form_is_the_maximum(self, number: int) -> None:
        best = max(range(1, 20000), key=lambda i: energy_times_reach(i / 20000, number)) / 20000
        assert best_reach(number) == pytest.approx(best, abs=1e-4)

    def test_figures(self) -> None:
        assert [round(best_reach(number), 3) for number in (1, 2, 3, 4)] == [0.407, 0.253, 0.183, 0.143]
        assert coverage(33, 3, 3) == [6, 12, 18], "DeepLabV3, 513 pixels at output stride 16"
        assert coverage(65, 3, 3) == [12, 24, 36], "and at output stride 8"
        assert coverage(64, 3, 3) == [12, 23, 35]
        assert coverage(97, 3, 3) == [18, 35, 53]
        assert coverage(112, 3, 3) == [20, 41, 61]
        assert coverage(128, 3, 3) == [23, 47, 70]
        assert coverage(256, 3, 3) == [47, 94, 140]

    @pytest.mark.parametrize("side", [20, 33, 65, 97, 112, 128])
    @pytest.mark.parametrize("number", [2, 3, 4])
    def test_no_other_smallest_rate_does_better_when_taps_are_counted(self, side: int, number: int) -> None:
        def energy(smallest: int) -> float:
            total = 0.0
            for rate in (k * smallest for k in range(1, number + 1)):
                found = F.conv2d(torch.ones(1, 1, side, side), _taps(rate), padding=rate, dilation=rate)[0]
                axis, corner = found[:4].mean(), found[4:].mean()
                total += rate / side * float(axis + math.sqrt(2) * corner)
            return total

        def _taps(rate: int) -> torch.Tensor:
            taps = torch.eye(9).view(9, 1, 3, 3)
            return taps[[1, 3, 5, 7, 0, 2, 6, 8]]

        best = max(range(1, side), key=energy)
        assert abs(best - best_reach(number) * side) <= 0.6

    @pytest.mark.parametrize("kernel", [3, 5, 7])
    def test_share_inside_is_what_a_convolution_of_ones_finds(self, kernel: int) -> None:
        size, rates = (13, 22), (2, 5, 16)
        found = [
            F.conv2d(
                torch.ones(1, 1, *size),
                torch.ones(1, 1, kernel, kernel) / kernel**2,
                padding=rate * (kernel - 1) // 2,
                dilation=rate,
            )
            for rate in rates
        ]
        assert all(tuple(each.shape[2:]) == size for each in found)
        assert share_inside(size, rates, kernel) == pytest.approx(float(torch.stack(found).mean()), rel=1e-5)

    @pytest.mark.parametrize(("rates", "kernel"), [((2, 4, 6), 3), ((2, 3), 5)])
    def test_field_of_view_is_what_a_single_cell_reaches(self, rates: tuple[int, ...], kernel: int) -> None:
        impulse = torch.zeros(1, 1, 41, 41)
        impulse[..., 20, 20] = 1
        widest = F.conv2d(impulse, torch.ones(1, 1, kernel, kernel), padding=20, dilation=max(rates))
        columns = widest.sum((0, 1, 2)).nonzero()
        assert field_of_view(rates, kernel) == int(columns.max() - columns.min()) + 1

    @settings(deadline=None, derandomize=True)
    @given(st.integers(1, 400), st.integers(1, 8), st.sampled_from([3, 5, 7, 9]))
    def test_rates_are_different_rise_and_find_the_map(self, side: int, number: int, kernel: int) -> None:
        rates, largest = coverage(side, number, kernel), largest_rate(side, kernel)
        assert rates == coverage(side, number, kernel)
        if not rates:
            assert largest - 1 < number
            return
        assert len(rates) == number and rates == sorted(set(rates))
        assert rates[0] >= 2 and rates[-1] <= largest <= side - 1
        assert largest * (kernel - 1) // 2 <= side - 1 < (largest + 1) * (kernel - 1) / 2
        assert all(a <= b for a, b in zip(rates, coverage(side + 1, number, kernel), strict=True))

    @settings(deadline=None, derandomize=True)
    @given(st.lists(st.integers(-5, 500), min_size=1, max_size=6), st.integers(-3, 300))
    def test_rates_that_fit_are_kept(self, given_rates: list[int], largest: int) -> None:
        rates = sorted(given_rates)
        found = fitted(rates, largest)
        assert bool(found) == (largest - 1 >= len(rates))
        assert found == sorted(set(found)) and all(2 <= rate <= largest for rate in found)
        if len(set(rates)) == len(rates) and rates[0] >= 2 and rates[-1] <= largest:
            assert found == rates

    def test_larger_kernels_reach_as_far(self) -> None:
        for kernel in (5, 7):
            for small, large in zip(coverage(200, 3, 3), coverage(200, 3, kernel), strict=True):
                assert abs(large * (kernel - 1) / 2 - small) <= (kernel + 1) / 4


def mobile_vit() -> nn.Module:
    config = transformers.MobileViTConfig(
        image_size=64, hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 16, 24, 32, 40, 64], aspp_out_channels=16,
        output_stride=8,
    )  # fmt: skip
    return transformers.MobileViTForSemanticSegmentation(config)


def mobile_vit_v2() -> nn.Module:
    config = transformers.MobileViTV2Config(image_size=64, width_multiplier=0.25, aspp_out_channels=16, output_stride=8)
    return transformers.MobileViTV2ForSemanticSegmentation(config)


REAL: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "torchvision": (
        lambda: Segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3),
        128,
        "classifier.0",
    ),
    "smp, plain": (
        lambda: smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=16, decoder_aspp_separable=False),
        64,
        "decoder.aspp",
    ),
    "smp, separable": (
        lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, decoder_channels=16),
        128,
        "decoder.aspp.0",
    ),
    "MobileViT": (mobile_vit, 64, "segmentation_head.aspp"),
    "MobileViTV2": (mobile_vit_v2, 64, "segmentation_head.aspp"),
}


@pytest.mark.parametrize("name", REAL)
def test_contract(name: str) -> None:
    make, size, path = REAL[name]
    torch.manual_seed(0)
    model = make()
    before = snapshot(model)
    rewritten = check_contract(model, [AtrousRates()], input_size=size)
    assert_unchanged(model, before)
    assert [site.path for site in rewriter.report(rewritten).applied] == [path]
    old, new = dilations(model), dilations(rewritten)
    assert (old[-3:], new[-3:]) in (([12, 24, 36], [2, 3, 4]), ([6, 12, 18], [2, 3, 4])) and old[:-3] == new[:-3]
    assert list(rewritten.state_dict()) == ["rewriter_plan", *model.state_dict()]
    rewritten.load_state_dict(model.state_dict(), strict=True)
    for side in (size, size + 32):
        first, second = (_tensor(output(copy.deepcopy(m), image(side), training=True)) for m in (model, rewritten))
        assert first.shape == second.shape and not torch.equal(first, second), "another function of the same shape"
    undone = rewriter.undo(rewritten)
    assert dilations(undone) == old
    assert torch.equal(_tensor(output(undone, image(size))), _tensor(output(model, image(size))))


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else next(iter(value.values()))


def test_taps_that_never_found_the_map_learn_after_the_rewrite() -> None:
    torch.manual_seed(0)
    model = smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=8, decoder_aspp_separable=False)
    rewritten = rewriter.rewrite(model, [AtrousRates()], input_size=64)

    def taps_that_learn(m: nn.Module) -> list[int]:
        m.train()(image(64)).square().sum().backward()
        convs = [c for c in m.decoder.aspp.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)]
        assert all(c.weight.grad is not None for c in convs)
        return [int(c.weight.grad.abs().sum((0, 1)).ne(0).sum()) for c in convs]

    assert taps_that_learn(model) == [1, 1, 1], "dilations of 12 and more on a map of 8x8: only the centre"
    assert taps_that_learn(rewritten) == [9, 9, 9]


SITES: list[tuple[str, Any, str]] = [
    ("torchvision:deeplabv3_resnet50", 224, "12, 24, 36 to 5, 10, 15 (map 28x28)"),
    ("torchvision:deeplabv3_resnet50", (512, 1024), "12, 24, 36 to 12, 23, 35 (map 64x128)"),
    ("torchvision:deeplabv3_resnet50", (1024, 512), "12, 24, 36 to 12, 23, 35 (map 128x64)"),
    ("torchvision:deeplabv3_resnet101", 769, "12, 24, 36 to 18, 35, 53 (map 97x97)"),
    ("torchvision:deeplabv3_resnet101", 896, "12, 24, 36 to 20, 41, 61 (map 112x112)"),
    ("torchvision:deeplabv3_mobilenet_v3_large", 513, "12, 24, 36 to 6, 12, 18 (map 33x33)"),
    ("torchvision:deeplabv3_mobilenet_v3_large", 64, ""),
    ("torchvision:deeplabv3_resnet50", 513, ""),
    ("smp:deeplabv3", 512, "12, 24, 36 to 12, 23, 35 (map 64x64)"),
    ("smp:deeplabv3plus", 512, "12, 24, 36 to 6, 12, 18 (map 32x32)"),
    ("smp:deeplabv3plus-tu-tf_efficientnetv2_b0", 512, "12, 24, 36 to 6, 12, 18 (map 32x32)"),
]


def meta_model(name: str) -> nn.Module:
    library, _, local = name.partition(":")
    with torch.device("meta"):
        if library == "torchvision":
            return getattr(Segmentation, local)(weights=None, weights_backbone=None)
        if library == "smp":
            architecture, _, encoder = local.partition("-")
            return smp.create_model(architecture, encoder or "resnet18", encoder_weights=None)
        return timm.create_model(name)


@pytest.mark.parametrize(("name", "size", "action"), SITES)
def test_sites(name: str, size: Any, action: str) -> None:
    plan = rewriter.plan(meta_model(name), AtrousRates(), input_size=size)
    assert [site.action for site in plan.sites] == ([f"set dilations {action}"] if action else [])
    assert reasons(plan) == ([] if action else [Reason.SMALL_MAP if size == 64 else Reason.ALREADY_DONE])
    assert not set(reasons(plan)) & TECHNICAL


def test_hugging_face_defaults() -> None:
    with torch.device("meta"):
        models = {
            transformers.MobileViTForSemanticSegmentation(transformers.MobileViTConfig()): 1,
            transformers.MobileViTV2ForSemanticSegmentation(transformers.MobileViTV2Config()): 1,
            # its head has a 1x1 convolution and a pooled branch, no atrous convolution
            transformers.MobileNetV2ForSemanticSegmentation(transformers.MobileNetV2Config()): 0,
        }
    for model, count in models.items():
        plan = rewriter.plan(model, AtrousRates(), input_size=512)
        assert [site.action for site in plan.sites] == count * ["set dilations 6, 12, 18 to 3, 6, 9 (map 16x16)"]
        assert not plan.skipped


def test_gammas_that_are_drawn_at_random_are_no_trained_weights() -> None:
    """transformers creates the batch norms of MobileViT with them; their statistics tell."""
    config = transformers.MobileViTConfig(hidden_sizes=[8] * 3, neck_hidden_sizes=[8] * 7, num_attention_heads=2)
    model = transformers.MobileViTForSemanticSegmentation(config)
    assert model.mobilevit.conv_stem.normalization.weight.std() > 0
    plan = rewriter.plan(model, input_size=512)
    assert [site.path for site in plan.sites if site.pass_name == "atrous-rates"] == ["segmentation_head.aspp"]
    model.mobilevit.conv_stem.normalization.running_mean[0] = 1
    trained = rewriter.plan(model, input_size=512)
    assert [skip.reason for skip in trained.skipped if skip.pass_name == "atrous-rates"] == [Reason.HELD_BACK]


NOTHING = [
    "torchvision:fcn_resnet50", "torchvision:lraspp_mobilenet_v3_large", "smp:linknet", "smp:unet", "smp:pspnet",
    "smp:pan", "smp:upernet", "hrnet_w18_small", "convnext_tiny", "resnet18", "skresnet18", "mixnet_s", "inception_v3",
    "densenet121", "res2net50_26w_4s", "vit_tiny_patch16_224",
]  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_said_about_other_models(name: str) -> None:
    plan = rewriter.plan(meta_model(name), AtrousRates(), input_size=224)
    assert not plan.sites and not plan.skipped


@pytest.mark.parametrize("name", ["resnet26d", "resnetv2_50", "efficientnet_b0", "xception41", "regnety_002"])
def test_dilated_backbones_are_not_aspp(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, output_stride=8)
    assert dilations(model)
    plan = rewriter.plan(model, AtrousRates(), input_size=224)
    assert not plan.sites and not plan.skipped


ASPP = """
    import torch
    import torch.nn.functional as F
    from timm.layers import Conv2dSame
    from torch import nn
    from transformers import MobileNetV2Config
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer

    class NormedConv(nn.Conv2d):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.norm = nn.BatchNorm2d(self.out_channels)

        def forward(self, x):
            return self.norm(F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups))

    class Functional(nn.Module):
        def __init__(self, rate):
            super().__init__()
            self.rate, self.weight = rate, nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight, padding=self.rate, dilation=self.rate)

    def branch(how, rate):
        if how == "timm's same":
            return Conv2dSame(3, 4, 3, dilation=rate)
        if how == "same":
            return nn.Conv2d(3, 4, 3, dilation=rate, padding="same")
        if how == "padded outside":
            return MobileNetV2ConvLayer(MobileNetV2Config(tf_padding=True), 3, 4, 3, dilation=rate)
        if how == "norm inside":
            return NormedConv(3, 4, 3, dilation=rate, padding=rate)
        if how == "written out":
            return nn.Sequential(nn.Conv2d(3, 4, 3, dilation=rate, padding=rate), Swish(), nn.Conv2d(4, 4, 1))
        if how == "kernel of 5":
            return nn.Conv2d(3, 4, 5, dilation=rate, padding=2 * rate)
        if how == "fixed outside":
            return nn.Sequential(nn.ZeroPad2d(rate), nn.Conv2d(3, 4, 3, dilation=rate))
        if how == "reflect":
            return nn.Conv2d(3, 4, 3, dilation=rate, padding=rate, padding_mode="reflect")
        if how == "function":
            return Functional(rate)
        if how == "long kernel":
            return nn.Conv2d(3, 4, (3, 1), dilation=(rate, 1), padding=(rate, 0))
        if how == "two dilations":
            return nn.Conv2d(3, 4, 3, dilation=(rate, 2 * rate), padding=(rate, 2 * rate))
        if how == "stacked":
            return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3, dilation=rate, padding=rate))
        if how == "followed":
            return nn.Sequential(nn.Conv2d(3, 4, 3, dilation=rate, padding=rate), nn.Conv2d(4, 4, 3, padding=1))
        return nn.Conv2d(3, 4, 3, dilation=rate, padding=rate)

    class Swish(nn.Module):
        def forward(self, x):
            return x * (1 + x).sigmoid()

    class Net(nn.Module):
        def __init__(self, how, rates=(3, 6, 9)):
            super().__init__()
            self.how, self.stem = how, nn.Conv2d(3, 3, 1)
            self.point, self.branches = nn.Conv2d(3, 4, 1), nn.ModuleList(branch(how, rate) for rate in rates)
            self.aside, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.LazyConv2d(2, 1)

        def forward(self, x):
            x = self.stem(x)
            if self.how == "summed":
                return self.head(sum(branch(x) for branch in self.branches))
            if self.how == "nested":
                parts = self.point(x)
                for branch in self.branches:
                    parts = torch.cat([parts, branch(x)], 1)
                return self.head(parts)
            parts = [self.point(x), self.aside(x), *(branch(x) for branch in self.branches)]
            if self.how == "at two sizes":
                half = x[..., ::2, ::2]
                small = torch.cat([branch(half) for branch in self.branches], 1)
                return self.head(torch.cat(parts, 1)), small
            if self.how == "at one size":
                mirrored = x.flip(-1)
                return self.head(torch.cat(parts, 1)), torch.cat([branch(mirrored) for branch in self.branches], 1)
            if self.how == "called elsewhere":
                return self.head(torch.cat(parts, 1)), self.branches[0](x.square())
            if self.how == "read twice":
                return self.head(torch.cat(parts, 1)), torch.cat(parts[2:4], 1)
            return self.head(torch.cat(parts, 1))

    def net(how, rates=(3, 6, 9), size=28):
        model = Net(how, rates)
        model(torch.zeros(2, 3, size, size))
        return model
"""


@pytest.mark.parametrize(
    "how",
    [
        "plain", "timm's same", "same", "padded outside", "norm inside", "written out", "kernel of 5", "nested",
        "at one size", "read twice",
    ],
)  # fmt: skip
def test_forms_that_are_edited(how: str, import_text: Callable[[str], Any]) -> None:
    model = import_text(ASPP).net(how)
    rewritten = check_contract(model, [AtrousRates()], example_inputs=image(28))
    (site,) = rewriter.report(rewritten).applied
    wanted = [3, 5, 8] if how == "kernel of 5" else [5, 10, 15]
    assert [m.dilation[0] for m in rewritten.branches.modules() if getattr(m, "dilation", (1,))[0] > 1] == wanted
    set_too = "padding" in site.rate_at
    assert set_too == (how not in ("timm's same", "same", "padded outside"))
    for side in (28, 19, 40):
        first, second = (output(m, image(side)) for m in (model, rewritten))
        first, second = (o[0] if isinstance(o, tuple) else o for o in (first, second))
        assert first.shape == second.shape


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("summed", Reason.SUMMED),
        ("fixed outside", Reason.FIXED_PADDING),
        ("reflect", Reason.FIXED_PADDING),
        ("function", Reason.FUNCTIONAL),
        ("long kernel", Reason.KERNEL_SHAPE),
        ("two dilations", Reason.KERNEL_SHAPE),
        ("at two sizes", Reason.SHARED_MODULE),
        ("called elsewhere", Reason.SHARED_MODULE),
        ("stacked", None),
        ("followed", None),
    ],
)
def test_forms_that_are_left_alone(how: str, reason: Reason | None, import_text: Callable[[str], Any]) -> None:
    model = import_text(ASPP).net(how)
    plan = rewriter.plan(model, AtrousRates(), example_inputs=image(28))
    assert not plan.sites and reasons(plan) == ([] if reason is None else [reason])


def test_branches_of_one_rate_keep_one_rate_and_order_does_not_matter(import_text: Callable[[str], Any]) -> None:
    model = import_text(ASPP).net("plain", rates=(9, 3, 9, 1, 6))
    rewritten = check_contract(model, [AtrousRates()], example_inputs=image(28))
    assert [branch.dilation[0] for branch in rewritten.branches] == [15, 5, 15, 1, 10]


@pytest.mark.parametrize(("side", "wanted"), [(4, None), (5, [2, 3, 4]), (7, [2, 3, 4]), (12, [2, 4, 7])])
def test_small_maps(side: int, wanted: list[int] | None, import_text: Callable[[str], Any]) -> None:
    model = import_text(ASPP).net("plain")
    plan = rewriter.plan(model, AtrousRates(), example_inputs=image(side))
    if wanted is None:
        assert reasons(plan) == [Reason.SMALL_MAP] and "4x4" in plan.skipped[0].detail
        return
    rewritten = check_contract(model, [AtrousRates()], example_inputs=image(side))
    assert [branch.dilation[0] for branch in rewritten.branches] == wanted


def test_the_plan_says_what_it_was_made_for() -> None:
    plan = rewriter.plan(meta_model("torchvision:deeplabv3_mobilenet_v3_large"), AtrousRates(), input_size=513)
    (site,) = plan.sites
    assert site.reason == (
        "field of view 73 → 37 cells of the map, taps inside the map 32 % → 58 %, "
        "when trained at the resolution of input_size (513x513)"
    )
    ones, rates = torch.ones(1, 1, 33, 33), (12, 24, 36, 6, 12, 18)
    shares = [F.conv2d(ones, torch.ones(1, 1, 3, 3) / 9, padding=r, dilation=r).mean() for r in rates]
    assert [round(100 * float(sum(part) / 3)) for part in (shares[:3], shares[3:])] == [32, 58]


def test_without_a_resolution_the_error_asks_for_that_of_the_training() -> None:
    with pytest.raises(InputError, match=r"Give input_size=.*resolution that it is trained at"):
        rewriter.plan(meta_model("torchvision:deeplabv3_resnet50"), AtrousRates())


def test_trained_weights_are_held_back_unless_asked_for_by_name() -> None:
    model = smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=8)
    plan = rewriter.plan(model, AtrousRates(), input_size=64, preserve="eval")
    assert not plan.sites and reasons(plan) == [Reason.HELD_BACK]


def reference_scaled(map_side: int, number_of_rates: int, kernel_size: int) -> tuple[int, ...]:
    return tuple(round(6 * k * map_side / 33) for k in range(1, number_of_rates + 1))


class TestOptions:
    def test_a_rule_of_ones_own(self, tmp_path: Any) -> None:
        def make() -> nn.Module:
            return smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=8)

        rewritten = check_contract(make(), [AtrousRates(rule=reference_scaled)], input_size=128)
        assert dilations(rewritten)[-3:] == [3, 6, 9]
        (record,) = rewriter.report(rewritten).records
        assert record.plan.passes == (("atrous-rates", {"rule": f"{__name__}.reference_scaled"}),)
        rewriter.save(rewritten, tmp_path)
        loaded = rewriter.load(tmp_path, make())
        assert torch.equal(output(loaded, image(64)), output(rewritten, image(64)))

    def test_callable_objects_are_named_by_their_class(self) -> None:
        class Rule:
            def __call__(self, map_side: int, number_of_rates: int, kernel_size: int) -> list[int]:
                return []

        assert AtrousRates(rule=Rule()).options()["rule"].endswith("Rule")
        plan = rewriter.plan(meta_model("smp:deeplabv3"), AtrousRates(rule=Rule()), input_size=64)
        assert reasons(plan) == [Reason.SMALL_MAP]
        assert rewriter.Plan.from_json(plan.to_json()) == plan

    def test_rates_beyond_the_map_are_fitted(self) -> None:
        rule = AtrousRates(rule=lambda side, number, kernel: [6, 12, 18])
        (site,) = rewriter.plan(meta_model("smp:deeplabv3"), rule, input_size=96).sites
        assert site.action == "set dilations 12, 24, 36 to 6, 10, 11 (map 12x12)"

    @pytest.mark.parametrize("result", [[6, 12], [6, 6, 6], [12, 6, 18], [1, 2, 3], [6.0, 12.0, 18.0], 6, None, "abc"])
    def test_bad_results_of_a_rule(self, result: Any) -> None:
        model = smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=8)
        before = snapshot(model)
        with pytest.raises(SelectorError, match=r"rule\(8, 3, 3\): expected 3 increasing ints above 1, found"):
            rewriter.rewrite(model, AtrousRates(rule=lambda *_: result), input_size=64)
        assert_unchanged(model, before)

    @pytest.mark.parametrize("rule", ["linear", "", None, 3, (6, 12, 18)])
    def test_bad_options(self, rule: Any) -> None:
        with pytest.raises(ValueError, match="rule: expected 'coverage' or a function"):
            AtrousRates(rule=rule)
        with pytest.raises(SelectorError, match="rule: expected 'coverage'"):
            rewriter.plan(nn.Identity(), [{"atrous-rates": {"rule": rule}}], input_size=8)

    def test_only_and_skip(self) -> None:
        model = meta_model("smp:deeplabv3")
        assert reasons(rewriter.plan(model, AtrousRates(), input_size=64, only="encoder")) == [Reason.FILTERED]
        assert rewriter.plan(model, AtrousRates(), input_size=64, only="decoder").sites
