"""Lightning's callback: when it rewrites, what its checkpoints hold, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rewriter
from rewriter.errors import ModelError, PlanError, PlanMismatchError, RewriterError
from rewriter.layers.registry import calibrated_layers
from rewriter.planning.record import records_of

lightning = pytest.importorskip("lightning", reason="needs the extra trainers")
from rewriter.integrations.lightning import RewriterCallback, RewriterMixin  # noqa: E402

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LOADER = DataLoader(TensorDataset(IMAGES, torch.randint(0, 4, (16,))), 8)


class Fusing(nn.Module):
    """Norms of groups, dropout that is misplaced, and maps of two scales side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("test_efficientnet_gn", num_classes=0, global_pool="", drop_rate=0.2)
        channels = self.body.num_features
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 8, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coarse = nn.functional.interpolate(self.coarse(self.body(x)), x.shape[-2:], mode="bilinear")
        return self.head(torch.cat([self.fine(x), coarse], 1)).mean((2, 3))


class Plain(lightning.LightningModule):
    late: Any = None

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = Fusing() if model is None else model

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def test_step(self, batch: Any, index: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(rewriter.param_groups(self.model, 0.1, input_size=64), lr=0.1)

    def on_fit_start(self) -> None:
        if self.late is not None:
            self.model = self.late(self.model)


class Mixed(RewriterMixin, Plain):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.seen = checkpoint["epoch"]


def trainer(*callbacks: Any, epochs: int = 1) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, callbacks=list(callbacks), **quiet
    )


def fitted(module: Any, file: Path, *passes: Any) -> Any:
    found = trainer(RewriterCallback(*passes, input_size=64))
    found.fit(module, LOADER)
    found.save_checkpoint(file)
    return module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


class TestTheCheckpoint:
    @pytest.mark.parametrize("weights_only", [False, True])
    def test_load_from_checkpoint_makes_the_rewritten_model(self, file: Path, weights_only: bool) -> None:
        module = Mixed()
        found = trainer(RewriterCallback(input_size=64))
        found.fit(module, LOADER)
        found.save_checkpoint(file, weights_only=weights_only)
        torch.manual_seed(7)
        loaded = Mixed.load_from_checkpoint(file)
        assert loaded.seen == 1 and len(records_of(loaded.model)) == 1
        with torch.no_grad():
            assert torch.equal(loaded.model.eval()(IMAGES), module.model.eval()(IMAGES))

    def test_a_class_without_the_mixin_refuses_it(self, file: Path) -> None:
        fitted(Plain(), file)
        with pytest.raises(RuntimeError, match="rewriter_plan"):
            Plain.load_from_checkpoint(file)

    def test_a_run_that_resumes_goes_by_its_plan_and_is_calibrated_once(self, file: Path) -> None:
        module = fitted(Plain(), file, ["scale-equalizer", "group-count"])
        (kept,) = [layer.constants() for layer in calibrated_layers(module.model).values()]
        assert kept != [(0.0, 1.0)] * 2
        weights = copy.deepcopy(module.model.state_dict())

        again = Plain()
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.add_(torch.randn_like(parameter))  # looks trained: alone, group-count would be held back
        seen = {}

        class Look(lightning.Callback):
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                seen.update(copy.deepcopy(pl_module.model.state_dict()))

        callback = RewriterCallback(["scale-equalizer", "group-count"], input_size=64)
        trainer(callback, Look(), epochs=2).fit(again, LOADER, ckpt_path=file)
        assert all(torch.equal(seen[key], tensor) for key, tensor in weights.items()) and len(seen) == len(weights)
        (after,) = [layer.constants() for layer in calibrated_layers(again.model).values()]
        assert after == kept
        assert records_of(again.model)[-1].plan.edits == records_of(module.model)[-1].plan.edits

    def test_testing_a_checkpoint_rewrites_a_fresh_module(self, file: Path) -> None:
        module = fitted(Plain(), file)
        expected = trainer().test(module, LOADER, verbose=False)
        fresh = Plain()
        assert trainer(RewriterCallback()).test(fresh, LOADER, ckpt_path=file, verbose=False) == expected
        assert records_of(fresh.model)

    def test_the_checkpoint_of_another_run_is_refused(self, file: Path) -> None:
        fitted(Plain(), file, "dropout")
        with pytest.raises(PlanError, match="the checkpoint is a plan of dropout; asked for: group-count"):
            trainer(RewriterCallback("group-count", input_size=64)).fit(Plain(), LOADER, ckpt_path=file)
        without = trainer()
        without.fit(Plain(), LOADER)
        without.save_checkpoint(file)
        with pytest.raises(PlanError, match=r"has no plan, and Plain.model is rewritten.*without ckpt_path"):
            trainer(RewriterCallback(input_size=64)).fit(Plain(), LOADER, ckpt_path=file)
        assert trainer(RewriterCallback()).test(Plain(), LOADER, ckpt_path=file, verbose=False)

    def test_a_rewritten_module_is_copied_and_pickled_with_its_hooks(self, file: Path) -> None:
        module = fitted(Plain(), file)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            checkpoint: dict[str, Any] = {}
            copied.on_save_checkpoint(checkpoint)
            assert checkpoint["rewriter"]["part"] == "model"
            assert copied.on_save_checkpoint.args[0] is copied


class TestWhenItRewrites:
    def test_a_second_fit_and_an_evaluation_leave_the_model(self, file: Path) -> None:
        module = fitted(Plain(), file)
        model = module.model
        trainer(RewriterCallback(input_size=64)).fit(module, LOADER)
        assert module.model is model
        untouched = Plain()
        trainer(RewriterCallback(input_size=64)).test(untouched, LOADER, verbose=False)
        assert not records_of(untouched.model)

    def test_a_model_without_equalizers_needs_no_calibration(self) -> None:
        model = timm.create_model("test_vit", img_size=64, num_classes=4, drop_rate=0.2)
        trainer(RewriterCallback("dropout")).fit(Plain(model), LOADER)

    @pytest.mark.parametrize("late", [rewriter.rewrite, lambda model: Fusing()], ids=["rewrite", "exchange"])
    def test_a_late_rewrite_is_refused(self, late: Any) -> None:
        module = Plain()
        module.late = late
        with pytest.raises(RewriterError, match=r"Plain.model was rewritten or exchanged after its optimizers"):
            trainer(RewriterCallback("dropout", input_size=64)).fit(module, LOADER)

    def test_a_module_without_the_part_is_told_which_it_has(self) -> None:
        with pytest.raises(ModelError, match=r"Plain has no module 'net' .* its modules: model.*part="):
            trainer(RewriterCallback(part="net")).fit(Plain(), LOADER)

    def test_a_model_with_another_plan_refuses_the_weights(self, file: Path) -> None:
        fitted(Mixed(), file)
        other = rewriter.rewrite(
            Fusing(), {"group-count": {"rule": "channels-per-group", "channels": 32}}, input_size=64
        )
        module = Plain(other)
        state = torch.load(file, weights_only=False)["state_dict"]
        with warnings.catch_warnings(), pytest.raises(PlanMismatchError):
            warnings.simplefilter("error")
            module.load_state_dict(state)
