"""Dropouts that are not element-wise, that act side by side, or that stay on in evaluation mode are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter.passes import Dropout
from rewriter.reasons import Reason

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Dropout):
    """A dropout with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.dropout(input, self.p, self.training) * 2


class AlwaysOn(nn.Dropout):
    """For Monte Carlo dropout: evaluation mode does not switch it off."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class OwnAlwaysOn(nn.Dropout):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.dropout(input, self.p, training=True)


class Wrapper(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p)


class PooledHead(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.pool(self.conv(x)).flatten(1)))


class PooledMap(PooledHead):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.pool(self.conv(x))).flatten(1))


class Branch(nn.Module):
    def __init__(self, early: nn.Module, late: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.early, self.late = early, late

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.early(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return x + self.late(self.conv2(y))


def reasons(plan: rewriter.Plan) -> set[str]:
    return {skipped.reason for skipped in plan.skipped}


def eval_output(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model.eval()(X)


OTHER_KINDS = [
    nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), nn.Dropout1d(0.5), Scaled(0.5), OwnAlwaysOn(0.5),
]  # fmt: skip


@pytest.mark.parametrize("drop", OTHER_KINDS, ids=lambda drop: type(drop).__name__)
def test_other_kinds_are_left_in_a_head(drop: nn.Module) -> None:
    plan = rewriter.plan(PooledHead(drop), "dropout", example_inputs=X)
    assert not plan.sites and reasons(plan) <= {Reason.DROPOUT_KIND, Reason.ALWAYS_ON}


class FunctionalHead(PooledHead):
    def __init__(self, name: str) -> None:
        super().__init__(nn.Identity())
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv(x)).flatten(1)
        if self.name == "alpha":
            x = F.alpha_dropout(x, 0.5, self.training)
        elif self.name == "feature alpha":
            x = F.feature_alpha_dropout(x, 0.5, self.training)
        elif self.name == "rows":
            x = F.dropout1d(x, 0.5, self.training)
        elif self.name == "always":
            x = F.dropout(x, 0.5)
        elif self.name == "always, by position":
            x = F.dropout(x, 0.5, True)
        elif self.name == "torch":
            x = torch.dropout(x, 0.5, True)
        elif self.name == "evaluation only":
            x = F.dropout(x, 0.5, not self.training)
        return self.fc(x)


@pytest.mark.parametrize("name", ["alpha", "feature alpha", "rows"])
def test_other_functions_are_left_in_a_head(name: str) -> None:
    plan = rewriter.plan(FunctionalHead(name), "dropout", example_inputs=X)
    assert not plan.sites and reasons(plan) == {Reason.DROPOUT_KIND}


@pytest.mark.parametrize("drop", [nn.Dropout2d, nn.Dropout])
def test_channels_of_one_element_are_dropped_as_single_elements_are(drop: type[nn.Module]) -> None:
    assert rewriter.plan(PooledMap(drop(0.5)), "dropout", example_inputs=X).sites
    batch_as_channels = rewriter.plan(PooledMap(nn.Dropout3d(0.5)), "dropout", example_inputs=X)
    assert not batch_as_channels.sites and reasons(batch_as_channels) == {Reason.DROPOUT_KIND}


@pytest.mark.parametrize(
    "drop",
    [nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), Scaled(0.5)],
    ids=lambda drop: type(drop).__name__,
)
def test_other_kinds_in_a_branch_are_neither_moved_nor_exchanged(drop: nn.Module) -> None:
    for early, late in ((nn.Identity(), drop), (nn.Dropout(0.5), drop), (drop, nn.Dropout(0.4))):
        plan = rewriter.plan(Branch(early, late), "dropout", example_inputs=X)
        assert not plan.sites and Reason.DROPOUT_KIND in reasons(plan)


def test_a_kept_channel_dropout_is_named_as_such() -> None:
    plan = rewriter.plan(Branch(nn.Dropout2d(0.5), nn.Identity()), "dropout", example_inputs=X)
    detail = next(skipped.detail for skipped in plan.skipped if skipped.reason == Reason.ALREADY_DONE)
    assert "drops whole channels" in detail
    plan = rewriter.plan(Branch(nn.Dropout2d(0.5), nn.Dropout2d(0.3)), "dropout", example_inputs=X)
    assert [site.action for site in plan.sites] == ["keep early (drops whole channels), remove late"]


class Part(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.fc, self.dropout = nn.Linear(taken, given), nn.Dropout(1 / given)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc(x))  # type: ignore[no-any-return]


class Alike(nn.Module):
    """A residual branch whose two dropouts have one name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 3)
        self.inner, self.outer = Part(8, 16), Part(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((x + self.branch(self.norm(x)))[:, 0])  # type: ignore[no-any-return]

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x))  # type: ignore[no-any-return]


class FunctionsAlike(Alike):
    def branch(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.inner.fc(x), 0.2, self.training)
        return F.dropout(self.outer.fc(x), 0.1, self.training)


class HeadAlike(PooledHead):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv(x)).flatten(1)
        return self.fc(F.dropout(F.dropout(x, 0.1, self.training), 0.2, self.training))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "action"),
    [
        (Alike(), "move outer.dropout before fc, remove inner.dropout"),
        (FunctionsAlike(), "keep the first dropout() in branch(), remove the second dropout() in branch()"),
        (
            HeadAlike(nn.Identity()),
            "move the second dropout() in forward() before pool, remove the first dropout() in forward()",
        ),
    ],
    ids=["modules", "functions", "head"],
)
def test_dropouts_of_one_name_are_told_apart(model: nn.Module, action: str) -> None:
    assert [site.action for site in rewriter.plan(model, "dropout", example_inputs=X).sites] == [action]


