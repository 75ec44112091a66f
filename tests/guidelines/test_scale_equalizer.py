"""Scale equalizers on real models: where they act, and that they change nothing until they are calibrated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
import transformers
from helpers import assert_unchanged, image, snapshot, timm_model
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.layers.registry import calibrated_layers
from rewriter.passes import ScaleEqualizer
from rewriter.reasons import Reason
from rewriter.testing import check_contract

pytestmark = pytest.mark.slow


def small_segformer() -> nn.Module:
    config = transformers.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16)
    return transformers.SegformerForSemanticSegmentation(config)


def hugging_face(name: str, **options: Any) -> nn.Module:
    cls = getattr(transformers, name)
    return cls(cls.config_class(**options))


def of_zoo(name: str, **options: Any) -> nn.Module:
    return zoo.create(f"zoo:{name}", channels=16, **options).model


FOUND: dict[str, tuple[Callable[[], nn.Module], dict[str, int], dict[str, int]]] = {
    # concatenations and sums that are found, by the number of their maps
    "torchvision:deeplabv3_resnet50": (lambda: zoo.create("torchvision:deeplabv3_resnet50").model, {"5": 1}, {}),
    "torchvision:deeplabv3_mobilenet_v3_large": (
        lambda: zoo.create("torchvision:deeplabv3_mobilenet_v3_large").model,
        {"5": 1},
        {},
    ),
    "smp:deeplabv3": (lambda: smp.DeepLabV3("resnet18", encoder_weights=None), {"5": 1}, {}),
    "smp:deeplabv3plus": (lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None), {"5": 1, "2": 1}, {}),
    "smp:pspnet": (lambda: smp.PSPNet("resnet18", encoder_weights=None), {"5": 1}, {}),
    "smp:upernet": (lambda: smp.UPerNet("resnet18", encoder_weights=None), {"5": 1, "4": 1}, {"2": 3}),
    "smp:segformer": (lambda: smp.Segformer("resnet18", encoder_weights=None), {"5": 1}, {}),
    "smp:fpn": (lambda: smp.FPN("resnet18", encoder_weights=None), {}, {"4": 1}),
    "smp:pan": (lambda: smp.PAN("resnet18", encoder_weights=None), {}, {"2": 5}),
    "hf:segformer": (lambda: hugging_face("SegformerForSemanticSegmentation"), {"4": 1}, {}),
    "hf:upernet": (lambda: hugging_face("UperNetForSemanticSegmentation"), {"5": 1, "4": 1}, {"2": 3}),
    "hf:dpt": (lambda: hugging_face("DPTForSemanticSegmentation"), {}, {"2": 3}),
    "zoo:uperhead": (lambda: of_zoo("uperhead-resnet18"), {"5": 1, "4": 1}, {"2": 3}),
    "zoo:psphead": (lambda: of_zoo("psphead-resnet18"), {"5": 1}, {}),
    "zoo:aspphead": (lambda: of_zoo("aspphead-resnet18"), {"5": 1}, {}),
    "zoo:sepaspphead": (lambda: of_zoo("sepaspphead-resnet18"), {"5": 1, "2": 1}, {}),
    "zoo:fcnhead": (lambda: of_zoo("fcnhead-resnet18"), {}, {}),
    "zoo:fcnhead, resize_concat": (
        lambda: of_zoo(
            "fcnhead-hrnet_w18_small", input_transform="resize_concat", concat_input=False, feature_location=""
        ),
        {"4": 1},
        {},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_fusions_of_real_models(name: str) -> None:
    create, concatenations, sums = FOUND[name]
    with torch.device("meta"):
        model = create()
    plan = rewriter.plan(model, "scale-equalizer", input_size=384)
    assert counted(plan.sites, "concatenation") == concatenations
    assert counted(plan.skipped, "sum") == sums
    assert {skip.reason for skip in plan.skipped} <= {Reason.ADDITIVE}
    additive = rewriter.plan(model, ScaleEqualizer(additive=True), input_size=384)
    assert counted((*additive.sites, *additive.skipped), "sum") == sums
    assert {skip.reason for skip in additive.skipped} <= {Reason.IN_A_LOOP}
    assert bool(additive.skipped) == (name in ("hf:upernet", "zoo:uperhead"))  # their top-down path is a loop


def counted(findings: Any, form: str) -> dict[str, int]:
    """``{"5": 1}`` for one finding whose pattern is ``"concatenation of 5 maps"``."""
    found: dict[str, int] = {}
    for finding in findings:
        words = finding.pattern.split()
        if words[0] == form:
            found[words[2]] = found.get(words[2], 0) + 1
    return found


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "hrnet_w18_small", "torchvision:fcn_resnet50", "smp:unet"])
def test_what_has_no_fusion_of_upsampled_maps_is_not_even_mentioned(name: str) -> None:
    with torch.device("meta"):
        model = zoo.create(name).model
    plan = rewriter.plan(model, ScaleEqualizer(additive=True), input_size=224)
    assert not plan.sites and not plan.skipped


def test_a_unet_that_upsamples_bilinearly_is_taken_at_every_level() -> None:
    with torch.device("meta"):
        model = smp.Unet("resnet18", encoder_weights=None, decoder_interpolation="bilinear")
    assert len(rewriter.plan(model, "scale-equalizer", input_size=224).sites) == 4


CONTRACTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "torchvision": (lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None), 96),
    "smp": (lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None), 96),
    "smp, sums in one method": (lambda: smp.PAN("resnet18", encoder_weights=None), 256),
    "smp, stacked sum": (lambda: smp.FPN("resnet18", encoder_weights=None), 64),
    "hugging face": (small_segformer, 64),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str) -> None:
    create, size = CONTRACTS[name]
    model = create()
    before = snapshot(model)
    rewritten = check_contract(model, ScaleEqualizer(additive=True), input_size=size)
    assert_unchanged(model, before)
    layers = calibrated_layers(rewritten)
    assert layers and not any(layer.calibrated for layer in layers.values())
    assert not any(True for layer in layers.values() for _ in layer.parameters())
    report = rewriter.report(rewritten)
    assert report.verified and report.uncalibrated == tuple(layers)
    assert "the identity until rewriter.calibrate" in str(report)


class TestCheckpoints:
    def test_a_part_does_not_know_what_was_added_to_it(self) -> None:
        rewritten = rewriter.rewrite(smp.PSPNet("resnet18", encoder_weights=None), "scale-equalizer", input_size=64)
        with pytest.raises(rewriter.ModelError, match=r"was not rewritten itself: 'psp.scale_equalizer' was added by"):
            rewriter.original_state_dict(rewritten.decoder)
        encoder = rewriter.original_state_dict(rewritten.encoder)
        assert list(encoder) == list(rewritten.encoder.state_dict())
        averaged = torch.optim.swa_utils.AveragedModel(rewritten)
        smp.PSPNet("resnet18", encoder_weights=None).load_state_dict(rewriter.original_state_dict(averaged))

    def test_those_of_the_original_load_strictly_and_leave_the_constants(self) -> None:
        model = smp.PSPNet("resnet18", encoder_weights=None)
        rewritten = rewriter.rewrite(model, "scale-equalizer", input_size=64, verify=False)
        rewriter.calibrate(rewritten, [image()], progress=False)
        constants = rewritten.decoder.psp.scale_equalizer.constants()
        rewritten.load_state_dict(model.state_dict(), strict=True)
        assert rewritten.decoder.psp.scale_equalizer.constants() == constants
        model.load_state_dict(rewriter.original_state_dict(rewritten), strict=True)

    def test_those_of_the_rewritten_model_hold_the_constants(self, tmp_path: Any) -> None:
        model = smp.PSPNet("resnet18", encoder_weights=None)
        rewritten = rewriter.rewrite(model, "scale-equalizer", input_size=64, verify=False)
        rewriter.calibrate(rewritten, [image()], progress=False)
        rewriter.save(rewritten, tmp_path / "saved")
        loaded = rewriter.load(tmp_path / "saved", smp.PSPNet("resnet18", encoder_weights=None))
        other = rewriter.rewrite(model, "scale-equalizer", input_size=64, verify=False)
        other.load_state_dict(rewritten.state_dict(), strict=True)
        for copied in (loaded, other):
            equalizer = copied.decoder.psp.scale_equalizer
            assert equalizer.calibrated
            assert equalizer.constants() == rewritten.decoder.psp.scale_equalizer.constants()

    @pytest.mark.parametrize("assign", [True, False])
    def test_a_model_made_without_memory_has_the_identity(self, assign: bool) -> None:
        with torch.device("meta"):
            model = smp.PSPNet("resnet18", encoder_weights=None)
        rewritten = rewriter.rewrite(model, "scale-equalizer", input_size=64, verify=False)
        if not assign:
            rewritten.to_empty(device="cpu")
        original = smp.PSPNet("resnet18", encoder_weights=None).eval()
        rewritten.load_state_dict(original.state_dict(), strict=True, assign=assign)
        with torch.no_grad():
            assert torch.equal(rewritten.eval()(image()), original(image()))

    def test_half_precision_and_channels_last_hold(self) -> None:
        model = smp.PSPNet("resnet18", encoder_weights=None).to(torch.bfloat16, memory_format=torch.channels_last)
        rewritten = rewriter.rewrite(model, "scale-equalizer", input_size=64)
        rewriter.calibrate(rewritten, [image().bfloat16()], progress=False)
        seen: list[torch.Tensor] = []
        rewritten.decoder.psp.scale_equalizer.register_forward_hook(lambda *call: seen.extend(call[-1]))
        rewritten.eval()(image().bfloat16().contiguous(memory_format=torch.channels_last))
        assert {t.dtype for t in seen} == {torch.bfloat16}
        assert seen[-1].is_contiguous(memory_format=torch.channels_last)


class Decoder(nn.Module):
    """Two levels, fused in the way that ``fuse`` does it."""

    def __init__(self, fuse: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.norm, self.head, self.logits = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1), nn.Conv2d(4, 4, 1)
        self.fuse = fuse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.low(x), self.high(x)
        return self.fuse(self, low, F.interpolate(high, size=low.shape[-2:], mode="bilinear"))


def _normed_after(self: Any, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return self.head(self.norm(torch.cat([low, high], 1)))


def _logits(self: Any, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.cat([self.logits(low), self.logits(high)], 1)


def _along_height(self: Any, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return self.logits(torch.cat([low, high], 2))


def _along_width(self: Any, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return self.logits(torch.cat([low, high], 3))


def _tokens(self: Any, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    sequences = [x.flatten(2).transpose(1, 2) for x in (low, high)]
    return F.linear(torch.cat(sequences, 1), self.logits.weight.flatten(1))


@pytest.mark.parametrize(
    ("fuse", "reason"),
    [
        (_normed_after, Reason.NORM_FOLLOWS),
        (_logits, Reason.LOGITS),
        (_along_height, None),
        (_along_width, None),
        (_tokens, None),
    ],
)
def test_fusions_that_are_left_alone(fuse: Any, reason: Reason | None) -> None:
    plan = rewriter.plan(Decoder(fuse), ScaleEqualizer(), input_size=16)
    assert not plan.sites
    assert [skip.reason for skip in plan.skipped] == ([] if reason is None else [reason])


class AddedInPlace(Decoder):
    """A sum that is written to the memory of one of its maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.low(x), self.high(x)
        low.add_(F.interpolate(high, size=low.shape[-2:], mode="bilinear"))
        return self.logits(low)


