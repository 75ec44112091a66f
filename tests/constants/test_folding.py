"""Folding: the same output without the equalizers, borders included, or the reason why not."""

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
from rewriter.constants import folding
from rewriter.layers.registry import calibrated_layers
from rewriter.model.copying import copy_model
from rewriter.passes import ScaleEqualizer
from rewriter.tracing.containers import tensors_in

LIMIT = 1e-5


def calibrated(model: nn.Module, size: int = 64, **options: Any) -> nn.Module:
    rewritten = rewriter.rewrite(model, ScaleEqualizer(**options), input_size=size, verify=False)
    generator = torch.Generator().manual_seed(1)
    batches = [2 + torch.randn(2, 3, size, size, generator=generator) for _ in range(2)]
    return rewriter.calibrate(rewritten, batches, progress=False)


def assert_same_output(first: nn.Module, second: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        for a, b in zip(tensors_in(first.eval()(x)), tensors_in(second.eval()(x)), strict=True):
            assert (a - b).abs().max() <= LIMIT * a.abs().max()


def small_segformer() -> nn.Module:
    config = transformers.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16)
    return transformers.SegformerForSemanticSegmentation(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "torchvision deeplabv3": (
        lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None),
        1,
    ),
    "smp deeplabv3plus": (lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None), 2),  # depthwise, padded
    "smp pspnet": (lambda: smp.PSPNet("resnet18", encoder_weights=None), 1),
    "smp upernet": (lambda: smp.UPerNet("resnet18", encoder_weights=None), 2),  # 3x3, padded
    "hugging face segformer": (small_segformer, 1),
    "zoo uperhead": (lambda: zoo.create("zoo:uperhead-resnet18", channels=16).model, 2),
    "zoo sepaspphead": (lambda: zoo.create("zoo:sepaspphead-resnet18", channels=16).model, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_models_compute_the_same_at_any_size(name: str) -> None:
    create, folded = MODELS[name]
    torch.manual_seed(0)
    model = calibrated(create()).eval()
    before = snapshot(model)
    result = rewriter.fold(model)
    assert_unchanged(model, before)
    report = str(rewriter.report(result))
    assert "not folded" not in report and report.count("scale_equalizer") == folded
    for size in (64, 96):
        assert_same_output(model, result, image(size, batch=1))


class Fused(nn.Module):
    """Two levels, concatenated and read by ``reader``."""

    def __init__(self, reader: nn.Module, between: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.reader, self.between = reader, between or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.low(x), self.high(x)
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear")
        return self.reader(self.between(torch.cat([low, high], 1)))


READERS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: nn.Conv2d(12, 5, 1),
    "1x1 without bias": lambda: nn.Conv2d(12, 5, 1, bias=False),
    "padded": lambda: nn.Conv2d(12, 5, 3, padding=1, bias=False),
    "padded differently": lambda: nn.Conv2d(12, 5, (5, 3), padding=(2, 0), dilation=(1, 2), stride=2),
    "same": lambda: nn.Conv2d(12, 5, (4, 3), padding="same", dilation=(1, 2)),
    "valid": lambda: nn.Conv2d(12, 5, 3, padding="valid"),
    "reflected": lambda: nn.Conv2d(12, 5, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(12, 5, 3, padding=2, padding_mode="circular"),
    "depthwise": lambda: nn.Conv2d(12, 24, 3, padding=1, groups=12),
    "grouped": lambda: nn.Conv2d(12, 6, 3, padding=1, groups=3),
    "dropout between": lambda: nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Conv2d(12, 5, 3, padding=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_kind_of_convolution(name: str) -> None:
    torch.manual_seed(0)
    model = calibrated(Fused(READERS[name]()), size=16).eval()
    result = rewriter.fold(model)
    assert all(layer.absorbed is not None for layer in calibrated_layers(result).values())
    assert_same_output(model, result, image(24))
    in_place = rewriter.fold(model, inplace=True)
    assert in_place is model
    assert_same_output(model, result, image(16))


class Tokens(nn.Module):
    """Two levels as ``(N, H, W, C)``, joined along the last dimension and read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.reader = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(3, 8, 4, stride=4),
            nn.Linear(12, 5, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = F.interpolate(self.high(x), scale_factor=4, mode="bilinear").permute(0, 2, 3, 1)
        return self.reader(torch.cat([self.low(x).permute(0, 2, 3, 1), high], dim=-1))


@pytest.mark.slow
def test_a_linear_layer_behind_channels_last_maps() -> None:
    torch.manual_seed(0)
    model = calibrated(Tokens(), size=16)
    assert_same_output(model, rewriter.fold(model), image(16))


class OwnForward(nn.Conv2d):
    """A convolution that standardises its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


class Twice(nn.Module):
    """One convolution that reads two things."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x))


class WeightRead(Fused):
    """The weight behind the fusion is read by something else, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.reader.weight.sum()


class SharedBias(nn.Sequential):
    """Two convolutions with one bias."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(12, 5, 1), nn.Conv2d(5, 5, 1))
        self[1].bias = self[0].bias


class LargeMean(Fused):
    """A map whose mean is some thousand times its standard deviation: in the bias it would cost the last digits."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__(reader)
        nn.init.constant_(self.low.bias, 3000.0)


class Summed(Fused):
    """Two levels, added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.low(x), self.high(x)[:, :4]
        return self.reader(low + F.interpolate(high, size=low.shape[-2:], mode="bilinear"))


class TwoBranches(Fused):
    """One of two weights reads the levels, as a flag says."""

    other_reader = False

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(12, 5, 3, padding=1))
        self.other = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> Any:
        low, high = self.low(x), self.high(x)
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear")
        if self.other_reader:
            return self.other(torch.cat([low, high], 1))
        return self.reader(torch.cat([low, high], 1))


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an activation between": (lambda: Fused(nn.Conv2d(12, 5, 1), torch.relu), "not read by one weight alone, directly"),
    "a transposed convolution": (lambda: Fused(nn.ConvTranspose2d(12, 5, 2)), "with a forward of its own"),
    "a forward of its own": (lambda: Fused(OwnForward(12, 5, 1)), "OwnForward with a forward of its own"),
    "a parametrized weight": (
        lambda: Fused(nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 5, 1))),
        "the weight of reader is computed from other parameters",
    ),
    "a weight read elsewhere": (lambda: WeightRead(nn.Conv2d(12, 5, 1)), "would change an output by"),
    "a shared bias": (lambda: Fused(SharedBias()), "the weight or bias of reader.0 is shared"),
    "a mean that drowns the rest": (lambda: LargeMean(nn.Conv2d(12, 5, 1)), "would change an output by"),
    "called twice": (lambda: Fused(Twice()), "reader.conv is called 2 times"),
    "another branch": (TwoBranches, "where `self.other_reader` holds, other code reads it too"),
    "a sum": (lambda: Summed(nn.Conv2d(4, 5, 1)), "a sum has no weights of its own for each map"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_folded_stays_with_the_reason(name: str) -> None:
    create, reason = LEFT[name]
    torch.manual_seed(0)
    model = calibrated(create(), size=16, additive=True).eval()
    result = rewriter.fold(model)
    line = next(line for line in str(rewriter.report(result)).splitlines() if line.startswith("not folded"))
    assert reason in line
    with torch.no_grad():
        assert torch.equal(model(image(16)), result(image(16)))


class TestRefusals:
    @pytest.fixture(scope="class")
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return rewriter.rewrite(Fused(nn.Conv2d(12, 5, 3, padding=1)), ScaleEqualizer(), input_size=16, verify=False)

    def test_before_calibration(self, model: nn.Module) -> None:
        with pytest.raises(rewriter.FoldError, match=r"were not calibrated: run rewriter.calibrate"):
            rewriter.fold(model)

    def test_without_equalizers(self) -> None:
        with pytest.raises(rewriter.FoldError, match="ResNet has no equalizers to fold"):
            rewriter.fold(timm_model("test_resnet"))

    def test_rewritten_without_equalizers(self, caplog: pytest.LogCaptureFixture) -> None:
        model = rewriter.rewrite(timm_model("test_resnet"), verify=False).train()
        with caplog.at_level("INFO", "rewriter"):
            folded = rewriter.fold(model)
            assert folded is not model and model.training and not folded.training
            assert torch.equal(folded(image()), model.eval()(image()))
            assert rewriter.fold(model.train(), inplace=True) is model and not model.training
        assert {record.message for record in caplog.records} == {
            "fold: ResNet was rewritten and has no equalizers: nothing to fold"
        }
        assert rewriter.report(folded).records == rewriter.report(model).records

    def test_what_was_not_rewritten_itself(self, model: nn.Module) -> None:
        rewriter.calibrate(model, [image(16)], progress=False)
        with pytest.raises(rewriter.FoldError, match="Sequential was not rewritten itself"):
            rewriter.fold(nn.Sequential(model), input_size=16)

    def test_what_a_folded_model_is_not_for(self, model: nn.Module, tmp_path: Any) -> None:
        rewriter.calibrate(model, [image(16)], progress=False)
        folded = rewriter.fold(model)
        for call, error in (
            (rewriter.undo, rewriter.UndoError),
            (rewriter.rewrite, rewriter.ModelError),
            (rewriter.fold, rewriter.FoldError),
            (rewriter.original_state_dict, rewriter.ModelError),
            (lambda model: rewriter.calibrate(model, [image(16)]), rewriter.CalibrationError),
            (lambda model: rewriter.save(model, tmp_path / "saved"), rewriter.StorageError),
        ):
            with pytest.raises(error, match="was folded"):
                call(folded)
        torch.save(folded, tmp_path / "folded.pt")
        again = torch.load(tmp_path / "folded.pt", weights_only=False)
        assert torch.equal(again.eval()(image(16)), folded.eval()(image(16)))

    def test_nothing_that_would_change_the_output_is_folded(self, model: nn.Module, monkeypatch: Any) -> None:
        rewriter.calibrate(model, [image(16)], progress=False)
        before = snapshot(copy_model(model).eval())
        monkeypatch.setattr("rewriter.constants.folding.TOLERANCE", 0.0)
        result = rewriter.fold(copy_model(model), inplace=True)
        assert "not folded: scale_equalizer: folding would change an output by" in str(rewriter.report(result))
        after = snapshot(result)
        assert [t[1] for t in after.tensors.values()] == [t[1] for t in before.tensors.values()]
        assert after.values["reader"] == before.values["reader"]
        assert after.values["scale_equalizer"] == before.values["scale_equalizer"]
        rewriter.undo(result)  # its weights are still those of the original

    def test_an_interrupted_fold_is_taken_back(self, model: nn.Module, monkeypatch: Any) -> None:
        rewriter.calibrate(model, [image(16)], progress=False)
        before = snapshot(model)

        def interrupted(*_: Any) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("rewriter.constants.folding._change", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rewriter.fold(model, inplace=True)
        assert_unchanged(model, before)


@pytest.mark.slow
def test_a_later_rewrite_that_found_nothing_does_not_matter() -> None:
    model = calibrated(Fused(nn.Conv2d(12, 5, 1)), size=16)
    again = rewriter.rewrite(model, "stochastic-pooling", input_size=16)
    assert not rewriter.report(again).records[-1].plan.sites
    assert_same_output(model, rewriter.fold(again), image(16))


def test_it_is_checked_in_full_precision() -> None:
    """TF32, in which GPUs convolve, would differ by more than what is allowed; the switch is put back."""
    seen: list[Any] = []
    watching = nn.Conv2d(5, 5, 1)
    watching.register_forward_hook(lambda *_: seen.append(getattr(torch.backends.cuda.matmul, folding._SWITCH)))
    model = calibrated(Fused(nn.Sequential(nn.Conv2d(12, 5, 1), watching)), size=16)
    torch.set_float32_matmul_precision("high")
    try:
        rewriter.fold(model)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen[-2:] == [folding._FULL] * 2
