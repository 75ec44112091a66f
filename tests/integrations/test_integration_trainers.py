"""The trainers of transformers and accelerate: broken off, resumed, and read elsewhere, with our plans and groups."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from accelerate import Accelerator
from torch import nn

import rewriter
from rewriter.errors import PlanMismatchError, RewriterWarning, StorageError
from rewriter.integrations.accelerate import register
from rewriter.integrations.transformers import RewriterCallback, RewriterTrainer

CONFIG: dict[str, Any] = {
    "hidden_sizes": [16, 24, 32, 48], "depths": [1] * 4, "decoder_hidden_size": 32, "num_attention_heads": [1, 1, 2, 2],
    "num_labels": 4, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.1,
}  # fmt: skip
IMAGES = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (16, 64, 64), generator=torch.Generator().manual_seed(1))


class Scenes(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": IMAGES[index], "labels": LABELS[index]}


def segformer(folder: Path, *, calibrated: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**CONFIG))
    model = rewriter.rewrite(model, input_size=64, plan_file=folder / "rewrite-plan.json")
    if calibrated:
        rewriter.calibrate(model, [IMAGES[:8]], progress=False)
    return model


def trainer(model: nn.Module, folder: Path, steps: int) -> RewriterTrainer:
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, weight_decay=0.05,
        save_steps=2, lr_scheduler_type="constant", logging_steps=1, report_to=[], use_cpu=True, seed=3,
        disable_tqdm=True,
    )  # fmt: skip
    return RewriterTrainer(model, arguments, train_dataset=Scenes())


def losses(found: RewriterTrainer) -> list[float]:
    return [entry["loss"] for entry in found.state.log_history if "loss" in entry]


@pytest.mark.slow
class TestTransformers:
    def test_a_run_that_is_broken_off_resumes_to_the_same_curve_and_is_read_elsewhere(self, tmp_path: Path) -> None:
        whole = trainer(segformer(tmp_path), tmp_path / "whole", 4)
        whole.train()
        assert len(losses(whole)) == 4

        trainer(segformer(tmp_path), tmp_path / "broken", 2).train()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RewriterWarning)
            resumed = trainer(segformer(tmp_path, calibrated=False), tmp_path / "broken", 4)
            resumed.train(resume_from_checkpoint=True)
        assert losses(resumed) == losses(whole)
        assert all(map(torch.equal, resumed.model.state_dict().values(), whole.model.state_dict().values()))

        found = rewriter.from_pretrained(
            transformers.SegformerForSemanticSegmentation, tmp_path / "broken" / "checkpoint-4"
        )
        with torch.no_grad():
            assert torch.equal(found(IMAGES).logits, resumed.model.eval()(IMAGES).logits)
        resumed.save_model(str(tmp_path / "published"))
        again = rewriter.from_pretrained(transformers.AutoModelForSemanticSegmentation, tmp_path / "published")
        assert all(map(torch.equal, again.state_dict().values(), found.state_dict().values()))

    def test_the_optimizer_has_our_groups(self, tmp_path: Path) -> None:
        model = segformer(tmp_path)
        optimizer = trainer(model, tmp_path, 1).create_optimizer()
        rewriter.check_optimizer(model, optimizer)
        expected = rewriter.param_groups(model, 0.05)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
        for ours, theirs in zip(optimizer.param_groups, expected, strict=True):
            assert [id(p) for p in ours["params"]] == [id(p) for p in theirs["params"]] and ours["lr"] == 1e-3

    def test_a_model_that_was_not_rewritten_is_told_of_when_training_begins(self, tmp_path: Path) -> None:
        plain = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**CONFIG))
        arguments = transformers.TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True)
        found = transformers.Trainer(plain, arguments, train_dataset=Scenes(), callbacks=[RewriterCallback])
        with pytest.raises(StorageError, match="was not rewritten"):
            found.train()


class TestAccelerate:
    @pytest.mark.slow
    def test_the_plan_is_saved_with_the_state_and_compared_when_it_is_loaded(self, tmp_path: Path) -> None:
        def prepared(channels: int) -> Any:
            torch.manual_seed(0)
            passes = {"group-count": {"rule": "channels-per-group", "channels": channels}}
            model = rewriter.rewrite(timm.create_model("test_efficientnet_gn", num_classes=4), passes, input_size=64)
            accelerator = Accelerator(cpu=True)
            optimizer = torch.optim.SGD(rewriter.param_groups(model), lr=0.1)
            model, optimizer = accelerator.prepare(model, optimizer)
            register(accelerator, model)
            return accelerator, model

        accelerator, model = prepared(16)
        accelerator.save_state(str(tmp_path / "state"))
        again, other = prepared(16)
        with torch.no_grad():
            next(other.parameters()).zero_()
        again.load_state(str(tmp_path / "state"))
        assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
        different, _ = prepared(32)
        with pytest.raises(PlanMismatchError):
            different.load_state(str(tmp_path / "state"))
        assert json.loads(register(accelerator, model).state_dict()["plans"])[0]["sites"]

    def test_a_model_that_was_not_rewritten_is_refused(self) -> None:
        with pytest.raises(StorageError, match="was not rewritten"):
            register(Accelerator(cpu=True), nn.Linear(2, 2))