class Augmented(Decoder):
    """The same, written as an augmented assignment."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.low(x), self.high(x)
        low += F.interpolate(high, size=low.shape[-2:], mode="bilinear")
        return self.logits(low)


@pytest.mark.parametrize("cls", [AddedInPlace, Augmented])
def test_sums_in_place_are_left_alone(cls: type[Decoder]) -> None:
    plan = rewriter.plan(cls(_logits), ScaleEqualizer(additive=True), input_size=16)
    assert [skip.reason for skip in plan.skipped] == [Reason.IN_PLACE] and not plan.sites


@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
def test_only_bilinear_upsampling_counts(mode: str) -> None:
    model = smp.Unet("resnet18", encoder_weights=None, decoder_interpolation=mode)
    plan = rewriter.plan(model, ScaleEqualizer(), input_size=64)
    assert not plan.sites and not plan.skipped


def test_an_image_of_one_level_is_not_upsampled() -> None:
    """At 32 pixels the pyramid of a PSPNet pools maps of one position: nothing is enlarged."""
    with torch.device("meta"):
        model = smp.PSPNet("resnet18", encoder_weights=None, encoder_depth=5)
    assert not rewriter.plan(model, ScaleEqualizer(), input_size=32).sites


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bilinear_upsampling_shrinks_the_variance_as_the_docstring_says(scale: int) -> None:
    s = scale
    law = ((4 * s * s - 1) / (6 * s * s) if s % 2 == 0 else (2 * s * s + 1) / (3 * s * s)) ** 2
    x = torch.randn(8, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    inside = F.interpolate(x, scale_factor=s, mode="bilinear")[..., s:-s, s:-s]
    assert inside.var().item() == pytest.approx(law, rel=0.02)


class TwoLevels(nn.Module):
    """Two maps of independent ReLU features, one of them smaller by 8, fused by a 1x1 convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse, self.norm = nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        up = F.interpolate(F.relu(high), scale_factor=8.0, mode="bilinear")
        return self.norm(self.fuse(torch.cat([F.relu(low), up], 1)))


