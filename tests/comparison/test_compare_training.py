"""Both arms trained under the same seeds: what is equal, what is worse, what stops, and what is kept."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers import assert_unchanged, random_state, snapshot
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

import rewriter
from rewriter.comparison import training
from rewriter.comparison.findings import Training
from rewriter.comparison.result import Comparison
from rewriter.comparison.run_directory import RunFile
from rewriter.comparison.verdict import Outcome
from rewriter.errors import ComparisonError, DataError
from rewriter.layers.registry import calibrated_layers
from rewriter.passes import Dropout

pytestmark = pytest.mark.slow

TINY = rewriter.Recipe(seeds=2, epochs=2, batch_size=16, train_images=32, test_images=40, lr=1e-3)


def vit(num_classes: int = 10) -> nn.Module:
    return timm.create_model("test_vit", in_chans=1, num_classes=num_classes, img_size=32)


def resnet(num_classes: int = 10) -> nn.Module:
    return timm.create_model("test_resnet", in_chans=1, num_classes=num_classes)


def pyramid() -> nn.Module:
    """Segmentation of three classes, with maps of several scales that are concatenated."""
    return smp.PSPNet("resnet18", encoder_weights=None, in_channels=1, classes=3)


def train(before: Any, after: Any, data: Any = "digits", **options: Any) -> Comparison:
    defaults = {"budget": TINY, "levels": ["training"], "progress": False}
    if data == "digits":
        defaults["input_size"] = 32
    return rewriter.compare(before, after, data, **(defaults | options))


def runs_of(found: Comparison) -> Training:
    assert found.training is not None
    return found.training


def digits(count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:count, None] / 16, size=32)
    return images, torch.tensor(data.target)[:count]


def loaders(**options: Any) -> tuple[Any, Any]:
    images, targets = digits()
    train_set = TensorDataset(images[:32], targets[:32])
    return DataLoader(train_set, 16, **options), DataLoader(TensorDataset(images[32:], targets[32:]), 15)


class Noisy(Dataset[Any]):
    """Digits with noise from the generators of the process, or from one of its own."""

    def __init__(self, own: np.random.Generator | None = None) -> None:
        self.images, self.targets = digits(32)
        self.own = own

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = random.random() + np.random.rand() + torch.rand(()).item()
        drawn = drawn if self.own is None else self.own.random()
        return self.images[index] + drawn, self.targets[index]


@pytest.fixture(scope="module")
def null() -> Comparison:
    return train(vit, lambda model: rewriter.rewrite(model, [], input_size=32))


class TestNull:
    def test_exactly_equal(self, null: Comparison) -> None:
        assert null.verdict.outcome is Outcome.EXACTLY_EQUAL
        assert "every loss of every epoch" in null.verdict.sentence
        runs = {(run.arm, run.seed): run for run in runs_of(null).runs}
        for seed in range(2):
            assert runs["before", seed].epochs == runs["after", seed].epochs
            assert runs["before", seed].seen == runs["after", seed].seen
            assert len(set(runs["before", seed].seen)) == 2  # order and crops differ from epoch to epoch
        assert runs["before", 0].epochs != runs["before", 1].epochs

    def test_of_a_model_with_drawn_numbers(self) -> None:
        def make() -> nn.Module:
            return timm.create_model("test_vit", in_chans=1, num_classes=10, img_size=32, proj_drop_rate=0.3)

        assert train(make, lambda model: model).verdict.outcome is (Outcome.EXACTLY_EQUAL)

    def test_same_call_gives_the_same_text(self, null: Comparison) -> None:
        torch.rand(7)  # whatever the process drew before
        again = train(vit, lambda model: rewriter.rewrite(model, [], input_size=32))
        assert again.to_json(timing=False) == null.to_json(timing=False)


def test_harmful_rewrite_is_worse() -> None:
    def make() -> nn.Module:
        return timm.create_model("test_convnext", in_chans=1, num_classes=10)

    harm = [Dropout(p=0.9)]
    found = train(
        make, lambda model: rewriter.rewrite(model, harm, input_size=32, preserve="nothing"), seeds=3, epochs=3,
        batch_size=32, train_images=256, test_images=128, lr=3e-3,
    )  # fmt: skip
    assert found.verdict.outcome is Outcome.WORSE, found.verdict.sentence
    assert found.verdict.difference is not None and found.verdict.difference.mean < -0.1


class TestSameBatches:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_own_loader(self, workers: int) -> None:
        generator = torch.Generator().manual_seed(7)
        kept = generator.get_state()
        test = loaders()[1]
        loader = DataLoader(
            Noisy(), 16, shuffle=True, generator=generator, num_workers=workers, persistent_workers=workers > 0
        )
        state = random_state()
        found = train(resnet, lambda model: model, (loader, test), seeds=1)
        before, after = runs_of(found).runs
        assert before.seen == after.seen and len(set(before.seen)) == 2
        assert before.epochs == after.epochs
        assert torch.equal(generator.get_state(), kept) and random_state() == state

    def test_generators_that_cannot_be_repeated_are_told(self) -> None:
        data = DataLoader(Noisy(np.random.default_rng(0)), 16), loaders()[1]
        found = train(resnet, lambda model: model, data)
        assert "did not see the same training batches in 2 of 2 seeds" in found.verdict.sentence


class TestCallerIsLeftAlone:
    def test_models_and_process(self) -> None:
        before, after = resnet(), resnet()
        after.load_state_dict(before.state_dict())
        before.eval()
        before(torch.rand(2, 1, 32, 32)).sum().backward()
        after.layer1.requires_grad_(False)
        states = [(model, snapshot(model)) for model in (before, after)]
        threads = torch.get_num_threads()
        found = train(lambda: before, lambda model: after, loaders(), epochs=1)
        assert "every loss" not in found.verdict.sentence  # a layer of after is frozen
        for model, state in states:
            assert_unchanged(model, state)
        assert torch.get_num_threads() == threads

    def test_accelerate(self) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        own = Accelerator(mixed_precision="bf16", cpu=True)
        train(resnet, lambda model: model, loaders(), epochs=1, seeds=1)
        assert own.mixed_precision == "bf16" and own.state.num_processes == 1
        AcceleratorState._reset_state(reset_partial_state=True)
        train(resnet, lambda model: model, loaders(), epochs=1, seeds=1)
        assert Accelerator(mixed_precision="bf16", cpu=True).mixed_precision == "bf16"
        AcceleratorState._reset_state(reset_partial_state=True)


class TestStops:
    def test_broken_arm(self, capsys: pytest.CaptureFixture[str]) -> None:
        def broken(model: nn.Module) -> nn.Module:
            model.fc.bias.data[0] = torch.nan
            return model

        found = train(resnet, broken, loaders(), progress=True)
        assert found.verdict.outcome is Outcome.WORSE
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.endswith(" s, stopped: loss nan in epoch 1, step 1") for line in lines) == 2
        assert "after stopped in 2 of 2 seeds: loss nan in epoch 1, step 1 (seeds 0, 1)" in found.verdict.sentence
        assert Comparison.from_json(found.to_json()).to_json() == found.to_json()
        assert "stopped" in str(found) and "nan" in found.to_csv()

    def test_both_arms(self) -> None:
        found = train(resnet, lambda model: model, loaders(), optimizer=lambda m: torch.optim.SGD(m.parameters(), 1e12))
        assert found.verdict.outcome is Outcome.UNDECIDED and "stopped in 2 of 2 seeds" in found.verdict.sentence
        assert all(run.stopped and run.final is None for run in runs_of(found).runs)

    def test_loss_of_the_user(self) -> None:
        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(output, target) * (torch.nan if (target == 3).any() else 1.0)

        found = train(resnet, lambda model: model, loaders(), loss=loss, seeds=1)
        assert all("loss nan" in run.stopped for run in runs_of(found).runs)

    def test_metric_that_is_not_finite(self) -> None:
        class Broken(MulticlassAccuracy):
            def compute(self) -> torch.Tensor:
                return super().compute() / 0.0 * 0.0

        found = train(resnet, lambda model: model, loaders(), metric=Broken(10))
        assert found.verdict.outcome is Outcome.UNDECIDED and "no finite Broken" in found.verdict.sentence


class TestOwnLossAndMetric:
    def test_class_weights(self) -> None:
        weighted = nn.CrossEntropyLoss(torch.linspace(0.5, 2, 10), label_smoothing=0.1)
        metrics = {
            "balanced": MulticlassAccuracy(10),
            "micro": MulticlassAccuracy(10, average="micro"),
        }
        found = train(resnet, lambda model: model, loaders(), loss=weighted, metric=metrics)
        assert runs_of(found).metric == "balanced" and set(runs_of(found).runs[0].epochs[0].metrics) == set(metrics)
        plain = train(resnet, lambda model: model, loaders(), metric=metrics)
        assert runs_of(plain).runs[0].epochs[0].test_loss != runs_of(found).runs[0].epochs[0].test_loss

    def test_several_labels(self) -> None:
        images, numbers = digits()
        targets = torch.stack([numbers % 2, numbers // 5, numbers % 3 == 0], 1).float()
        data = TensorDataset(images[:32], targets[:32]), TensorDataset(images[32:], targets[32:])
        found = train(lambda: resnet(3), lambda m: m, data, task="multi-label", levels=["equivalence", "training"])
        assert runs_of(found).metric == "mAP" and found.verdict.outcome is Outcome.EXACTLY_EQUAL
        own = train(lambda: resnet(3), lambda m: m, data, task="multi-label", metric=MultilabelAccuracy(3), seeds=1)
        assert runs_of(own).metric == "MultilabelAccuracy"
        with pytest.raises(DataError, match=r"targets of 1 dimensions.*task="):
            train(lambda: resnet(3), lambda m: m, data)

    @pytest.mark.parametrize("columns", [None, 1])
    def test_values_to_be_met(self, columns: int | None) -> None:
        class Regression(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = resnet(1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = self.body(x)
                return found if columns else found[:, 0]

        images, numbers = digits()
        values = numbers.float()[:, None] if columns else numbers.float()
        data = TensorDataset(images[:32], values[:32]), TensorDataset(images[32:], values[32:])
        found = train(
            Regression, lambda model: model, data, loss=F.mse_loss, metric=MeanSquaredError(),
            levels=["equivalence", "trained", "training"], seeds=2,
        )  # fmt: skip
        assert not runs_of(found).higher_is_better and found.verdict.outcome is Outcome.EXACTLY_EQUAL
        assert found.equivalence[0].agreement is None and found.trained is not None

    def test_wrong_ones(self) -> None:
        same: Callable[[nn.Module], nn.Module] = lambda model: model  # noqa: E731
        for option, words in (
            ({"loss": lambda output, target: output}, "tensor of one number"),
            ({"metric": MulticlassAccuracy(10, average=None)}, "choose an average"),
            ({"metric": MulticlassAccuracy(4)}, "metric 'MulticlassAccuracy' cannot be updated"),
            ({"metric": {}}, "at least one"),
            ({"metric": {"error": 1 - MulticlassAccuracy(10)}}, "'error' does not say whether higher"),
            ({"optimizer": lambda model: torch.optim.LBFGS(model.parameters())}, "found LBFGS, which runs the model"),
            ({"optimizer": "adahessian"}, "second derivatives"),
            ({"optimizer": 3}, "a function of the model"),
            ({"optimizer": "addam"}, "addam"),
            ({"optimizer": lambda model: None}, "torch.optim.Optimizer"),
            ({"budget": rewriter.Recipe(optimizer="addam")}, "addam"),
        ):
            with pytest.raises(ComparisonError, match=words):
                train(resnet, same, loaders(), **option)


class TestWhatThePassesNeed:
    def test_calibration_and_decay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[nn.Module, list[dict[str, Any]]]] = []
        make = training._optimizer

        def noted(model: nn.Module, setting: Any) -> torch.optim.Optimizer:
            made = make(model, setting)
            seen.append((model, made.param_groups))
            return made

        monkeypatch.setattr(training, "_optimizer", noted)
        passes = ["scale-equalizer", "weight-decay"]
        found = train(
            pyramid,
            lambda model: rewriter.rewrite(model, passes, input_size=64), "mri-seg", batch_size=4, train_images=8,
            test_images=4, input_size=64, seeds=1, epochs=1,
        )  # fmt: skip
        (before, by_rule), (after, by_place) = seen
        layers = calibrated_layers(after)
        assert not calibrated_layers(before) and layers and all(layer.calibrated for layer in layers.values())
        assert len({layer.constants()[0] for layer in layers.values()} - {(0.0, 1.0)}) > 0
        assert {group["weight_decay"] for group in by_rule} == {0.0, 0.05}
        wanted = rewriter.param_groups(after, weight_decay=0.05)
        assert [group["weight_decay"] for group in by_place] == [group["weight_decay"] for group in wanted]
        assert found.verdict.outcome is Outcome.UNDECIDED  # one seed


class TestPrecision:
    def test_bf16(self, null: Comparison) -> None:
        kinds = []

        def noted(model: nn.Module) -> torch.optim.Optimizer:
            model.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
            assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
            return torch.optim.AdamW(model.parameters(), 1e-3)

        found = train(vit, lambda model: model, mixed_precision="bf16", optimizer=noted, seeds=1)
        assert torch.bfloat16 in kinds
        mine, exact = (runs_of(item).runs[0].epochs[0].test_loss for item in (found, null))
        assert mine != exact and abs(mine - exact) < 0.05
        assert runs_of(found).runs[0].epochs == runs_of(found).runs[1].epochs

    @pytest.mark.skipif(torch.accelerator.is_available(), reason="asks what a CPU says")
    def test_refused(self) -> None:
        with pytest.raises(ComparisonError, match="mixed_precision='fp16' cannot be used on cpu"):
            train(resnet, lambda model: model, mixed_precision="fp16")
        with pytest.raises(ComparisonError, match="device: expected one that is there, found 'cuda'"):
            train(resnet, lambda model: model, device="cuda")
        with pytest.raises(ComparisonError, match="device: expected such as 'cpu'"):
            train(resnet, lambda model: model, device="nonsense")

    def test_calibration_in_double(self) -> None:
        model = pyramid().double()
        after = rewriter.rewrite(model, "scale-equalizer", input_size=64)
        images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        data = [(images, (images[:, 0] * 3).long())]
        found = train(model, after, (data, data), task="segmentation", num_classes=3, seeds=1, epochs=1)
        assert not any(run.stopped for run in runs_of(found).runs)

    def test_double(self) -> None:
        found = train(lambda: resnet().double(), lambda model: model, loaders(), levels=None, seeds=1)
        assert found.equivalence[0].identical and not runs_of(found).runs[0].stopped


@contextlib.contextmanager
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytearray]:
    """Standard error is a terminal; gives what it showed, once the block has ended."""
    shown = bytearray()
    ours, theirs = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 4096):
                shown.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", terminal)
        yield shown
    reader.join()
    os.close(ours)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, null: Comparison) -> Path:
    """The directory of the finished comparison ``null``."""
    place = tmp_path_factory.mktemp("kept")
    found = train(vit, lambda model: rewriter.rewrite(model, [], input_size=32), directory=place)
    assert found.to_json(timing=False) == null.to_json(timing=False)
    return place


class TestRunDirectory:
    def again(self, place: Path, **options: Any) -> Comparison:
        return train(vit, lambda model: rewriter.rewrite(model, [], input_size=32), directory=place, **options)

    @pytest.mark.parametrize("left", [1, 4])
    def test_goes_on(
        self, left: int, kept: Path, null: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        lines = (tmp_path / "runs.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == 5
        (tmp_path / "runs.jsonl").write_bytes(b"".join(lines[: left + 1]) + (lines[left + 1][:99] if left < 4 else b""))
        trained = []
        once = rewriter.comparison.experiment.train
        monkeypatch.setattr(
            "rewriter.comparison.experiment.train", lambda *args: trained.append(args[1:3]) or once(*args)
        )
        assert self.again(tmp_path).to_json(timing=False) == null.to_json(timing=False)
        assert len(trained) == 4 - left
        assert (tmp_path / "runs.jsonl").read_bytes().startswith(b"".join(lines[: left + 1]))

    def test_more_seeds_keep_the_first(self, kept: Path, tmp_path: Path) -> None:
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        found = self.again(tmp_path, seeds=3)
        assert found.verdict.outcome is Outcome.EXACTLY_EQUAL and len(runs_of(found).runs) == 6

    def test_what_is_told(
        self, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = (kept / "runs.jsonl").read_bytes().splitlines(keepends=True)
        there = f"3 of 4 runs are in {tmp_path}, 1 to train"
        for progress in (False, True):
            (tmp_path / "runs.jsonl").write_bytes(b"".join(lines[:4]))
            self.again(tmp_path, progress=progress)
            told = capsys.readouterr().err.splitlines()
            if not progress:
                assert told == []
        assert told[0] == there and len(told) == 2
        assert re.fullmatch(r"run 4 of 4: before, seed 1, [\d.]+ s, top1 0\.\d+", told[1])
        (tmp_path / "runs.jsonl").write_bytes(b"".join(lines[:4]))
        with on_a_terminal(monkeypatch) as shown:
            self.again(tmp_path, progress=True)
        assert f"{there}\r\n".encode() in shown and b"training 1 run " in shown and b"run 4 of 4" not in shown

    def test_what_another_process_added(self, kept: Path, tmp_path: Path) -> None:
        lines = (kept / "runs.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "runs.jsonl").write_bytes(b"".join(lines[:3]))
        header = json.loads(lines[0])
        question = {name: value for name, value in header.items() if isinstance(value, dict)}
        with RunFile(tmp_path, question, restart=False, owner=True) as file:
            with (tmp_path / "runs.jsonl").open("ab") as other:
                other.write(lines[3] + lines[4][:50])
            assert len(file.results) == 2
            file.read_again()
            assert len(file.results) == 3

    def test_another_question(self, kept: Path) -> None:
        content = (kept / "runs.jsonl").read_bytes()
        with pytest.raises(ComparisonError, match=r"lr is 0\.01 now and 0\.001 in the file.*--restart"):
            self.again(kept, lr=1e-2)
        with pytest.raises(ComparisonError, match="metric"):
            self.again(kept, metric=MulticlassAccuracy(10))
        assert (kept / "runs.jsonl").read_bytes() == content

    def test_what_only_training_shows_is_another_question(self, tmp_path: Path) -> None:
        def noisy(p: float) -> nn.Module:
            torch.manual_seed(0)
            return timm.create_model("test_vit", in_chans=1, num_classes=10, img_size=32, proj_drop_rate=p)

        before = noisy(0.0)
        options = {"directory": tmp_path, "seeds": 1, "epochs": 1}
        train(before, noisy(0.1), **options)
        with pytest.raises(ComparisonError, match="modules"):
            train(before, noisy(0.9), **options)
        train(before, noisy(0.9), restart=True, **options)

    def test_other_images_of_the_same_number(self, tmp_path: Path) -> None:
        data = loaders()
        options = {"directory": tmp_path, "seeds": 1, "epochs": 1}
        train(resnet, lambda model: model, data, **options)
        images, targets = digits()
        other = data[0], DataLoader(TensorDataset(images[32:] * 2, targets[32:]), 15)
        with pytest.raises(ComparisonError, match="first test batch"):
            train(resnet, lambda model: model, other, **options)

    def test_directory_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ComparisonError, match="cannot be made"):
            train(resnet, lambda model: model, loaders(), directory=tmp_path / "file")


def test_no_room_for_a_line(kept: Path, tmp_path: Path) -> None:
    import resource
    import signal

    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "runs.jsonl"
    content = path.read_bytes()
    header = json.loads(content.splitlines()[0])
    question = {name: value for name, value in header.items() if isinstance(value, dict)}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with RunFile(tmp_path, question, restart=False, owner=True) as file:
        run = next(iter(file.results.values()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 50, limits[1]))
        try:
            with pytest.raises(ComparisonError, match=r"runs\.jsonl cannot be written: File too large"):
                file.append(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.read_bytes() == content
        file.append(run)
    assert path.read_bytes().startswith(content) and path.read_bytes().endswith(b"}\n")
