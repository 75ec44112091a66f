"""What a training configuration does to the variance of images: the laws, and which options are found fault with."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import timm_model
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import nn

import rewriter
from rewriter.passes import PatchNorm, PositionVariance
from rewriter.passes.position_variance.training import mixup_variance

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def white(count: int = 64, size: int = 64) -> torch.Tensor:
    """Images of mean 0 and standard deviation 1 without structure."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class TestLaws:
    """``PAPERS``: the variance that is left, for images of mean 0 and standard deviation 1."""

    @pytest.mark.parametrize(("alpha", "kept"), [(0.2, 0.857), (0.8, 0.692), (1.0, 0.667)])
    def test_mixup_on_average(self, alpha: float, kept: float) -> None:
        assert mixup_variance(alpha) == pytest.approx(kept, abs=5e-4)
        lam = np.random.default_rng(0).beta(alpha, alpha, 400_000)
        drawn = lam**2 + (1 - lam) ** 2
        within = 4 * drawn.std() / math.sqrt(len(drawn))  # missed once in 16000 seeds
        assert abs(drawn.mean() - mixup_variance(alpha)) < within

    @pytest.mark.parametrize("lam", [0.5, 0.7, 0.9])
    def test_mixup_of_images(self, lam: float) -> None:
        images = white()
        mixed = lam * images + (1 - lam) * images.flip(0)
        assert float(mixed.var()) == pytest.approx(lam**2 + (1 - lam) ** 2, rel=0.01)

    @pytest.mark.parametrize(("options", "kept"), [({"mixup_alpha": 0.8}, 0.692), ({"cutmix_alpha": 1.0}, 1.0)])
    def test_mixtures_of_timm(self, options: dict[str, float], kept: float) -> None:
        np.random.seed(0)
        images, targets = white(32), torch.zeros(32, dtype=torch.long)
        mix = Mixup(**{"mixup_alpha": 0.0, **options}, mode="elem", num_classes=2)
        found = torch.stack([mix(images.clone(), targets)[0].var() for _ in range(40)]).mean()
        assert float(found) == pytest.approx(kept, abs=0.02)

    @pytest.mark.parametrize(("mode", "kept"), [("const", 0.749), ("rand", 0.94), ("pixel", 0.999)])
    def test_erasing_a_quarter_of_an_image(self, mode: str, kept: float) -> None:
        torch.manual_seed(0)
        erase = RandomErasing(1.0, 0.25, 0.25, 1.0, mode=mode, device="cpu")
        images = erase(white(256))
        found = images.var(dim=(2, 3)).mean()  # of each channel of each image
        assert float(found) == pytest.approx(kept, abs=0.02)

    def test_noise_of_variance_one_is_more_than_images_of_half_and_half_have(self) -> None:
        photographs = 0.45 + 0.225 * white()
        normalised = (photographs - 0.5) / 0.5
        assert float(normalised.var()) == pytest.approx(0.2, abs=0.01)
        torch.manual_seed(0)
        erased = RandomErasing(1.0, 0.25, 0.25, 1.0, mode="pixel", device="cpu")(normalised.clone())
        assert float(erased.var()) > 1.8 * float(normalised.var())


def codes(training: Any, model: nn.Module | None = None) -> list[str]:
    found = rewriter.check(timm_model("test_vit") if model is None else model, select="RW11", training=training)
    return [finding.code for finding in found]


CONFIGURATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"lr": 0.1, "epochs": 3, "mixup": None, "mean": None, "std": None, "remode": None}, []),
    ({"mixup": 0.8}, ["RW1102"]),
    ({"mixup": "0.2"}, ["RW1102"]),
    ({"mixup": 0.8, "cutmix": 1.0}, ["RW1102"]),
    ({"mixup": 0.8, "mixup_off_epoch": 200}, ["RW1102"]),
    ({"mixup": 0.0, "cutmix": 1.0}, []),
    ({"cutmix": 1.0, "mixup_prob": 1.0, "mixup_off_epoch": 0}, []),
    ({"mixup": 0.8, "mixup_prob": 0.0}, []),
    ({"mixup": 0.8, "cutmix": 1.0, "mixup_switch_prob": 1.0}, []),
    ({"mixup": 0.8, "mixup_switch_prob": 1.0}, ["RW1102"]),
    ({"mixup": 0.8, "cutmix_minmax": [0.2, 0.8], "mixup_switch_prob": 1.0}, []),
    ({"reprob": 0.25, "remode": "pixel"}, []),
    ({"reprob": 0.25}, []),  # "pixel" is timm's default
    ({"reprob": 0.25, "remode": "const"}, ["RW1103"]),
    ({"reprob": 0.25, "remode": "rand"}, ["RW1103"]),
    ({"reprob": 0.0, "remode": "const"}, []),
    ({"reprob": 0.25, "remode": "pixel", **HALF}, ["RW1104"]),
    ({"reprob": 0.25, "remode": "const", **HALF}, ["RW1103", "RW1104"]),
    ({"reprob": 0.25, "remode": "pixel", **IMAGENET}, []),
    ({"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "random_erase": 0.0}, ["RW1102"]),
    ({"mixup_alpha": 0.0, "cutmix_alpha": 1.0}, []),
    ({"random_erase": 0.1}, ["RW1103"]),
    (HALF, ["RW1105"]),
    (IMAGENET, []),
    ({"mean": (0.1307,), "std": (0.3081,)}, []),  # MNIST
    ({"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}, []),  # CIFAR-10
    ({"mean": 0.5, "std": 0.5}, ["RW1105"]),
    ({"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}, ["RW1105"]),
    ({"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}, []),
    ({"mean": [127.0, 127.0, 127.0], "std": [128.0, 128.0, 128.0]}, ["RW1105"]),
    ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}, ["RW1105"]),
    ({"do_normalize": False, **{f"image_{name}": value for name, value in IMAGENET.items()}}, ["RW1105"]),
    ({"label_smoothing_factor": 0.1, "per_device_train_batch_size": 8, "weight_decay": 0.05}, []),
    ({"mixup": 0.8, "reprob": 0.25, "remode": "const", **HALF}, ["RW1102", "RW1103", "RW1104"]),
]  # fmt: skip


def test_which_options_are_found_fault_with() -> None:
    traced, lint = rewriter.trace(timm_model("test_vit", depth=1)), PositionVariance()
    found = [(options, [said.code for said in lint.check_training(traced, options)]) for options, _ in CONFIGURATIONS]
    assert found == CONFIGURATIONS


def test_they_are_warnings_with_the_law_and_the_remedy() -> None:
    training = {"mixup": 0.8, "mixup_off_epoch": 200, "reprob": 0.25, "remode": "const", **HALF}
    mixup, erasing, normalisation = rewriter.check(timm_model("test_vit"), select="RW11", training=training)
    assert "leave Mixup out (mixup=0) and mix by CutMix" in mixup.message
    assert "keep on average 0.69 of the variance of one, until epoch 200" in mixup.message
    assert "set remode='pixel'" in erasing.message and "keeps 0.75 of its variance" in erasing.message
    assert "ImageNet: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225" in normalisation.message
    assert "a variance of about 0.2, and erased pixels are drawn with a variance of 1" in normalisation.message
    for finding in (mixup, erasing, normalisation):
        assert finding.severity == "warning" and finding.active and not finding.fixable and finding.line is None


def test_a_normalisation_alone_is_a_note() -> None:
    (finding,) = rewriter.check(timm_model("test_vit"), select="RW11", training=HALF)
    assert finding.severity == "note" and "alone this is no fault" in finding.message


EVERYTHING = {"mixup": 0.8, "reprob": 0.25, "remode": "const", **HALF}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_relpos_small_patch16_224",
                                  "efficientformerv2_s0", "levit_128s", "vit_tiny_r_s16_p8_224"])  # fmt: skip
def test_without_an_absolute_position_nothing_is_wrong(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert codes(EVERYTHING, model) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "xcit_nano_12_p8_224", "crossvit_tiny_240"])
def test_learned_and_fixed_positions_count(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert codes(EVERYTHING, model) == ["RW1102", "RW1103", "RW1104"]


@pytest.mark.parametrize("where", ["projection", "patches"])
def test_patches_of_one_variance_need_no_other_training(where: str) -> None:
    assert codes(EVERYTHING, rewriter.rewrite(timm_model("test_vit"), PatchNorm(where), verify=False)) == []


def test_words_are_not_mixed_by_these_options() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.position = nn.Embedding(16, 8), nn.Parameter(torch.zeros(1, 4, 8))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.words(ids) + self.position).mean(1))

    found = rewriter.check(
        Words(), select="RW11", training=EVERYTHING, example_inputs=torch.zeros(2, 4, dtype=torch.long)
    )
    assert not found


@pytest.mark.parametrize("form", ["namespace", "yaml", "object"])
def test_forms_of_a_configuration(form: str, tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text("mixup: 0.8\nmixup-off-epoch: 0\nreprob: 0.25\nremode: const\nmean:\n- 0.5\n- 0.5\n- 0.5\n"
                    "std:\n- 0.5\n- 0.5\n- 0.5\n")  # fmt: skip
    given = argparse.Namespace(**EVERYTHING)
    training = {"namespace": given, "yaml": path, "object": given}[form]
    assert codes(training, timm_model("test_vit", depth=1)) == ["RW1102", "RW1103", "RW1104"]
