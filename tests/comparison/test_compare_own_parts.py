"""Loaders, losses, metrics and optimizers of the user's own: what they keep of one arm does not reach the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

import rewriter
from rewriter.comparison.randomness import batches
from rewriter.comparison.result import Comparison
from rewriter.comparison.scoring import _alone, computed, scoring_of
from rewriter.comparison.verdict import Outcome
from rewriter.data import Task
from rewriter.errors import ComparisonError

pytestmark = pytest.mark.slow


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", in_chans=1, num_classes=10)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:48, None] / 16, size=32)
    return images, torch.tensor(data.target)[:48]


def train(before: Any, after: Any, data: Any, **options: Any) -> Comparison:
    defaults = {"budget": rewriter.Recipe(seeds=2, epochs=2), "levels": ["training"], "progress": False}
    return rewriter.compare(before, after, data, **(defaults | options))


class TestLoaders:
    def test_generators_of_samplers_and_of_data_sets_in_others(self) -> None:
        class Drawn(Dataset[Any]):
            generator = torch.Generator()

            def __len__(self) -> int:
                return 8

            def __getitem__(self, index: int) -> float:
                return index + torch.rand((), generator=self.generator).item()

        class Shuffled(Sampler[list[int]]):
            generator = torch.Generator()

            def __iter__(self) -> Iterator[list[int]]:
                yield from torch.randperm(8, generator=self.generator).view(2, 4).tolist()

        loader = DataLoader(ConcatDataset([Subset(Drawn(), range(8))]), batch_sampler=Shuffled())
        kept = [Drawn.generator.get_state(), Shuffled.generator.get_state()]
        first, second, other = (torch.cat([*batches(loader, 0, epoch)]) for epoch in (1, 1, 2))
        assert torch.equal(first, second) and not torch.equal(first, other)
        assert torch.equal(Drawn.generator.get_state(), kept[0])
        assert torch.equal(Shuffled.generator.get_state(), kept[1])

    def test_batches_and_a_loss_that_remembers(self) -> None:
        class InPlace(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = resnet()

            def forward(self, x: torch.Tensor) -> Any:
                return self.body(x.mul_(2).sub_(1))

        class Remembering(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mean", torch.ones(()))

            def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                found = F.cross_entropy(output, target)
                self.mean.mul_(0.9).add_(found.detach(), alpha=0.1)
                return found / self.mean

        images, targets = digits()
        data = [(images[:16], targets[:16]), (images[16:32], targets[16:32])], [(images[32:], targets[32:])]
        given, loss = images.clone(), Remembering()
        found = train(InPlace, lambda model: model, data, loss=loss, levels=["equivalence", "training"])
        assert found.equivalence[0].identical and found.verdict.outcome is Outcome.EXACTLY_EQUAL
        assert torch.equal(images, given) and loss.mean == 1

    def test_other_training_batches_losses_and_metrics(self, tmp_path: Path) -> None:
        def again(batch_size: int, lr: float = 0.1, **options: Any) -> None:
            data = DataLoader(TensorDataset(images[:32], targets[:32]), batch_size), [(images[32:], targets[32:])]
            model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
            model.load_state_dict(weights)
            own = {"loss": nn.CrossEntropyLoss(), "metric": MulticlassAccuracy(10)} | options
            train(
                model, lambda model: model, data, directory=tmp_path, seeds=1, epochs=1,
                optimizer=lambda m: torch.optim.SGD(m.parameters(), lr), **own,
            )  # fmt: skip

        images, targets = digits()
        weights = {"1.weight": torch.zeros(10, 1024), "1.bias": torch.zeros(10)}
        again(16)
        again(16)
        for batch_size, lr, options, words in (
            (8, 0.1, {}, "training batches is 4 now and 2"),
            (16, 0.2, {}, "optimizer is"),
            (16, 0.1, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "loss is"),
            (16, 0.1, {"loss": nn.CrossEntropyLoss(torch.ones(10))}, "loss is"),
            (16, 0.1, {"metric": MulticlassAccuracy(10, average="micro")}, "MulticlassAccuracy is"),
        ):
            with pytest.raises(ComparisonError, match=words):
                again(batch_size, lr, **options)


class TestMetrics:
    def test_metrics_that_are_in_use_or_made_of_others(self) -> None:
        used = MulticlassAccuracy(10)
        used.update(torch.eye(10), torch.arange(10))
        found = scoring_of(Task.CLASSIFICATION, 10, None, metric={"used": used, "error": 1 - used}).metrics()
        for metric in found.values():
            metric.update(torch.eye(10), torch.arange(10).flip(0))
        assert computed(found) == {"used": 0, "error": 1} and used.compute() > 0.99
        assert {part.distributed_available_fn for metric in found.values() for part in metric.modules()} == {_alone}

    def test_metrics_count_in_little_memory_on_a_gpu(self) -> None:
        """Where torch is told to be deterministic, torchmetrics counts in pixels times the square of classes."""

        class Noted(MulticlassJaccardIndex):
            def update(self, *args: Any) -> None:
                seen.append(torch.are_deterministic_algorithms_enabled())
                super().update(*args)

        seen: list[bool] = []
        scoring = scoring_of(Task.SEGMENTATION, 3, None, metric=Noted(3))
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            scoring.update(scoring.metrics(), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        finally:
            torch.use_deterministic_algorithms(False)
        assert seen == [False]


class TestOwnOptimizer:
    def test_of_a_part_with_clipping(self) -> None:
        """The gradient of the rest counts for the norm, but that of one batch only."""
        norms = []

        class Noted(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                norms.append(self.rest.weight.grad.norm().item())
                super().step(closure)

        def of_part(model: nn.Module) -> torch.optim.Optimizer:
            found = Noted(model[2].parameters(), lr=1e-30)
            found.rest = model[1]
            return found

        images, targets = digits()
        model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4), nn.Linear(4, 10))
        data = [(images[:16], targets[:16])], [(images[32:], targets[32:])]
        train(model, lambda model: model, data, optimizer=of_part, clip_grad=1e-3, seeds=1, epochs=3)
        assert len(norms) == 6 and len(set(norms)) == 1

    def test_that_tests_other_weights_than_it_trains(self) -> None:
        """As schedule-free ones do: its modes follow the model's."""
        told = []

        class Switched(torch.optim.SGD):
            def train(self) -> None:
                told.append("train")

            def eval(self) -> None:
                told.append("eval")

            def step(self, closure: Any = None) -> None:
                told.append("step")
                super().step(closure)

        images, targets = digits()
        train(
            resnet,
            lambda m: m,
            ([(images[:16], targets[:16])] * 2, [(images[32:], targets[32:])]),
            optimizer=lambda m: Switched(m.parameters(), 1e-3),
            seeds=1,
            epochs=1,
        )
        assert told == ["eval", "train", "step", "step", "eval"] * 2