def test_a_pooled_dropout_is_not_dropped_for_one_of_channels_before_the_pooling() -> None:
    class Both(PooledHead):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.drop(self.pool(self.before(self.conv(x))).flatten(1)))

    model = Both(nn.Dropout(0.5))
    model.before = nn.Dropout2d(0.5)
    plan = rewriter.plan(model, "dropout", example_inputs=X)
    assert not plan.sites and reasons(plan) == {Reason.DROPOUT_KIND}
    model.before = nn.Dropout(0.5)
    assert rewriter.plan(model, "dropout", example_inputs=X).sites


# ------------------------------------------------------------------------------------------------------ side by side


class Samples(PooledHead):
    """Multi-sample dropout and its like; ``way`` says how the samples are made and joined."""

    def __init__(self, way: str) -> None:
        super().__init__(nn.Dropout(0.5))
        self.way, self.drops = way, nn.ModuleList(nn.Dropout(0.5) for _ in range(3))
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        f = self.pool(self.conv(x)).flatten(1)
        if self.way == "modules":
            return torch.stack([self.fc(drop(f)) for drop in self.drops]).mean(0)
        if self.way == "one module":
            return sum(self.fc(self.drop(f)) for _ in range(3)) / 3
        if self.way == "functions":
            return (self.fc(F.dropout(f, 0.5, self.training)) + self.fc(F.dropout(f, 0.3, self.training))) / 2
        if self.way == "parameters":
            samples = [F.linear(drop(f), self.fc.weight, self.fc.bias) for drop in self.drops]
            return torch.stack(samples).mean(0)
        if self.way == "mean of features":
            return self.fc(torch.stack([drop(f) for drop in self.drops]).mean(0))
        if self.way == "side by side":
            return self.fc(torch.cat([self.drops[0](f)[:, :4], self.drops[1](f)[:, 4:]], 1))
        if self.way == "batch":
            return self.fc(torch.cat([drop(f) for drop in self.drops])).view(3, 2, 4).mean(0)
        return self.drops[0](f), self.drops[1](f)


WAYS = [
    "modules", "one module", "functions", "parameters", "mean of features", "side by side", "batch", "two views",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_dropouts_on_parallel_paths_do_not_become_one(way: str) -> None:
    plan = rewriter.plan(Samples(way), "dropout", example_inputs=X)
    assert not plan.sites and Reason.PARALLEL_DROPOUTS in reasons(plan)


def test_one_path_of_several_in_a_branch_keeps_its_own_dropout() -> None:
    class Paths(Branch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm1(x).relu()
            return x + self.conv2(torch.maximum(self.early(self.conv1(y)), y))

    plan = rewriter.plan(Paths(nn.Dropout(0.5), nn.Identity()), "dropout", example_inputs=X)
    assert not plan.sites and Reason.PARALLEL_DROPOUTS in reasons(plan)


def test_heads_of_their_own_share_the_noise_before_the_pooling() -> None:
    class Two(Samples):
        def forward(self, x: torch.Tensor) -> Any:
            f = self.pool(self.conv(x)).flatten(1)
            return self.fc(self.drops[0](f)), self.fc2(self.drops[1](f))

    rewritten = rewriter.rewrite(Two(""), "dropout", example_inputs=X)
    assert rewriter.report(rewritten).applied
    first, second = rewritten.train()(X), rewritten(X)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --------------------------------------------------------------------------------------------- on in evaluation mode


@pytest.mark.parametrize("drop", [AlwaysOn(0.5), OwnAlwaysOn(0.5), Wrapper()], ids=lambda drop: type(drop).__name__)
def test_modules_that_stay_on_in_evaluation_mode_are_left_alone(drop: nn.Module) -> None:
    for model in (PooledHead(drop), Branch(nn.Identity(), drop)):
        before = eval_output(model)
        assert not torch.equal(before, model(X)), "it is random in evaluation mode"
        rewritten = rewriter.rewrite(model, [Dropout(p=0.1)], example_inputs=X)
        assert torch.equal(eval_output(rewritten), before)
        plan = rewriter.plan(model, [Dropout(p=0.1)], example_inputs=X)
        assert not plan.sites and Reason.ALWAYS_ON in reasons(plan)


@pytest.mark.parametrize("name", ["always", "always, by position", "torch", "evaluation only"])
def test_functions_that_stay_on_in_evaluation_mode_are_left_alone(name: str) -> None:
    model = FunctionalHead(name)
    before = eval_output(model)
    assert not torch.equal(before, model(X)), "it is random in evaluation mode"
    assert torch.equal(eval_output(rewriter.rewrite(model, "dropout", example_inputs=X)), before)
    plan = rewriter.plan(model, "dropout", example_inputs=X)
    assert not plan.sites and reasons(plan) == {Reason.ALWAYS_ON}


def test_other_places_of_a_model_that_is_random_in_evaluation_mode_are_rewritten() -> None:
    model = nn.Sequential(Branch(nn.Identity(), nn.Dropout(0.5)), Branch(nn.Identity(), Wrapper()))
    before = eval_output(model)
    rewritten = rewriter.rewrite(model, "dropout", example_inputs=X)
    assert [site.path for site in rewriter.report(rewritten).applied] == ["0"]
    assert torch.equal(eval_output(rewritten), before)


def test_a_dropout_that_the_model_keeps_off_in_training_stays_off() -> None:
    class Frozen(PooledHead):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.drop.eval()
            return self

    rewritten = rewriter.rewrite(Frozen(nn.Dropout(0.5)), "dropout", example_inputs=X).train()
    assert torch.equal(rewritten(X), rewritten(X))
    assert reasons(rewriter.plan(Frozen(nn.Dropout(0.5)), "dropout", example_inputs=X)) == {Reason.FROZEN}
