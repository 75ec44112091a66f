"""An edit acts on every branch of the user's code that leads to its place, or the place is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import image, output
from torch import nn
from torch.utils.checkpoint import checkpoint

import rewriter
from rewriter import Reason
from rewriter.edit.edits import EditMethod
from rewriter.passes import Dropout


class Base(nn.Module):
    def __init__(self, flag: Any = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)
        self.flag = flag

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


class TwoSpellings(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag:
            x = self.pool(x).flatten(1)
            x = self.drop(x)
        else:
            x = x.mean((2, 3))
            x = self.drop(x)
        return self.fc(x)


class DropoutBehindBoth(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag:
            x = self.pool(x)
            x = x.flatten(1)
        else:
            x = x.mean((2, 3))
        x = self.drop(x)
        return self.fc(x)


class Expression(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = self.pool(x).flatten(1) if self.flag else x.mean((2, 3))
        return self.fc(self.drop(x))


class EarlyReturn(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag:
            return self.fc(self.drop(self.pool(x).flatten(1)))
        x = F.adaptive_avg_pool2d(x, 1)
        x = self.drop(x.flatten(1))
        return self.fc(x)


class TwoMethods(Base):
    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.pool(x).flatten(1)))

    def _slow(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        return self.fc(self.drop(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self._fast(x) if self.flag else self._slow(x)


class ThreeArms(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag is True:
            x = self.pool(x).flatten(1)
            x = self.drop(x)
        elif self.flag == 2:
            x = self.drop(x.mean((2, 3)))
        elif self.flag == 3:
            raise ValueError("no such pooling")
        else:
            x = self.drop(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0])
        return self.fc(x)


def pool_and_drop(x: torch.Tensor, drop: nn.Module) -> torch.Tensor:
    return drop(x.mean((2, 3)))


class HelperInOne(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag:
            x = self.pool(x).flatten(1)
            x = self.drop(x)
        else:
            x = pool_and_drop(x, self.drop)
        return self.fc(x)


class NestedArms(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag is True:
            x = self.drop(self.pool(x).flatten(1))
        else:
            x = x.contiguous()
            if self.flag == 2:
                x = x.mean((2, 3))
                x = self.drop(x)
            else:
                x = self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return self.fc(x)


class ChosenFirst(TwoMethods):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        head = self._fast
        if not self.flag:
            head = self._slow
        return head(self.features(x))


class ChosenInOneLine(TwoMethods):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        head = self._fast if self.flag else self._slow
        return head(self.features(x))


class Cases(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        match self.flag:
            case True:
                x = self.drop(self.pool(x).flatten(1))
            case _:
                x = self.drop(x.mean((2, 3)))
        return self.fc(x)


class Keeps(Base):
    kept: Any = None

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.pool(self.features(x)).flatten(1)
        if self.flag is None:
            self.kept = pooled
        return self.fc(self.drop(pooled))


class Collects(Base):
    def __init__(self, flag: Any = True) -> None:
        super().__init__(flag)
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.pool(self.features(x)).flatten(1)
        result = self.fc(self.drop(pooled))
        if self.flag is None:
            self.kept.append(pooled)
        return result


class ReturnsMore(Base):
    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.pool(self.features(x)).flatten(1)
        result = self.fc(self.drop(pooled))
        return (result, pooled) if self.flag is None else result


class SecondHead(Base):
    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.pool(self.features(x)).flatten(1)
        result = self.fc(self.drop(pooled))
        if self.flag is None:
            result = result + self.fc(pooled)
        return result


class HandsOn(Base):
    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x).flatten(1)

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.head(self.features(x))
        result = self.fc(self.drop(pooled))
        if self.flag is None:
            return {"result": result, "features": pooled}
        return result


class OtherNeedsWhatIsNotThere(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flag:
            x = self.pool(x).flatten(1)
            x = self.drop(x)
        else:
            x = self.drop(self.no_such_pool(x))
        return self.fc(x)


FORMS = [
    TwoSpellings, DropoutBehindBoth, Expression, EarlyReturn, TwoMethods, ThreeArms, NestedArms, ChosenFirst,
    ChosenInOneLine,
]  # fmt: skip


def seen_by_dropout(model: Any) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    handle = model.drop.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    model.train()(image(16))
    handle.remove()
    return shapes


def called(run: Any, module: nn.Module, *names: str) -> list[str]:
    """Which of the children called ``names`` ``run`` calls, in order."""
    order: list[str] = []
    handles = [
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name)) for name in names
    ]
    run()
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("planned_with", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_dropout_is_before_the_pooling_whatever_the_flag(form: type[Base], planned_with: bool) -> None:
    original = form(planned_with)
    result = rewriter.rewrite(original, "dropout", input_size=16)
    (site,) = rewriter.report(result).applied
    assert "also where" in site.action
    for flag in (True, False, 2):
        original.flag = result.flag = flag
        assert seen_by_dropout(original) == [(2, 8)]
        assert seen_by_dropout(result) == [(2, 8, 16, 16)]
        assert torch.equal(output(original, image(16)), output(result, image(16)))
        assert not rewriter.plan(result, "dropout", input_size=16).sites


@pytest.mark.parametrize("form", FORMS)
def test_such_an_edit_survives_json_and_undo(form: type[Base]) -> None:
    text = rewriter.plan(form(), "dropout", input_size=16).to_json()
    plan = rewriter.Plan.from_json(text)
    assert plan.to_json() == text
    assert any(isinstance(edit, EditMethod) and edit.condition for edit in plan.edits)
    model = form()
    result = plan.apply(model)
    result.flag = model.flag = False
    assert seen_by_dropout(result) == [(2, 8, 16, 16)]
    assert seen_by_dropout(rewriter.undo(result)) == [(2, 8)]


def test_a_plan_without_conditions_of_edits_is_read() -> None:
    data = json.loads(rewriter.plan(TwoSpellings(), "dropout", input_size=16).to_json())
    for site in data["sites"]:
        site["edits"] = [edit for edit in site["edits"] if not edit.pop("condition", "")]
    (site,) = rewriter.Plan.from_json(json.dumps(data)).sites
    assert len(site.edits) == 1


def test_a_pooling_that_is_inserted_into_is_found_in_both_branches() -> None:
    class Net(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.features(x)
            return self.fc(x.mean((2, 3)) if self.flag else F.adaptive_avg_pool2d(x, 1).flatten(1))

    model = Net()
    for passes in ("stochastic-pooling", [Dropout(p=0.3)]):
        result = rewriter.rewrite(model, passes, input_size=16)
        for flag in (True, False):
            result.flag = flag
            result.train()
            assert not torch.equal(result(image(16)), result(image(16))), (passes, flag)


def test_a_branch_that_cannot_be_edited_refuses_the_place() -> None:
    plan = rewriter.plan(HelperInOne(), "dropout", input_size=16)
    (skip,) = plan.skipped
    assert not plan.sites and skip.reason is Reason.ONE_BRANCH
    assert "`not (self.flag)`" in skip.detail and "move drop before pool" in skip.detail


@pytest.mark.parametrize("planned_with", [True, 2])
def test_cases_of_a_match_cannot_be_forced_and_refuse_the_place(planned_with: Any) -> None:
    plan = rewriter.plan(Cases(planned_with), "dropout", input_size=16)
    (skip,) = plan.skipped
    assert not plan.sites and skip.reason is Reason.ONE_BRANCH and "`match self.flag`" in skip.detail


@pytest.mark.parametrize("form", [Keeps, Collects, ReturnsMore, SecondHead, HandsOn])
def test_a_value_that_is_read_where_a_flag_is_set_stays_as_it_is(form: type[Base]) -> None:
    plan = rewriter.plan(form(), "dropout", input_size=16)
    (skip,) = plan.skipped
    assert not plan.sites and skip.reason is Reason.OTHER_READERS
    assert "where `self.flag is None` holds" in skip.detail and "become random" in skip.detail


def test_a_branch_that_the_model_cannot_run_does_not_stand_in_the_way() -> None:
    plan = rewriter.plan(OtherNeedsWhatIsNotThere(), "dropout", input_size=16)
    assert [site.action for site in plan.sites] == ["move drop before pool"]


class Attention(nn.Module):
    """As attention is written: two ways to the same numbers, each with its own projection dropout."""

    def __init__(self, flag: bool = True) -> None:
        super().__init__()
        self.qkv, self.proj, self.drop = nn.Linear(16, 48), nn.Linear(16, 16), nn.Dropout(0.2)
        self.fused_attn = flag

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v)
            x = self.proj(x)
            return self.drop(x)
        x = ((q @ k.mT) * 16**-0.5).softmax(-1) @ v
        x = self.proj(x)
        x = self.drop(x)
        return x


class Block(nn.Module):
    def __init__(self, flag: bool, checkpointing: bool) -> None:
        super().__init__()
        self.norm, self.attn, self.checkpointing = nn.LayerNorm(16), Attention(flag), checkpointing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training:
            return x + checkpoint(self.attn, self.norm(x), use_reentrant=False)
        return x + self.attn(self.norm(x))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("planned_with", [True, False])
def test_fused_and_plain_attention(planned_with: bool, checkpointing: bool) -> None:
    model = nn.Sequential(Block(planned_with, checkpointing), Block(planned_with, False), nn.Linear(16, 3))
    x = torch.randn(2, 5, 16)
    result = rewriter.rewrite(model, "dropout", example_inputs=x)
    assert len(rewriter.report(result).applied) == 2
    for flag in (True, False):
        for block in result[:2]:
            block.attn.fused_attn = flag
        result.train()
        assert called(lambda: result(x), result[0].attn, "proj", "drop")[:2] == ["drop", "proj"]


@pytest.mark.thorough
def test_flags_of_timm_models_are_still_flags() -> None:
    """Both attention paths drop before the projection, with and without activation checkpointing."""
    torch.manual_seed(0)
    model = rewriter.rewrite(timm.create_model("test_vit", proj_drop_rate=0.5), "dropout")
    for fused in (True, False):
        for checkpointing in (True, False):
            model.set_grad_checkpointing(checkpointing)
            for block in model.blocks:
                block.attn.fused_attn = fused
            model.train()
            for block in model.blocks:
                order = called(lambda: model(image(160)), block.attn, "proj", "proj_drop")
                assert order[:2] == ["proj_drop", "proj"]


class TwoBlocksInOneMethod(nn.Module):
    """A transformer layer whose attention is computed in two ways, and whose other branch has dropouts to be moved."""

    def __init__(self, flag: bool) -> None:
        super().__init__()
        self.flag = flag
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj, self.fc1, self.fc2 = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.of_proj, self.drop1, self.drop2 = nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        if self.flag:
            mixed = F.scaled_dot_product_attention(query, key, value)
            mixed = self.proj(mixed)
            mixed = self.of_proj(mixed)
        else:
            mixed = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ value
            mixed = self.proj(mixed)
            mixed = self.of_proj(mixed)
        x = x + mixed
        x = x + self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(self.norm2(x))))))
        return self.head(x[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("flag", [True, False])
def test_another_place_of_the_same_module_is_no_objection(flag: bool) -> None:
    plan = rewriter.plan(TwoBlocksInOneMethod(flag), "dropout", input_size=16)
    assert len(plan.sites) == 2 and not [skip for skip in plan.skipped if skip.reason is Reason.ONE_BRANCH]
    result = rewriter.rewrite(TwoBlocksInOneMethod(flag), "dropout", input_size=16)
    for way in (True, False):
        result.flag = way
        (again,) = ([s.reason for s in rewriter.plan(result, "dropout", input_size=16).skipped if s.pattern != "head"],)
        assert again == [Reason.ALREADY_DONE] * 2
