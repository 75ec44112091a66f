"""``rewriter.compare`` in Python: what it takes, what it refuses, and what it says of outputs and trained weights."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from helpers import assert_unchanged, snapshot
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import rewriter
from rewriter import zoo
from rewriter.comparison.equivalence import equivalence
from rewriter.comparison.result import Comparison
from rewriter.comparison.scoring import Scoring
from rewriter.comparison.verdict import Outcome
from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError, ModelError
from rewriter.passes import Dropout

pytestmark = pytest.mark.slow

OF_LISTS = "your data (8 training and 9 test images of 1 × 32 × 32, 10 classes)"
TINY = rewriter.Recipe(seeds=1, epochs=1, batch_size=8, train_images=16, test_images=9)


def resnet(num_classes: int = 10, channels: int = 1) -> nn.Module:
    return timm.create_model("test_resnet", in_chans=channels, num_classes=num_classes)


def same(model: nn.Module) -> nn.Module:
    return model


def compare(before: Any, after: Any, data: Any = "digits", **options: Any) -> Comparison:
    defaults: dict[str, Any] = {"budget": TINY, "progress": False}
    if isinstance(data, str):
        defaults["input_size"] = 32
    return rewriter.compare(before, after, data, **(defaults | options))


def digits(count: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:count, None] / 16, size=32)
    return images, torch.tensor(data.target)[:count]


def sets(images: torch.Tensor, targets: torch.Tensor) -> tuple[Any, Any]:
    return TensorDataset(images[:16], targets[:16]), TensorDataset(images[16:], targets[16:])


class WithoutLength(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*digits(16), strict=True))


class TestFirstLine:
    def test_bit_identical(self) -> None:
        model = resnet().eval()
        state = snapshot(model)
        found = compare(model, rewriter.rewrite(model, [Dropout(p=0.1)], input_size=32), levels=["equivalence"])
        line = "the output in evaluation mode is bit-identical on 9 images; no training was compared"
        assert found.verdict.sentence == line and found.verdict.outcome is Outcome.UNDECIDED
        assert [item.name for item in found.equivalence] == ["dropout", "all"]
        assert_unchanged(model, state)

    def test_culprit(self) -> None:
        original = smp.DeepLabV3("resnet18", encoder_weights=None, in_channels=1, classes=3)
        passes = ["atrous-rates", "scale-equalizer"]
        after = rewriter.rewrite(original, passes, input_size=(1, 64, 64), preserve="nothing")
        found = compare(original, after, "mri-seg", input_size=64, levels=["equivalence"])
        told = {item.name: item.identical for item in found.equivalence}
        changing = [name for name, identical in told.items() if identical is False and name != "all"]
        assert told == {"atrous-rates": False, "scale-equalizer": True, "all": False}
        assert f"changed by {', '.join(changing)}; no training was compared" in found.verdict.sentence

    def test_trained_weights(self) -> None:
        model = resnet()
        other = rewriter.rewrite(model, [Dropout(p=0.1)], input_size=32)
        found = compare(model, other, levels=["trained"])
        assert "top1, top5 are the same; no training was compared" in found.verdict.sentence
        with torch.no_grad():
            other.fc.bias[3] += 100
        worse = compare(model, other, levels=["equivalence", "trained"])
        assert "before and" in worse.verdict.sentence and "differs by up to" in worse.verdict.sentence
        assert "the two models do not begin with the same weights" in worse.notes
        assert worse.trained is not None and len(worse.trained.rows) == 9


class TestEquivalence:
    SCORING = Scoring(Task.CLASSIFICATION, 10)

    def test_outputs_that_vary(self) -> None:
        class Varying(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = resnet()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.body(x) + 1e-6 * torch.randn(len(x), 1)

        model = Varying()
        (found,) = compare(model, rewriter.rewrite(model, [], input_size=32), levels=["equivalence"]).equivalence
        assert found.identical is None and 0 < found.spread < 1e-4 and found.agreement == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, value: float) -> None:
        model, images = resnet(), [digits(4)[0]]
        broken = timm.create_model("test_resnet", in_chans=1, num_classes=10)
        broken.load_state_dict(model.state_dict())
        broken.fc.bias.data[0] = value
        found = equivalence("all", model, broken, images, self.SCORING)
        assert found.identical is False and found.max_difference == math.inf
        again = equivalence("all", broken, broken, images, self.SCORING)
        assert again.identical and again.max_difference == 0


class TestOtherModels:
    def test_torchvision_segmentation(self) -> None:
        def make() -> nn.Module:
            return zoo.create("torchvision:lraspp_mobilenet_v3_large", num_classes=3).model

        options = {"batch_size": 2, "train_images": 2, "test_images": 2, "levels": ["equivalence", "training"]}
        found = compare(make, same, "mri-seg", input_size=(3, 64, 64), **options)
        assert found.training is not None and found.training.metric == "mIoU" and found.equivalence[0].identical

    def test_transformers_with_smaller_logits(self) -> None:
        config = transformers.SegformerConfig(
            num_channels=1, num_labels=3, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], decoder_hidden_size=16,
            num_attention_heads=[1, 1, 2, 2],
        )  # fmt: skip
        found = compare(lambda: transformers.SegformerForSemanticSegmentation(config), same, "mri-seg", input_size=64)
        assert found.training is not None and not found.training.runs[0].stopped

    def test_after_that_was_not_rewritten(self) -> None:
        with pytest.raises(ComparisonError, match="that was not rewritten"):
            compare(resnet, resnet())
        found = compare(resnet(), resnet(), levels=["equivalence"])
        assert found.equivalence[0].identical is False and found.notes

    def test_rewritten_in_place(self) -> None:
        model = resnet()
        after = rewriter.rewrite(model, inplace=True, input_size=32)
        with pytest.raises(ComparisonError, match="before and after are the same model"):
            compare(model, after)

    def test_what_is_no_model(self) -> None:
        for before, after, words in (
            (torch.compile(resnet()), same, "_orig_mod"),
            (nn.DataParallel(resnet()), same, r"\.module"),
            (lambda: 3, same, "it gave int"),
            (resnet, lambda model: None, "it gave NoneType"),
            (3, same, "a torch.nn.Module or a function, found int"),
            (resnet, 3, "a torch.nn.Module or a function, found int"),
        ):
            with pytest.raises((ComparisonError, ModelError), match=words):
                compare(before, after)


class TestBadData:
    @pytest.mark.parametrize(
        ("make", "data", "words"),
        [
            (lambda: resnet(7), "digits", "the second of the data's 10 classes"),
            (resnet, "mri-seg", "segmentation: expected an output of 4 dimensions"),
            (resnet, "photos", "does not run|1000 classes"),
        ],
    )
    def test_model_for_other_data(self, make: Any, data: str, words: str) -> None:
        with pytest.raises(DataError, match=words):
            compare(make, same, data, levels=["trained"])

    def test_targets(self) -> None:
        images, targets = digits()
        for wrong, words in (
            (targets + 5, r"found class 1\d among the targets, expected 0 to 9"),
            (targets - 1, "found class -1"),
            (targets.float(), "numbers of classes"),
            (torch.zeros_like(targets), "only 0"),
            (F.one_hot(targets), "targets of 1 dimensions"),
        ):
            with pytest.raises(DataError, match=words):
                compare(resnet, same, sets(images, wrong))

    def test_loaders(self) -> None:
        images, targets = digits()
        train, test = sets(images, targets)
        for data, words in (
            ((DataLoader(WithoutLength(), 8), test), "has no length"),
            ((DataLoader(train, 32, drop_last=True), test), "too few images"),
            ((train, []), "expected test images, found none"),
            (([], test), "has none"),
            ((TensorDataset(images[:4], targets[:4]), test), "at least one batch of 8"),
            ((train, None), "no test data"),
            ((train, 3), "found int"),
            ((train, [{"images": images, "labels": targets}]), "found dict of 2"),
            ((train, [(images, targets, targets)]), "found list of 3|found tuple of 3"),
            ((train, [(images, targets[:3])]), "a target for each of 25 images"),
            ((train, iter([(images, targets)])), "read once an epoch"),
            ((train, [(images.expand(-1, 3, -1, -1), targets)]), "does not run on your data"),
        ):
            with pytest.raises(DataError, match=words):
                compare(resnet, same, data)

    def test_batch_of_one(self) -> None:
        images, targets = digits()
        model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
        train = DataLoader(TensorDataset(images[:9], targets[:9]), 8)
        test = DataLoader(TensorDataset(images[16:], targets[16:]), 8)  # ends with one image, which is no harm
        with pytest.raises(DataError, match=r"batch of 1 in epoch 1, step 2: .* drop_last=True"):
            compare(model, same, (train, test))

    def test_last_test_batch_of_one_and_lists(self) -> None:
        images, targets = digits()
        test = DataLoader(TensorDataset(images[16:], targets[16:]), 8)
        found = compare(resnet, same, {"train": [(images[:8], targets[:8].int())], "test": test})
        assert found.training is not None and found.data == OF_LISTS
        assert compare(resnet(), same, test).training is None


class TestArguments:
    def test_wrong_ones(self) -> None:
        for option, words in (
            ({"levels": "training"}, "levels: expected a list"),
            ({"levels": ["learning"]}, "levels: expected a list"),
            ({"budget": "huge"}, "budget: expected one of smoke"),
            ({"budget": ["smoke"]}, "budget: expected one of smoke"),
            ({"momentum": 0.9}, "no field 'momentum'"),
            ({"lr": math.nan}, "lr: expected"),
            ({"seeds": 0}, "seeds: expected"),
            ({"schedule": "linear"}, "schedule: expected"),
        ):
            with pytest.raises(ComparisonError, match=words):
                compare(resnet, same, **option)
        with pytest.raises(DataError, match="task: expected one of"):
            compare(resnet, same, sets(*digits()), task="detection")

    def test_nothing_to_train(self) -> None:
        with pytest.raises(ComparisonError, match="no parameter of the model requires a gradient"):
            compare(lambda: resnet().requires_grad_(False), same)

    def test_given_weights_are_noted(self) -> None:
        model = resnet()
        assert any("all seeds begin" in note for note in compare(model, same, seeds=2, levels=["training"]).notes)
        assert not compare(resnet, same, seeds=2, levels=["training"]).notes


def test_the_library_does_without_what_comparisons_need() -> None:
    code = (
        "import sys\n"
        "for name in ('PIL', 'timm', 'torchvision', 'scipy', 'accelerate', 'torchmetrics', 'matplotlib', 'rich',\n"
        "             'pandas', 'pydantic', 'tabulate'):\n"
        "    sys.modules[name] = None\n"
        "import rewriter\n"
        "try:\n"
        "    rewriter.compare(None, None)\n"
        "except rewriter.ComparisonError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "rewriter[compare]"' in done.stdout
