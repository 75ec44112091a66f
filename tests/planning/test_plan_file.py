"""One plan for every run and every process of a training: ``plan_file=``, and what processes compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import assert_unchanged, snapshot
from ranks import run_ranks
from torch import nn

import rewriter
from rewriter.errors import PlanError, StorageError
from rewriter.passes import Dropout, GroupCount

MEASURED = GroupCount(rule="measured-isometry")  # another plan for every seed
SIZE = {"input_size": 64}


def model(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_efficientnet_gn", num_classes=4, drop_rate=0.2, **options)


def numbers(found: nn.Module) -> list[int]:
    return [module.num_groups for module in found.modules() if isinstance(module, nn.GroupNorm)]


class TestOneLineForEveryRun:
    @pytest.mark.slow
    def test_the_first_run_plans_and_writes_and_all_others_apply(self, tmp_path: Path) -> None:
        file = tmp_path / "run" / "rewrite-plan.json"
        first = rewriter.rewrite(model(0), MEASURED, **SIZE, plan_file=file)
        assert rewriter.Plan.from_json(file.read_text()) == rewriter.report(first).records[0].plan
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        without = rewriter.rewrite(model(3), MEASURED, **SIZE)
        again = rewriter.rewrite(model(3), MEASURED, **SIZE, plan_file=file)
        assert numbers(again) == numbers(first) != numbers(without)
        again.load_state_dict(first.state_dict(), strict=True)
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(again.eval()(x), first.eval()(x))
        assert rewriter.report(again).verified and not rewriter.report(again).records[0].unchecked

    @pytest.mark.slow
    def test_the_file_wins_over_trained_weights_selections_and_the_size(self, tmp_path: Path) -> None:
        file = tmp_path / "plan.json"
        first = rewriter.rewrite(model(), GroupCount(tolerance=0), **SIZE, plan_file=file)
        trained = model(1)
        with torch.no_grad():
            for norm in trained.modules():
                if isinstance(norm, nn.GroupNorm):
                    norm.weight.uniform_(0.5, 1.5)
        found = rewriter.rewrite(
            trained, GroupCount(tolerance=0), input_size=96, plan_file=file, preserve="eval", only="blocks.0*"
        )
        assert numbers(found) == numbers(first) != numbers(trained)
        assert rewriter.report(found).verified

    @pytest.mark.slow
    def test_another_image_size_of_the_model_itself(self, tmp_path: Path) -> None:
        file = tmp_path / "plan.json"
        rewriter.rewrite(timm.create_model("test_vit", proj_drop_rate=0.1), plan_file=file)
        larger = timm.create_model("test_vit", proj_drop_rate=0.1, img_size=192)
        found = rewriter.rewrite(larger, plan_file=file)
        assert rewriter.report(found).verified and not rewriter.report(found).records[0].unchecked
        assert found.eval()(torch.randn(1, 3, 192, 192)).shape == (1, 1000)

    @pytest.mark.slow
    def test_a_model_that_is_rewritten_by_it_is_returned_as_it_is(self, tmp_path: Path) -> None:
        file = tmp_path / "plan.json"
        first = rewriter.rewrite(model(), **SIZE, plan_file=file)
        assert rewriter.rewrite(first, **SIZE, plan_file=file) is first
        rewriter.save(first, tmp_path / "saved")
        loaded = rewriter.load(tmp_path / "saved", model(5))
        assert rewriter.rewrite(loaded, plan_file=file) is loaded

    @pytest.mark.slow
    def test_a_directory_that_holds_the_plan_can_be_saved_to_and_keeps_it(self, tmp_path: Path) -> None:
        file = tmp_path / "run" / "rewrite-plan.json"
        found = rewriter.rewrite(model(), **SIZE, plan_file=file)
        text = file.read_text()
        for _ in range(2):
            rewriter.save(found, file.parent)
            assert file.read_text() == text
        assert numbers(rewriter.load(file.parent, model(1))) == numbers(found)
        (file.parent / "notes.json").write_text("{}")
        with pytest.raises(StorageError, match=r"not written by rewriter.save \(notes.json\)"):
            rewriter.save(found, file.parent)

    def test_where_nothing_is_found_the_file_says_so(self, tmp_path: Path) -> None:
        file = tmp_path / "plan.json"
        for _ in range(2):
            found = rewriter.rewrite(timm.create_model("test_resnet"), "group-count", **SIZE, plan_file=file)
            assert not rewriter.report(found).applied
        assert json.loads(file.read_text())["sites"] == []


class TestRefusals:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        rewriter.rewrite(model(), [Dropout(), GroupCount()], **SIZE, plan_file=tmp_path / "plan.json")
        return tmp_path / "plan.json"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("passes", "message"),
        [
            ("dropout", "is a plan of dropout, group-count; asked for: dropout. Ask for what it has"),
            ((), "asked for: no passes"),
            (None, "asked for: atrous-rates, dropout, group-count, scale-equalizer"),
            ([Dropout(), GroupCount(tolerance=0.1)], r"has group-count:tolerance=0.05; asked for: 0.1"),
            ([Dropout(p=0.2), GroupCount()], r"has dropout:p=None; asked for: 0.2"),
        ],
    )
    def test_other_passes_or_options(self, file: Path, passes: Any, message: str) -> None:
        given = model(1)
        before, text = snapshot(given), file.read_text()
        with pytest.raises(PlanError, match=message):
            rewriter.rewrite(given, passes, **SIZE, plan_file=file)
        assert_unchanged(given, before)
        assert file.read_text() == text

    @pytest.mark.slow
    def test_another_model(self, file: Path) -> None:
        with pytest.raises(PlanError, match="which ResNet does not have"):
            rewriter.rewrite(timm.create_model("test_resnet"), [Dropout(), GroupCount()], **SIZE, plan_file=file)

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 3}', "\x00"])
    def test_a_damaged_file(self, file: Path, text: str) -> None:
        file.write_text(text)
        given = model(1)
        before = snapshot(given)
        with pytest.raises(PlanError, match=r"plan\.json: "):
            rewriter.rewrite(given, [Dropout(), GroupCount()], **SIZE, plan_file=file)
        assert_unchanged(given, before)
        assert file.read_text() == text

    @pytest.mark.slow
    def test_a_place_that_is_not_in_force_is_not_left_out_in_silence(self, file: Path) -> None:
        given = model(1)
        site = next(site for site in rewriter.Plan.from_json(file.read_text()).sites if site.pass_name == "group-count")
        given.get_submodule(site.path).forward = lambda x: x  # whatever its number of groups
        with pytest.raises(PlanError, match="the plan does not fit this model: group-count at"):
            rewriter.rewrite(given, [Dropout(), GroupCount()], **SIZE, plan_file=file)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        for place in (tmp_path, tmp_path / "made" / "\0"):
            with pytest.raises((PlanError, StorageError), match="plan_file"):
                rewriter.rewrite(model(), **SIZE, plan_file=place)
        (tmp_path / "taken").write_text("")
        with pytest.raises(PlanError, match="cannot be written"):
            rewriter.rewrite(model(), **SIZE, plan_file=tmp_path / "taken" / "plan.json")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]

    @pytest.mark.slow
    def test_a_model_that_looks_trained_is_told_of_it(self) -> None:
        trained = timm.create_model("resnetv2_50d_gn", layers=(1, 1, 1, 1))
        with torch.no_grad():
            next(m for m in trained.modules() if isinstance(m, nn.GroupNorm)).weight.uniform_(0.5, 1.5)
        (note, *_) = rewriter.plan(trained, **SIZE).notes
        assert note.startswith("held back: group-count, because the model carries trained weights")
        assert note.endswith("a training that goes on gives its plan, plan_file=")


@pytest.mark.slow
class TestRanks:
    def test_two_ranks_with_different_seeds_train_one_network(self, tmp_path: Path) -> None:
        """DDP hands rank 0's weights to all; then every rank computes the same."""
        found = run_ranks(
            """
            model = rewriter.rewrite(model, **SIZE)
            print(numbers(model))
            model = nn.parallel.DistributedDataParallel(model.train())
            optimizer = torch.optim.SGD(rewriter.param_groups(model), lr=0.1)
            generator = torch.Generator().manual_seed(rank)
            for _ in range(2):
                model(torch.randn(2, 3, 64, 64, generator=generator)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))
            print(model.module.eval()(x).double().sum().item().hex())
            """,
            tmp_path,
        )
        assert found[0] == found[1] and len(found[0]) == 2

    def test_plans_that_differ_are_refused_in_all_before_anything_is_applied(self, tmp_path: Path) -> None:
        found = run_ranks(
            """
            try:
                rewriter.rewrite(model, MEASURED, inplace=True, **SIZE)
            except RewriterError as error:
                print(error)
            print(rewriter.report(model))
            print(numbers(rewriter.rewrite(model, MEASURED, all_ranks=False, **SIZE)))
            print(numbers(rewriter.rewrite(model, MEASURED, plan_file=FOLDER / f"plan{rank}.json", **SIZE)))
            print(rewriter.report(rewriter.rewrite(model, "dropout", **SIZE)).stale)
            """,
            tmp_path,
        )
        first, second = found
        assert first[0] == second[0]
        assert "rewriter.rewrite: rank 1 differs from rank 0: group-count at " in first[0]
        assert "num_groups" in first[0] and first[0].endswith("and the others apply its plan.")
        assert first[1] == second[1] == "not rewritten"
        assert first[2] != second[2]
        assert first[3] == second[3]
        assert [path.name for path in tmp_path.glob("*.json")] == ["plan0.json"]  # no disk is shared

    def test_a_rank_that_does_not_call_is_named_and_nobody_hangs(self, tmp_path: Path) -> None:
        found = run_ranks(
            """
            if rank != 1:
                try:
                    rewriter.rewrite(model, **SIZE)
                except RewriterError as error:
                    print(error)
            """,
            tmp_path,
            ranks=3,
        )
        assert found[0] == found[2] and not found[1]
        assert found[0][0].startswith("rank 1 did not call rewriter.rewrite within 6 seconds")

    def test_an_error_of_the_first_rank_reaches_all(self, tmp_path: Path) -> None:
        (tmp_path / "plan.json").write_text("no plan")
        found = run_ranks(
            """
            try:
                rewriter.rewrite(model, plan_file=FOLDER / "plan.json", **SIZE)
            except RewriterError as error:
                print(type(error).__name__, error)
            """,
            tmp_path,
        )
        assert "plan.json: the plan is damaged" in found[0][0]
        assert found[1][0].startswith("RewriterError rank 0: PlanError: ") and "plan.json" in found[1][0]

    def test_the_first_rank_decides_whether_the_weights_are_trained(self, tmp_path: Path) -> None:
        """It alone has loaded them; the others are on the meta device, and look fresh."""
        found = run_ranks(
            """
            if rank == 0:
                with torch.no_grad():
                    for norm in model.modules():
                        if isinstance(norm, nn.GroupNorm):
                            norm.weight.uniform_(0.5, 1.5)
            else:
                model = model.to("meta")
            found = rewriter.rewrite(model, plan_file=FOLDER / "plan.json", verify=False, **SIZE)
            print([site.action for site in rewriter.report(found).applied], numbers(found) == numbers(model))
            """,
            tmp_path,
        )
        assert found[0] == found[1] and found[0][0].endswith("True")

    def test_calibration_refuses_other_weights_and_a_rank_that_is_absent(self, tmp_path: Path) -> None:
        found = run_ranks(
            """
            import segmentation_models_pytorch as smp
            model = smp.FPN("resnet18", encoder_weights=None)
            model = rewriter.rewrite(model, {"scale-equalizer": {"additive": True}}, verify=False, **SIZE)
            batches = [torch.randn(2, 3, 64, 64)]

            def calibrated():
                try:
                    rewriter.calibrate(model, batches, progress=False)
                    print(rewriter.report(model).calibrated)
                except RewriterError as error:
                    print(error)

            calibrated()
            for parameter in model.parameters():
                dist.broadcast(parameter.data, 0)
            calibrated()
            if rank == 0:
                calibrated()
            """,
            tmp_path,
        )
        first, second = found
        assert first[0] == second[0]
        assert first[0].startswith("rewriter.calibrate: rank 1 differs from rank 0: parameter encoder.conv1.weight is")
        assert first[1] == second[1] and "scale_equalizer" in first[1]
        assert first[2].startswith("rank 1 did not call rewriter.calibrate within 6 seconds") and len(second) == 2

    def test_a_comparison_rewrites_in_each_process_as_its_own_seeds_need_it(self, tmp_path: Path) -> None:
        found = run_ranks(
            """
            with rewriter.planning.ranks.on_its_own():
                for _ in range(rank + 1):
                    found = rewriter.rewrite(model, MEASURED, **SIZE)
            print(numbers(found))
            """,
            tmp_path,
        )
        assert found[0] != found[1]
