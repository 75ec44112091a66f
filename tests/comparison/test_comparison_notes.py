"""What a comparison says of how it was made: the data as models see them, the recipe that applied, idle rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import rewriter
from rewriter.comparison.loading import Data, data_of_user
from rewriter.comparison.model_pairs import ModelPairs
from rewriter.comparison.notes import notes_of, why_without_effect
from rewriter.comparison.result import Comparison
from rewriter.comparison.verdict import Outcome
from rewriter.errors import ComparisonError, ReportError
from rewriter.passes import Dropout

pytestmark = pytest.mark.slow

TINY = rewriter.Recipe(seeds=2, epochs=1, batch_size=8, train_images=16, test_images=9)


def preact(**options: Any) -> nn.Module:
    return timm.create_model("test_convnext", in_chans=1, num_classes=10, **options)


def post_activation(**options: Any) -> nn.Module:
    return timm.create_model("test_resnet", in_chans=1, num_classes=10, **options)


def compare(before: Any, after: Any, data: Any = "digits", **options: Any) -> Comparison:
    size = {"input_size": 32} if isinstance(data, str) else {}
    return rewriter.compare(before, after, data, **({"budget": TINY, "progress": False} | size | options))


def dropout(**options: float) -> Any:
    return lambda model: rewriter.rewrite(model, [Dropout(**options)], input_size=32)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:29, None] / 16, size=32)
    examples = TensorDataset(images, torch.tensor(data.target)[:29])
    parts = torch.utils.data.Subset(examples, range(17)), torch.utils.data.Subset(examples, range(17, 29))
    return DataLoader(parts[0], 8, drop_last=True), DataLoader(parts[1], 4)


def user_data(data: Any) -> Data:
    return data_of_user(data, None, 10, TINY)


def idle(before: nn.Module, after: nn.Module, data: Any = None, optimizer: Any = None) -> str:
    return why_without_effect(before, after, user_data(data or loaders()), torch.device("cpu"), optimizer)


class TestIdleRewrites:
    def test_without_a_place(self) -> None:
        found = compare(post_activation, dropout())
        assert found.training is None and found.change == ("nothing found by dropout",)
        assert found.notes[0].startswith("nothing was trained: no pass found a place to edit: both arms are the same")
        asked = compare(post_activation, dropout(), levels=["training"])
        assert asked.training is not None and asked.verdict.outcome is Outcome.EXACTLY_EQUAL
        assert asked.notes == ("no pass found a place to edit: both arms are the same model",)
        pairs = zip(asked.training.runs[::2], asked.training.runs[1::2], strict=True)
        assert all(before.epochs == after.epochs for before, after in pairs)

    def test_dropouts_of_rate_0_that_are_moved(self) -> None:
        class Headed(nn.Module):
            def __init__(self, rate: float) -> None:
                super().__init__()
                self.body = post_activation()
                self.drop, self.fc = nn.Dropout(rate), nn.Linear(self.body.num_features, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                features = self.body.forward_features(x).mean((2, 3))
                return self.fc(self.drop(features))  # type: ignore[no-any-return]

        for rate, idle in ((0.0, True), (0.3, False)):
            model = Headed(rate)
            after = rewriter.rewrite(model, [Dropout()], input_size=(1, 64, 64))
            report = rewriter.report(after)
            assert report.inactive if idle else report.applied
            found = compare(model, after, input_size=64)
            assert (found.training is None) is idle
            assert any("has no effect yet" in note for note in found.notes) is idle

    def test_what_is_changed_by_other_means_is_trained(self) -> None:
        def other(model: nn.Module) -> nn.Module:
            model.head.drop = nn.Dropout(0.5)
            return model

        assert compare(preact, other, seeds=1).training is not None

    def test_an_edit_behind_a_gamma_of_zero_is_not_idle(self) -> None:
        options = {"layers": (1, 1, 1, 1), "norm_layer": "groupnorm", "in_chans": 1, "num_classes": 10}
        model = timm.create_model("resnet18", **options)
        after = rewriter.rewrite(model, "group-count", only="*bn2", input_size=32)
        assert rewriter.report(after).applied
        assert idle(model, after) == ""

    def test_what_the_user_changed_beside_a_rewrite_is_not_idle(self) -> None:
        def frozen(model: nn.Module) -> None:
            model.get_submodule("conv1").requires_grad_(False)

        def slower(model: nn.Module) -> None:
            model.get_submodule("bn1").momentum = 0.01  # type: ignore[assignment]

        model = post_activation()
        assert "no pass found a place" in idle(model, dropout()(model))
        for change in (frozen, slower):
            after = dropout()(model)
            change(after)
            assert idle(model, after) == ""

    def test_the_maps_of_training_images_count(self) -> None:
        """Stochastic pooling leaves a map of one position alone, as test images may have."""
        images = torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        small = [(images[..., ::2, ::2], torch.zeros(8))]
        model = post_activation()
        after = rewriter.rewrite(model, "stochastic-pooling", input_size=64)
        assert idle(model, after, ([(images, torch.zeros(8))], small)) == ""
        assert "has no effect yet" in idle(model, after, (small, small))

    def test_weight_decay_changes_the_optimizer(self) -> None:
        def after(model: nn.Module) -> nn.Module:
            return rewriter.rewrite(model, ["weight-decay"], input_size=32)

        found = compare(preact, after, seeds=1)
        assert found.training is not None
        assert any("the optimizer of after takes its groups from rewriter.param_groups" in note for note in found.notes)
        own = compare(preact, after, seeds=1, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
        assert own.training is None and "no pass found a place" in own.notes[0]

    def test_an_optimizer_of_the_user_that_decays_by_place(self) -> None:
        def by_place(model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(rewriter.param_groups(model, 0.1, input_size=32), lr=0.01)

        model = post_activation()
        after = rewriter.rewrite(model, [{"weight-decay": {"gamma": "decay-all"}}], input_size=32)
        assert idle(model, after, optimizer=by_place) == ""
        notes = notes_of(
            ModelPairs(model, after), (model, after), user_data(loaders()), "", seeds=1, trained=True,
            optimizer=by_place, levels_given=False,
        )  # fmt: skip
        assert "it does so otherwise for after than for before" in next(notes)


class TestWhatIsSaid:
    def test_images_and_classes(self) -> None:
        found = compare(preact, dropout(p=0.1), levels=["equivalence"])
        assert found.data == "digits (9 test images of 1 × 32 × 32, 10 classes)"

    def test_weights_as_created(self) -> None:
        found = compare(preact, dropout(p=0.1), levels=["trained"])
        assert found.trained is not None and found.trained.as_created
        assert "with the weights as created" in found.verdict.sentence
        assert "weights as created, not trained, 9 test images" in str(found)

    def test_no_training_data(self) -> None:
        found = compare(preact(), dropout(p=0.1), loaders()[1])
        assert found.training is None
        assert found.notes == ("nothing was trained: your data has no training images; give (train, test)",)

    def test_recipe_of_own_parts(self) -> None:
        def half(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(output, target) / 2

        def sgd(model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=0.01)

        metric = torchmetrics.classification.MulticlassF1Score(10)
        found = compare(preact(), dropout(p=0.1), loaders(), loss=half, optimizer=sgd, metric=metric, seeds=3)
        assert found.training is not None and found.training.test_images == 12
        assert found.data == "your data (16 training and 12 test images of 1 × 32 × 32, 10 classes)"
        recipe = found.training.recipe
        decided = {"batch_size", "train_images", "test_images", "crop_scale", "hflip", "lr", "weight_decay"}
        assert not decided & recipe.keys() and recipe["seeds"] == 3 and "calibration_batches" not in recipe
        assert "half" in recipe["loss"] and "sgd" in recipe["optimizer"] and "MulticlassF1Score" in recipe["metric"]
        assert any("all seeds begin with the weights that were given" in note for note in found.notes)
        assert "12 test images" in found.verdict.sentence

    def test_rewrites_are_planned_for_the_images(self) -> None:
        """The size of an own loader's images is known to nobody else; on a map of one position nothing is pooled."""
        own = compare(lambda: nn.Sequential(post_activation()), rewriter.rewrite, loaders(), levels=["equivalence"])
        assert not any("stochastic-pooling:" in line for line in own.change) and not own.notes
        named = compare(post_activation, rewriter.rewrite, "digits", levels=["equivalence"])
        assert named.change == own.change
        other = compare(post_activation, lambda model: rewriter.rewrite(model), levels=["equivalence"])
        assert any("stochastic-pooling: 1 place" in line for line in other.change)
        assert "planned for images of 1 × 160 × 160, the data are 1 × 32 × 32" in other.notes[0]

    def test_tested_on_what_it_was_trained_on(self) -> None:
        train, _ = loaders()
        found = compare(preact, dropout(p=0.1), (train, train), levels=["equivalence"])
        assert found.notes == (
            "training and test images are the same data set, so metrics say nothing of other images",
        )

    def test_numbers_of_images_that_there_are(self) -> None:
        found = compare(
            preact, dropout(p=0.1), seeds=1, train_images=None, test_images=100_000, epochs=1, batch_size=700
        )
        assert found.training is not None
        assert (found.training.recipe["train_images"], found.training.recipe["test_images"]) == (1438, 359)

    def test_options_without_effect(self) -> None:
        with pytest.raises(ComparisonError, match="batch_size: it has no effect with your own data loaders"):
            compare(preact(), dropout(p=0.1), loaders(), batch_size=4)
        with pytest.raises(ComparisonError, match="lr: it has no effect with your own optimizer"):
            compare(preact(), dropout(p=0.1), lr=0.1, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1))

    def test_an_iterable_data_set_makes_its_own_batches(self) -> None:
        class Batches(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(loaders()[0])

            def __len__(self) -> int:
                return 2

        with pytest.raises(ComparisonError, match="train_images: it has no effect"):
            compare(preact, dropout(), (Batches(), loaders()[1]), train_images=8)

    def test_recipes_that_fit_no_batch(self) -> None:
        with pytest.raises(ComparisonError, match="one batch of batch_size=64, found 32"):
            rewriter.Recipe(batch_size=64, train_images=32)
        with pytest.raises(ComparisonError, match="give a Recipe as budget="):
            compare(preact, dropout(p=0.1), recipe=TINY)


class TestWhatCannotBeUsed:
    def test_optimizer_of_another_model(self) -> None:
        elsewhere = preact()
        with pytest.raises(ComparisonError, match="found none of them"):
            compare(preact, dropout(p=0.1), optimizer=lambda model: torch.optim.SGD(elsewhere.parameters(), lr=0.1))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"loss": nn.CrossEntropyLoss}, "found the class CrossEntropyLoss; call it first"),
            (
                {"loss": nn.CrossEntropyLoss(weight=torch.ones(3))},
                r"loss: it does not take an output of shape \(8, 10\)",
            ),
            ({"loss": nn.CrossEntropyLoss(reduction="none")}, r"found one of shape \(8,\)"),
        ],
    )
    def test_losses_and_metrics(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ComparisonError, match=words):
            compare(preact, dropout(p=0.1), **options)

    def test_functions_of_other_arguments(self) -> None:
        with pytest.raises(ComparisonError, match="after: called with the original it raised a TypeError"):
            compare(preact, lambda: preact())

    def test_outputs_that_are_not_finite(self) -> None:
        broken = preact()
        with torch.no_grad():
            broken.head.fc.bias.fill_(float("nan"))
        found = compare(broken, dropout(p=0.1), levels=["equivalence"])
        assert found.equivalence[-1].not_finite == (9, 9)
        assert "is not finite on 9 (before) and 9 (after) of 9 images" in found.verdict.sentence


class TestReports:
    def test_written_from_python(self, tmp_path: Path) -> None:
        found = compare(preact, dropout(p=0.1), directory=tmp_path, seeds=1, levels=["training"])
        assert Comparison.from_json((tmp_path / "result.json").read_text(encoding="utf-8")) == found
        assert (tmp_path / "learning_curves.png").exists()

    def test_what_was_found_is_not_lost(self, tmp_path: Path) -> None:
        (tmp_path / "summary.md").mkdir()
        with pytest.raises(ReportError, match=r"summary\.md cannot be written") as caught:
            compare(preact, dropout(p=0.1), directory=tmp_path, levels=["equivalence"])
        assert caught.value.comparison.equivalence[0].identical
