"""Parameter groups know names: decisions are those of the rewrite, and follow parameters that are replaced."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import slow_but
from ranks import run_ranks
from timm.utils import ModelEmaV3
from torch import nn

import rewriter
from rewriter.errors import ModelError, OptimizerError
from rewriter.optimizer.grouped_parameters import load_by_name
from rewriter.passes import WeightDecay


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=64, **options)


def divided(groups: rewriter.ParamGroups) -> list[tuple[float, tuple[str, ...]]]:
    return [(group["weight_decay"], names) for group, names in zip(groups, groups.names, strict=True)]


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("the model was recorded once more")

    monkeypatch.setattr("rewriter.optimizer.groups.trace_candidates", refuse)


class TestRecorded:
    @pytest.mark.thorough
    @pytest.mark.parametrize(
        "name", slow_but(["test_vit"], ["test_vit", "test_resnet", "test_efficientnet_gn", "test_byobnet"])
    )
    @pytest.mark.parametrize("policy", [None, "decay-all", {"main": True}])
    def test_a_rewritten_model_is_divided_as_a_trace_divides_it(self, name: str, policy: Any) -> None:
        original = timm.create_model(name)
        size = {"input_size": 64} if name != "test_vit" else {}
        model = rewriter.rewrite(original, **size)
        found = rewriter.param_groups(model, gamma=policy)
        traced = rewriter.param_groups(original, gamma=policy, **size)
        assert divided(found) == divided(traced) and found.table == traced.table

    @pytest.mark.slow
    def test_nothing_is_recorded_anew(self, untraced: None) -> None:
        model = rewriter.rewrite(vit(), [])
        model = rewriter.rewrite(vit(), "dropout")
        groups = rewriter.param_groups(model)
        assert sum(map(len, groups.names)) == len(list(model.parameters()))
        model.set_input_size(img_size=96)
        assert divided(rewriter.param_groups(model)) == divided(groups)
        again = rewriter.Plan.from_json(rewriter.report(model).records[0].plan.to_json()).apply(vit(), verify=False)
        assert divided(rewriter.param_groups(again)) == divided(groups)

    def test_parameters_that_came_since_are_decided_by_a_trace_of_today(self) -> None:
        model = rewriter.rewrite(vit(), WeightDecay({"main": True}))
        model.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 7))
        found = {decision.name: decision for decision in rewriter.param_groups(model).decisions}
        assert found["head.1.weight"].decays and not found["head.1.bias"].decays
        assert found["head.0.weight"].category == "main" and found["head.0.weight"].decays
        assert set(found) == {name for name, _ in model.named_parameters()}

    @pytest.mark.slow
    def test_where_that_cannot_be_traced_they_are_named(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        model.head = nn.Linear(3, 7)
        model.extra = nn.Linear(3, 7)
        with pytest.raises(OptimizerError, match=r"2 of \d+ trainable .* came after .* extra.weight, extra.bias"):
            rewriter.param_groups(model)

    def test_frozen_and_tied_parameters(self, untraced: None) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        for parameter in model.blocks[0].parameters():
            parameter.requires_grad_(False)
        model.blocks[1].attn.qkv.weight = model.blocks[2].attn.qkv.weight
        groups = rewriter.param_groups(model)
        names = [name for names in groups.names for name in names]
        assert set(names) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert len(names) == len(set(names)) and "blocks.1.attn.qkv.weight" in names

    def test_wrappers_and_parametrizations_change_no_decision(self, untraced: None) -> None:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

        model = rewriter.rewrite(vit(), "dropout")
        expected = divided(rewriter.param_groups(model))
        nn.utils.parametrizations.weight_norm(model.head)
        apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "Block")
        found = rewriter.param_groups(nn.DataParallel(model))
        decaying = set(expected[0][1]) - {"head.weight"}
        assert decaying < set(found.names[0]) and found[0]["weight_decay"] == 0.05
        assert {name for name in found.names[0]} - decaying == {
            "head.parametrizations.weight.original0", "head.parametrizations.weight.original1",
        }  # fmt: skip

    def test_what_was_tied_since_takes_the_most_careful_kind(self) -> None:
        class Copying(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.embedding = nn.Linear(8, 20, bias=False), nn.Embedding(20, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(self.embedding(x))

        model = rewriter.rewrite(Copying(), "dropout", example_inputs=torch.zeros(1, 3, dtype=torch.long))
        model.embedding.weight = model.head.weight
        (decision,) = rewriter.param_groups(model).decisions
        assert (decision.name, decision.category, decision.decays) == ("head.weight", "embedding", False)

    @pytest.mark.slow
    def test_what_came_before_a_second_rewrite_is_recorded(self, untraced: None) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        model.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 7))
        again = rewriter.rewrite(model, "dropout")
        assert len(rewriter.report(again).records) == 1
        assert {"head.0.weight", "head.1.weight"} <= {d.name for d in rewriter.param_groups(again).decisions}

    def test_names_without_those_of_wrappers_hold_for_what_is_named(self, untraced: None) -> None:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

        model = rewriter.rewrite(vit(), "dropout")
        model.no_weight_decay = lambda: {"blocks.0.attn.proj.weight"}
        given = {"no_weight_decay": ["blocks.1.attn.proj.weight"]}
        plain = rewriter.param_groups(model, **given)
        assert {"blocks.0.attn.proj.weight", "blocks.1.attn.proj.weight"} <= set(plain.names[1])
        apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "Block")
        assert "blocks.0._checkpoint_wrapped_module.attn.proj.weight" in dict(model.named_parameters())
        wrapped = rewriter.param_groups(model, **given)
        assert divided(wrapped) == divided(plain) and wrapped.decisions == plain.decisions
        given["no_weight_decay"] = ["blocks.1._checkpoint_wrapped_module.attn.proj.weight"]
        assert divided(rewriter.param_groups(model, **given)) == divided(plain)


class TestOn:
    def test_groups_that_were_added_moved_or_taken_away_stay_so(self) -> None:
        model, loss = rewriter.rewrite(vit(), "dropout"), nn.Linear(2, 2)
        groups = rewriter.param_groups(model)
        groups.reverse()
        groups.append({"params": loss.parameters(), "lr": 0.5})
        other = copy.deepcopy(model)
        found = groups.on(other)
        assert found.names == groups.names and [group["weight_decay"] for group in found[:2]] == [0.0, 0.05]
        optimizer = torch.optim.SGD(found, lr=0.1)
        rewriter.check_optimizer(other, optimizer)
        rewriter.check_optimizer(loss, optimizer)
        del groups[0]
        assert groups.on(other).names == groups.names and len(groups.names) == 2

    def test_names_survive_copies_and_pickles(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        groups = rewriter.param_groups(model, named=True)
        torch.optim.SGD(groups, lr=0.1)  # takes the pairs apart
        for other in (copy.copy(groups), copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
            assert other.names == groups.names == [group["param_names"] for group in groups]
            rewriter.check_optimizer(model, torch.optim.SGD(other.on(model), lr=0.1))

    def test_what_the_model_trains_since_is_not_left_out(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        model.head.requires_grad_(False)
        groups = rewriter.param_groups(model)
        rewriter.check_optimizer(model, torch.optim.SGD(groups.on(model), lr=0.1))
        model.head.requires_grad_(True)
        with pytest.raises(OptimizerError, match=r"VisionTransformer trains head\.weight, head\.bias, too\. Make the"):
            groups.on(model)

    def test_another_copy_an_average_and_a_wrapped_model(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        groups = rewriter.param_groups(model, named=True)
        for other in (copy.deepcopy(model), ModelEmaV3(model).module, nn.DataParallel(copy.deepcopy(model))):
            found = groups.on(other)
            assert divided(found) == divided(groups) and found.table == groups.table
            ids = {id(parameter) for parameter in other.parameters()}
            assert {id(tensor) for group in found for _, tensor in group["params"]} == ids
            rewriter.check_optimizer(other, torch.optim.SGD(found, lr=0.1))

    def test_from_meta(self) -> None:
        with torch.device("meta"):
            model = timm.create_model("test_vit", img_size=64)
        model = rewriter.rewrite(model, "dropout", verify=False)
        groups = rewriter.param_groups(model)
        model.to_empty(device="cpu")
        rewriter.check_optimizer(model, torch.optim.SGD(groups.on(model), lr=0.1))

    def test_a_name_that_is_gone(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        groups = rewriter.param_groups(model)
        model.head = nn.Identity()
        with pytest.raises(OptimizerError, match=r"has no parameter head.weight, head.bias, which these groups name"):
            groups.on(model)

    def test_groups_of_others_stay(self) -> None:
        model, loss = rewriter.rewrite(vit(), "dropout"), nn.Linear(2, 2)
        within = [{"params": [*model.parameters(), *loss.parameters()], "lr": 0.3}]
        groups = rewriter.param_groups(model, within=within)
        found = groups.on(copy.deepcopy(model))
        assert [p for g in found for p in g["params"] if any(p is q for q in loss.parameters())] == list(
            loss.parameters()
        )
        with pytest.raises(OptimizerError, match="named=True: torch wants every parameter named or none"):
            rewriter.param_groups(model, within=within, named=True)


class TestNamed:
    def test_an_optimizer_of_named_groups_loads_by_name(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        optimizer = torch.optim.AdamW(rewriter.param_groups(model, named=True), lr=0.01)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        optimizer.step()
        others = list(reversed(list(model.named_parameters())))  # one group, in another order
        permuted = torch.optim.AdamW([{"params": others}], lr=0.5, weight_decay=0)
        load_by_name(permuted)
        permuted.load_state_dict(optimizer.state_dict())
        for parameter in model.parameters():
            assert torch.equal(permuted.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
        assert permuted.param_groups[0]["lr"] == 0.01

    def test_settings_are_those_of_the_group_that_has_the_most(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        saved = torch.optim.SGD(rewriter.param_groups(model, 0.1, named=True), lr=0.1)
        of = dict(model.named_parameters())
        first, second = rewriter.param_groups(model).names
        moved = [{"params": [second[0], *first]}, {"params": second[1:]}]  # one parameter is decided otherwise now
        for group in moved:
            group["params"] = [(name, of[name]) for name in group["params"]]
        optimizer = torch.optim.SGD(moved, lr=0.7)
        load_by_name(optimizer)
        optimizer.load_state_dict(saved.state_dict())
        assert [(group["weight_decay"], group["lr"]) for group in optimizer.param_groups] == [(0.1, 0.1), (0.0, 0.1)]
        assert [group["param_names"] for group in optimizer.param_groups] == [[second[0], *first], second[1:]]

    def test_what_is_no_optimizer_is_refused(self) -> None:
        with pytest.raises(OptimizerError, match=r"expected a torch\.optim\.Optimizer, found VisionTransformer"):
            load_by_name(vit())  # type: ignore[arg-type]

    def test_what_has_no_names_or_other_ones_is_refused(self) -> None:
        model = rewriter.rewrite(vit(), "dropout")
        plain = torch.optim.SGD(rewriter.param_groups(model), lr=0.1)
        with pytest.raises(OptimizerError, match="the optimizer knows no names"):
            load_by_name(plain)
        named = torch.optim.SGD(rewriter.param_groups(model, named=True), lr=0.1)
        take_back = load_by_name(named)
        with pytest.raises(OptimizerError, match="the state dict of the optimizer has no names"):
            named.load_state_dict(plain.state_dict())
        model.head = nn.Linear(64, 3, bias=False)
        smaller = torch.optim.SGD(rewriter.param_groups(model, named=True), lr=0.1)
        with pytest.raises(OptimizerError, match=r"other parameters: missing: head.bias"):
            named.load_state_dict(smaller.state_dict())
        take_back()
        named.load_state_dict(plain.state_dict())


class Quantized(torch.Tensor):
    """Of which nothing can be made, as of torchao's."""

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Quantized:
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(str(func))


