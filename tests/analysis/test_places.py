"""Blocks, dense layers, poolings and sums as many libraries write them, and what looks like one and is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_but
from torch import nn

import rewriter
from rewriter.reasons import Reason


def stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(0.1))


def categories(model: nn.Module, size: int = 16) -> dict[str, str]:
    plan = rewriter.plan(model, "weight-decay", input_size=size)
    return {advice.path: advice.advice.split(":")[0].split(",")[0] for advice in plan.advice}


def sites(model: nn.Module, passes: Any = "dropout", **inputs: Any) -> list[tuple[str, str]]:
    plan = rewriter.plan(model, passes, **(inputs or {"input_size": 16}))
    return [(site.pattern, site.action) for site in plan.sites]


UPWARDS: dict[str, Callable[[], nn.Module]] = {
    "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 8, 1)),
    "transposed": lambda: nn.ConvTranspose2d(16, 8, 2, 2),
    "shuffled": lambda: nn.Sequential(nn.Conv2d(16, 32, 1), nn.PixelShuffle(2)),
}


class Decoder(nn.Module):
    """One level of an encoder-decoder."""

    def __init__(self, up: str, joined: str, function: bool = False) -> None:
        super().__init__()
        self.joined, self.function = joined, function
        self.first, self.second, self.middle = stage(3, 8), stage(8, 16, 2), stage(16, 16)
        self.up = UPWARDS[up]()
        self.last, self.out = stage(16 if joined == "cat" else 8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.first(x)
        coarse = self.middle(self.second(fine))
        if self.function and isinstance(self.up, nn.ConvTranspose2d):
            raised = F.conv_transpose2d(coarse, self.up.weight, self.up.bias, stride=2)
        elif self.function and isinstance(self.up[1], nn.PixelShuffle):  # type: ignore[index]
            raised = F.pixel_shuffle(self.up[0](coarse), 2)  # type: ignore[index]
        elif self.function:
            raised = self.up[1](F.interpolate(coarse, scale_factor=2))  # type: ignore[index]
        else:
            raised = self.up(coarse)
        return self.out(self.last(torch.cat([fine, raised], 1) if self.joined == "cat" else fine + raised))


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("joined", ["cat", "add"])
@pytest.mark.parametrize("up", UPWARDS)
def test_a_decoder_is_no_block(up: str, joined: str, function: bool) -> None:
    model = Decoder(up, joined, function)
    plan = rewriter.plan(model, "dropout", input_size=16)
    assert not plan.sites and len(plan.skipped) == 4
    assert set(categories(model).values()) == {"no decay"}


class Attended(nn.Module):
    """A block that computes one linear step at a lower resolution, and comes back by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 8, 4, 4), nn.ConvTranspose2d(8, 8, 4, 4)
        self.drop, self.head = nn.Dropout(0.1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        tokens = self.down(self.norm(x)).flatten(2)
        weights = (tokens.transpose(1, 2) @ tokens).softmax(-1)
        mixed = (tokens @ weights).unflatten(2, (4, 4))
        return self.head(x + self.drop(self.up(mixed)))


def test_a_linear_step_at_a_lower_resolution_stays_a_block() -> None:
    assert sites(Attended()) == [("residual branch", "move drop before up")]
    assert categories(Attended()) == {"norm": "decay"}


class Gated(nn.Module):
    """A gate that is made of a smaller map."""

    def __init__(self, gate: str, size: int = 4) -> None:
        super().__init__()
        self.gate = gate
        self.stem, self.pool = nn.Conv2d(3, 8, 3, 1, 1), nn.AvgPool2d(size, size)
        self.weigh, self.value, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.sigmoid, self.head = nn.Sigmoid(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        weights = x + F.interpolate(self.weigh(self.pool(x)), x.shape[2:])
        weights = self.sigmoid(weights) if self.gate == "module" else weights.sigmoid()
        return self.head((x + self.norm(self.value(x) * weights)).amax((2, 3)))


@pytest.mark.parametrize("gate", ["module", "function"])
def test_an_interpolation_within_a_gate_leaves_a_block_a_block(gate: str) -> None:
    assert categories(Gated(gate)) == {"norm": "decay"}


def test_a_window_keeps_its_role_at_a_size_where_it_is_the_map() -> None:
    def found(size: int) -> list[tuple[str, str]]:
        plan = rewriter.plan(Gated("module"), "stochastic-pooling", input_size=size)
        assert not plan.sites
        return [(skip.path, skip.pattern) for skip in plan.skipped]

    assert found(16) == found(8) == found(4)


class Pooled(nn.Module):
    """Means that are poolings, and means that are none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.embed, self.drop = nn.Conv2d(3, 8, 3), nn.Linear(3, 9), nn.Dropout(0.1)
        self.whole = nn.AvgPool2d(15, ceil_mode=True)
        self.head = nn.Linear(196 if how == "channels" else 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "channels":
            tokens = self.embed(x.flatten(2).transpose(1, 2)[:, :196])
            return self.head(self.drop(tokens.mean(-1)))
        x = self.conv(x).relu()
        if self.how == "steps":
            x = x.mean(3).mean(2)
        elif self.how == "kept steps":
            x = x.mean(2, keepdim=True).mean(3, keepdim=True).flatten(1)
        elif self.how == "last steps":
            x = x.permute(0, 2, 3, 1).mean(1).mean(1)
        elif self.how == "ceil":
            x = self.whole(x).flatten(1)
        else:
            x = x.flatten(2).transpose(1, 2).mean(1)
        return self.head(self.drop(x))


def test_a_mean_over_channels_is_no_pooling() -> None:
    plan = rewriter.plan(Pooled("channels"), ["dropout", "stochastic-pooling"], input_size=16)
    assert not plan.sites and {skip.reason for skip in plan.skipped} == {Reason.NO_GLOBAL_POOLING}


def test_a_loss_is_not_scaled() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(12, 16), nn.Linear(16, 12)

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            difference = self.decoder(self.encoder(patches).relu()) - patches
            return (difference**2).mean(dim=-1).mean()

    torch.manual_seed(0)
    model, patches = Masked(), torch.randn(2, 9, 12)
    rewritten = rewriter.rewrite(model, example_inputs=patches)
    assert not rewriter.report(rewritten).applied
    assert torch.equal(rewritten.train()(patches), model.train()(patches))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["steps", "kept steps", "last steps"])
def test_a_pooling_in_steps_is_one(how: str) -> None:
    model = Pooled(how)
    ((pattern, action),) = sites(model)
    assert pattern == "head" and action.startswith("move drop before mean() in forward()")
    seen: list[Any] = []
    rewritten = rewriter.rewrite(model, "dropout", input_size=16).train()
    for module in rewritten.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    rewritten(torch.randn(2, 3, 16, 16))
    assert len(seen) == 1 and len(seen[0]) == 4  # before the first step, on the whole map
    model.drop.p = 0.0
    plan = rewriter.plan(model, "stochastic-pooling", input_size=16)
    assert not plan.sites and [skip.reason for skip in plan.skipped] == [Reason.IN_STEPS]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["tokens", "ceil"])
def test_a_pooling_over_all_positions_is_global(how: str) -> None:
    assert [pattern for pattern, _ in sites(Pooled(how))] == ["head"]
    model = Pooled(how)
    model.drop.p = 0.0
    ((_, action),) = sites(model, "stochastic-pooling")
    assert "average 98 of 196 elements" in action
    rewritten = rewriter.rewrite(model, "stochastic-pooling", input_size=16)
    assert rewritten.train()(torch.randn(2, 3, 16, 16)).shape == (2, 4)


class Context(nn.Module):
    """Pooled context, spread over the map."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.out = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        context = self.context(x)
        if self.how == "resized":
            context = F.interpolate(context, x.shape[2:])
        elif self.how == "expanded":
            context = context.expand_as(x)
        return self.out(x + context)


@pytest.mark.parametrize("how", ["broadcast", "expanded", "resized"])
def test_context_that_is_added_has_a_role(how: str) -> None:
    assert [pattern for pattern, _ in sites(Context(how), "stochastic-pooling")] == ["pyramid pool"]


class Summed(nn.Module):
    """One pre-activation block, its sum written in many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 4)
        self.register_buffer("scale", torch.ones(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.first(self.norm(x)).relu() * (self.scale.to(x) if self.how == "to" else 1.0)
        y = self.drop(self.second(y))
        if self.how == "difference":
            x = x - y
        elif self.how == "lerp":
            x = torch.lerp(x, y, 0.5)
        elif self.how == "addcmul":
            x = torch.addcmul(x, self.scale, y)
        elif self.how == "stack":
            x = torch.stack([x, y]).sum(0)
        else:
            x = x + y
        return self.head(x.amax((2, 3)))


@pytest.mark.thorough
@pytest.mark.parametrize("how", slow_but(["sum"], ["sum", "difference", "lerp", "addcmul", "stack", "to"]))
def test_a_block_is_found_however_its_sum_is_written(how: str) -> None:
    assert sites(Summed(how)) == [("residual branch", "move drop before second")]
    assert categories(Summed(how)) == {"norm": "decay"}
    rewritten = rewriter.rewrite(Summed(how), "dropout", input_size=16)
    assert not rewriter.plan(rewritten, "dropout", input_size=16).sites


class Sliced(nn.Module):
    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.embed, self.norm, self.first, self.second = (
            nn.Linear(3, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
        )
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        part = h[:, 1:]
        y = self.second(self.first(self.norm(h[:, 1:] if self.twice else part)).relu())
        return self.head(torch.cat([h[:, :1], part + self.drop(y)], 1))


@pytest.mark.parametrize("twice", [False, True])
def test_the_same_slice_taken_twice_is_one(twice: bool) -> None:
    plan = rewriter.plan(Sliced(twice), ["dropout", "weight-decay"], example_inputs=torch.randn(2, 5, 3))
    assert [site.action for site in plan.sites] == ["move drop before second"]
    assert [advice.advice.partition(",")[0] for advice in plan.advice] == ["decay"]


class ByHand(nn.Module):
    """A layer norm over channels, as ConvNeXt and SAM write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Normed(nn.Module):
    def __init__(self, norm: nn.Module, after: bool) -> None:
        super().__init__()
        self.norm, self.after, self.before = norm, after, nn.BatchNorm2d(8)
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.after:
            x = x + self.drop(self.norm(self.second(self.before(self.first(x)).relu())))
        else:
            x = x + self.drop(self.second(self.first(self.norm(x)).relu()))
        return self.head(x.amax((2, 3)))


@pytest.mark.parametrize("after", [False, True])
def test_a_norm_that_is_written_out_counts_for_all_passes(after: bool) -> None:
    def decided(norm: nn.Module) -> Any:
        plan = rewriter.plan(Normed(norm, after), ["dropout", "weight-decay"], input_size=16)
        skipped = [skip.reason for skip in plan.skipped if skip.pattern == "residual branch"]
        return [site.action for site in plan.sites], skipped, [(a.path, a.advice) for a in plan.advice]

    assert decided(ByHand()) == decided(nn.GroupNorm(1, 8))


class Cross(nn.Module):
    """Cross-attention in a residual block: what is attended to enters from the side."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.fine, self.coarse = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(3, 8, 4, 4)
        self.norm, self.query, self.memory, self.out = (
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 16),
            nn.Linear(8, 8),
        )
        self.of_weights, self.drop, self.head = nn.Dropout(0.1), nn.Dropout(0.1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, other = self.fine(x).flatten(2).transpose(1, 2), self.coarse(x).flatten(2).transpose(1, 2)
        query, (keys, values) = self.query(self.norm(tokens)), self.memory(tokens if self.own else other).chunk(2, -1)
        weights = self.of_weights((query @ keys.transpose(1, 2)).softmax(-1))
        return self.head((tokens + self.drop(self.out(weights @ values)))[:, 0])


@pytest.mark.parametrize("own", [False, True])
def test_side_inputs_leave_a_block_a_block(own: bool) -> None:
    plan = rewriter.plan(Cross(own), "dropout", input_size=32)
    assert [site.action for site in plan.sites] == ["move drop before out"]
    assert (Reason.ATTENTION_DROPOUT, "of_weights") in [(skip.reason, skip.path) for skip in plan.skipped]


class Timed(nn.Module):
    """Blocks of diffusion models: a timestep is added within each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        for name in ("one", "two"):
            layers = {"norm1": nn.GroupNorm(2, 8), "norm2": nn.GroupNorm(2, 8), "time": nn.Linear(4, 8)}
            layers |= {"conv1": nn.Conv2d(8, 8, 3, padding=1), "conv2": nn.Conv2d(8, 8, 3, padding=1)}
            self.add_module(name, nn.ModuleDict(layers))

    def block(self, layers: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = layers["conv1"](F.silu(layers["norm1"](x))) + layers["time"](time)[:, :, None, None]
        return x + layers["conv2"](F.silu(layers["norm2"](y)))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.out(self.block(self.two, self.block(self.one, self.stem(x), time), time))


def test_a_timestep_is_no_shortcut() -> None:
    inputs = (torch.randn(2, 3, 16, 16), torch.randn(2, 4))
    plan = rewriter.plan(Timed(), [{"dropout": {"p": 0.1}}, "weight-decay"], example_inputs=inputs)
    blocks = [item for item in (*plan.sites, *plan.skipped) if item.pattern == "residual branch"]
    assert len(blocks) == 2
    assert sorted(advice.path for advice in plan.advice if advice.advice.startswith("decay")) == [
        "one.norm1", "one.norm2", "two.norm1", "two.norm2",
    ]  # fmt: skip


class Layer(nn.Module):
    """A dense layer that appends one part or two."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.norm, self.parts = nn.BatchNorm2d(channels), parts
        self.narrow, self.wide = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(channels, 4, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x).relu()
        return torch.cat([x, self.narrow(y), self.wide(y)][: 1 + self.parts], 1)


class Dense(nn.Module):
    def __init__(self, parts: int, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layers = nn.Sequential(*(Layer(8 + 4 * parts * index, parts) for index in range(layers)))
        self.head = nn.Linear(8 + 4 * parts * layers, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.stem(x)).relu().amax((2, 3)))


@pytest.mark.parametrize("parts", [1, 2])
def test_dense_layers_append_one_part_or_several(parts: int) -> None:
    found = sites(Dense(parts), {"dropout": {"p": 0.1, "head_p": 0}})
    assert [pattern for pattern, _ in found] == ["dense layer"] * 3 * parts
    assert set(categories(Dense(parts)).values()) == {"decay"}


def test_one_concatenation_alone_is_no_dense_layer() -> None:
    assert not sites(Dense(1, layers=1), {"dropout": {"p": 0.1, "head_p": 0}})
    assert set(categories(Dense(1, layers=1)).values()) == {"no decay"}


class Resized(nn.Module):
    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(3, 8, 3, 2, 1)
        self.up, self.fuse = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine, raised = self.fine(x).relu(), self.up(self.coarse(x).relu())
        if self.again:
            raised = F.interpolate(raised, size=fine.shape[2:], mode="bilinear")
        return self.fuse(torch.cat([fine, raised], 1))


@pytest.mark.parametrize("again", [False, True])
def test_a_resize_to_the_same_size_hides_no_upsampling(again: bool) -> None:
    assert [pattern for pattern, _ in sites(Resized(again), "scale-equalizer")] == ["concatenation of 2 maps"]