def test_the_gradients_of_the_fusion_weights_become_equal_in_scale() -> None:
    torch.manual_seed(0)
    model = TwoLevels()
    batches = [(torch.randn(8, 16, 64, 64), torch.randn(8, 16, 8, 8)) for _ in range(4)]
    rewritten = rewriter.rewrite(model, "scale-equalizer", example_inputs=batches[0])
    rewriter.calibrate(rewritten, batches, progress=False)

    def ratio(subject: nn.Module) -> float:
        """Root mean square gradient of the weights of the larger map, over that of the smaller one's."""
        low, high = [], []
        for batch in batches:
            subject.zero_grad()
            result = subject(*batch)
            (result * torch.randn(result.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
            for part, found in zip(subject.fuse.weight.grad.split(16, 1), (low, high), strict=True):
                found.append(part.square().mean())
        return (sum(low) / sum(high)) ** 0.5  # type: ignore[arg-type, operator, return-value]

    assert ratio(model) > 1.3
    assert 0.9 < ratio(rewritten) < 1.1


def test_a_model_that_computes_nothing_else_is_untouched_by_compilation() -> None:
    model = rewriter.rewrite(small_segformer().eval(), "scale-equalizer", input_size=64, verify=False)
    exported = torch.export.export(model, (image(64, batch=1),))
    assert torch.equal(exported.module()(image(64, batch=1)).logits, model(image(64, batch=1)).logits)


def test_bad_options() -> None:
    with pytest.raises(rewriter.SelectorError, match="additive: expected True or False, found 'yes'"):
        rewriter.plan(timm_model("test_resnet"), {"scale-equalizer": {"additive": "yes"}})