@pytest.mark.slow
def test_tensors_of_other_classes_are_refused_before_a_rewrite_and_divided_after_it(untraced: None) -> None:
    model = vit()
    rewritten = rewriter.rewrite(model, "dropout")
    expected = divided(rewriter.param_groups(rewritten))
    for each in (model, rewritten):
        each.head.weight = nn.Parameter(Quantized(each.head.weight.data))
    for verb in (rewriter.plan, rewriter.rewrite, rewriter.trace):
        with pytest.raises(ModelError, match=r"head.weight of VisionTransformer is a Quantized.*Rewrite before"):
            verb(model)
    assert divided(rewriter.param_groups(rewritten)) == expected
    assert rewriter.report(rewritten).applied is not None and not rewriter.report(rewritten).stale


@pytest.mark.slow
def test_under_fully_shard_the_optimizer_trains_what_the_groups_name(tmp_path: Path) -> None:
    (found,) = run_ranks(
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = rewriter.rewrite(timm.create_model("test_vit", img_size=64), **SIZE)
        groups = rewriter.param_groups(model, 0.05)
        too_early = torch.optim.AdamW(groups, lr=1e-2)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        try:
            rewriter.check_optimizer(model, too_early)
        except RewriterError as error:
            print(error)
        same = rewriter.param_groups(model, 0.05)
        print(same.names == groups.names, same.table == groups.table)
        optimizer = torch.optim.AdamW(groups.on(model), lr=1e-2)
        rewriter.check_optimizer(model, optimizer)
        model.train()(torch.randn(2, 3, 64, 64)).pow(2).mean().backward()
        optimizer.step()
        print(sum(not torch.equal(p.full_tensor(), before[n]) for n, p in model.named_parameters()), len(before))
        """,
        tmp_path,
        ranks=1,
    )
    assert "fully_shard has put parameters of its own in their place since it was built" in found[0]
    assert found[1] == "True True"
    moved, all_of_them = map(int, found[2].split())
    assert moved == all_of_them > 50
