"""A checkpoint knows the edits of its model: the mark, and what loading says."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from helpers import assert_unchanged, snapshot
from timm.utils import ModelEmaV3
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.errors import ModelError, PlanMismatchError, RewriterError, RewriterWarning
from rewriter.passes import GroupCount
from rewriter.passes.group_count.rules import channels_per_group, nearest
from rewriter.planning.mark import MARK, has_mark

X = torch.randn(2, 3, 64, 64)


def original(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet_gn", num_classes=4, **options)


def rewritten(channels: int = 16, **options: Any) -> nn.Module:
    passes = GroupCount(rule="channels-per-group", channels=channels)
    return rewriter.rewrite(original(**options), passes, input_size=64)


@pytest.fixture
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewriterWarning)
        yield


def mark(model: nn.Module) -> list[int]:
    return model.state_dict()[MARK].tolist()


class TestTheMark:
    @pytest.mark.thorough
    def test_it_is_there_for_edits_that_change_the_output_and_only_for_these(self) -> None:
        model = rewritten()
        buffer = model.get_buffer(MARK)
        assert [key for key in model.state_dict() if key != MARK] == list(original().state_dict())
        assert buffer.dtype == torch.uint8 and buffer.shape == (16,)
        for passes in ("dropout", "stochastic-pooling", "scale-equalizer"):
            assert not has_mark(rewriter.rewrite(original(drop_rate=0.1), passes, input_size=64))

    @pytest.mark.slow
    def test_it_is_that_of_the_edits(self) -> None:
        assert mark(rewritten(16)) == mark(rewritten(16)) != mark(rewritten(32))
        other = rewriter.rewrite(original(), GroupCount(rule=nearest(channels_per_group(16))), input_size=96)
        assert mark(other) == mark(rewritten(16))  # whatever found them, and at whatever size

    @pytest.mark.slow
    def test_dilations_and_numbers_written_in_the_code(self, import_text: Any) -> None:
        entry = zoo.create("smp:deeplabv3-resnet18", encoder_weights=None)
        assert has_mark(rewriter.rewrite(entry.model, "atrous-rates", input_size=128, preserve="nothing"))
        text = (
            "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n"
            "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.conv = nn.Conv2d(3, 64, 3)\n\n"
            "    def forward(self, x):\n        return F.group_norm(self.conv(x), 32)\n"
        )
        found = [
            rewriter.rewrite(import_text(code).Net(), "group-count", input_size=16)
            for code in (text, text.replace("        return", "        # said in another line\n        return"))
        ]
        assert mark(found[0]) == mark(found[1])

    @pytest.mark.slow
    def test_copies_pickles_and_a_second_rewrite_have_it(self) -> None:
        model = rewritten()
        for found in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            rewriter.rewrite(model, "dropout", input_size=64),
        ):
            assert mark(found) == mark(model) and list(found.state_dict()) == list(model.state_dict())
            found.load_state_dict(model.state_dict(), strict=True)
            with pytest.raises(PlanMismatchError):
                found.load_state_dict(rewritten(32).state_dict())
        again = rewriter.rewrite(model, GroupCount(rule="channels-per-group", channels=32), input_size=64)
        assert mark(again) != mark(model)

    @pytest.mark.slow
    def test_undo_and_the_original_state_dict_take_it_out_and_say_so(self) -> None:
        model = rewritten()
        with pytest.warns(RewriterWarning, match=r"rewriter.original_state_dict .* num_groups \d+ -> \d+"):
            state = rewriter.original_state_dict(model)
        assert list(state) == list(original().state_dict())
        with pytest.warns(RewriterWarning, match="rewriter.undo gives weights for the original"):
            undone = rewriter.undo(model)
        assert list(undone.state_dict()) == list(original().state_dict()) and has_mark(model)
        assert undone._load_state_dict_pre_hooks == original()._load_state_dict_pre_hooks
        assert undone._state_dict_pre_hooks == original()._state_dict_pre_hooks

    @pytest.mark.slow
    def test_calibrated_equalizers_are_named_as_well(self, quiet: None) -> None:
        entry = zoo.create("smp:fpn-resnet18", encoder_weights=None)
        model = rewriter.rewrite(entry.model, {"scale-equalizer": {"additive": True}}, input_size=64)
        rewriter.original_state_dict(model)
        rewriter.calibrate(model, [torch.randn(4, 3, 64, 64)], progress=False)
        with pytest.raises(RewriterWarning, match=r"scale_equalizer: calibrated"):
            rewriter.original_state_dict(model)

    @pytest.mark.thorough
    def test_to_empty_and_averages_leave_the_digest(self, quiet: None) -> None:
        model = rewritten()
        with torch.device("meta"):
            empty = rewriter.rewrite(
                timm.create_model("test_efficientnet_gn", num_classes=4),
                GroupCount(rule="channels-per-group", channels=16), input_size=64, verify=False,
            )  # fmt: skip
        empty = empty.to_empty(device="cpu")
        empty.get_buffer(MARK).fill_(7)
        assert mark(empty) == mark(model)
        empty.load_state_dict(model.state_dict())
        assert torch.equal(empty.eval()(X), model.eval()(X))
        for ema in (ModelEmaV3(model, decay=0.5), torch.optim.swa_utils.AveragedModel(model, use_buffers=True)):
            ema.update(model) if isinstance(ema, ModelEmaV3) else ema.update_parameters(model)
            assert mark(ema.module) == mark(model)
            ema.module.load_state_dict(model.state_dict())

    def test_a_name_that_is_taken_is_refused(self) -> None:
        model = original()
        model.rewriter_plan = "mine"
        before = snapshot(model)
        with pytest.raises(ModelError, match="'rewriter_plan' of its own"):
            rewriter.rewrite(model, "group-count", input_size=64)
        assert_unchanged(model, before)


class TestLoading:
    @pytest.mark.slow
    def test_the_same_edits_load_in_silence_in_every_format(self, quiet: None, tmp_path: Path) -> None:
        model, other = rewritten(), rewritten()
        state = model.state_dict()
        torch.save(state, tmp_path / "state.pt")
        safetensors.torch.save_file(state, tmp_path / "state.safetensors")
        for found in (
            torch.load(tmp_path / "state.pt"),
            safetensors.torch.load_file(tmp_path / "state.safetensors"),
            dict(state),
            {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()},
        ):
            assert not other.load_state_dict(found, strict=True).unexpected_keys
        other.load_state_dict(state, assign=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("inside", [False, True], ids=["itself", "a part of another model"])
    def test_other_edits_are_refused_before_anything_is_copied(self, inside: bool) -> None:
        model, state = rewritten(16), rewritten(32).state_dict()
        if inside:
            model, state = nn.ModuleDict({"model": model}), {f"model.{key}": value for key, value in state.items()}
        with torch.no_grad():
            for value in state.values():
                value.add_(1)
        before = snapshot(model)
        with pytest.raises(RuntimeError, match=r"the state dict is of a model with other edits.*plan_file=") as caught:
            model.load_state_dict(state)
        assert isinstance(caught.value, RewriterError)
        assert_unchanged(model, before)
        own = mark(rewritten(16))
        with pytest.warns(RewriterWarning, match="is of a model with other edits"):
            model.load_state_dict(state, strict=False)
        assert next(value for key, value in model.state_dict().items() if key.endswith(MARK)).tolist() == own

    @pytest.mark.slow
    def test_the_originals_loads_with_a_warning(self) -> None:
        model = rewritten()
        with pytest.warns(RewriterWarning, match="carries no mark of a plan: it is the original's"):
            model.load_state_dict(original().state_dict(), strict=True)
        assert mark(model) == mark(rewritten())

    @pytest.mark.slow
    def test_into_the_original_the_mark_is_an_unexpected_key(self) -> None:
        with pytest.raises(RuntimeError, match=r'Unexpected key.* "rewriter_plan"'):
            original().load_state_dict(rewritten().state_dict())
        kept = rewriter.rewrite(original(drop_rate=0.1), "dropout", input_size=64)
        with pytest.raises(RuntimeError, match=r'Unexpected key.* "rewriter_plan"'):
            kept.load_state_dict(rewritten().state_dict())

    def test_edits_that_keep_the_output_never_stand_in_the_way(self, quiet: None) -> None:
        plain, kept = original(drop_rate=0.1), rewriter.rewrite(original(drop_rate=0.1), "dropout", input_size=64)
        kept.load_state_dict(plain.state_dict())
        plain.load_state_dict(kept.state_dict())

    @pytest.mark.slow
    def test_a_saved_directory_keeps_it(self, quiet: None, tmp_path: Path) -> None:
        model = rewritten()
        rewriter.save(model, tmp_path / "saved")
        loaded = rewriter.load(tmp_path / "saved", original())
        assert mark(loaded) == mark(model) and torch.equal(loaded.eval()(X), model.eval()(X))
