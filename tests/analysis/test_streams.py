"""What goes on through a network, and what is only there to weigh it: queries, gates, positions, statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import gamma_categories as categories
from torch import nn

import rewriter
from rewriter.reasons import Reason


def verdicts(model: nn.Module, passes: str = "dropout", size: int = 16) -> list[tuple[str, str]]:
    """Of each place its pattern, and why it is left; what is done where it is not."""
    plan = rewriter.plan(model, passes, input_size=size)
    return [(s.pattern, s.action) for s in plan.sites] + [(s.pattern, str(s.reason)) for s in plan.skipped]


class Located(nn.Module):
    """A post-norm layer whose queries and keys are told where they are by positions that are computed from the map."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.patches, self.place = nn.Conv2d(3, 8, 4, 4), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm1, self.norm2, self.offsets, self.head = (
            nn.LayerNorm(8),
            nn.LayerNorm(8),
            nn.Linear(8, 2),
            nn.Linear(8, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        grid = x
        x = x.flatten(2).transpose(1, 2)
        places = self.place(x)
        located = x + places
        query, key, value = self.query(located), self.key(located), self.value(x)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ value
        x = self.norm1(x + self.out(mixed))
        where = self.offsets(x + places)
        sampled = F.grid_sample(grid, where.unflatten(1, (4, 4)), align_corners=False).flatten(2).transpose(1, 2)
        return self.head(self.norm2(x + self.out(sampled)).mean(1))


@pytest.mark.parametrize("fused", [False, True])
def test_a_sum_that_makes_queries_or_positions_is_no_block(fused: bool) -> None:
    found = [verdict for verdict in verdicts(Located(fused)) if verdict[0] == "residual branch"]
    assert found == [("residual branch", "no-norm")] * 2
    assert categories(Located(fused)) == {"norm1": "main", "norm2": "main"}


class Levels(nn.Module):
    """Features of two levels, each activated by a network of its own, the lower one brought up and added."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem, self.raise_ = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.low = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        steps = [layer for _ in range(layers) for layer in (nn.Conv2d(8, 8, 1), nn.ReLU())]
        self.high, self.out = nn.Sequential(*steps), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        finer = F.interpolate(self.raise_(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.high(finer) + F.interpolate(self.low(x), scale_factor=2.0, mode="bilinear"))


@pytest.mark.parametrize("layers", [1, 5])
def test_a_lower_level_that_is_brought_up_and_added_is_no_shortcut(layers: int) -> None:
    """However deep the other way is."""
    assert not [verdict for verdict in verdicts(Levels(layers)) if verdict[0] == "residual branch"]


class Injecting(nn.Module):
    """Every stage is shown the image again, through a small network."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())

        self.first, self.second, self.third = layer(3, 2), layer(8), layer(8)
        self.image, self.head = layer(3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = F.avg_pool2d(x / 255, 2)
        x = self.third(self.second(self.first(x)))
        return self.head((x + self.image(small)).amax((2, 3)))


def test_the_image_that_is_shown_again_is_no_shortcut() -> None:
    assert set(categories(Injecting()).values()) == {"main"}


class Anchored(nn.Module):
    """Boxes: what the head says of the best positions, added to the anchors of these positions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.score = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 1)
        self.box, self.anchors = (
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
            nn.Parameter(torch.rand(16, 4)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        best = self.score(x)[..., 0].topk(4).indices
        if self.how == "index_select":
            chosen = self.anchors.index_select(0, best.flatten()).unflatten(0, best.shape)
        elif self.how == "gather":
            chosen = self.anchors.expand(len(x), -1, -1).gather(1, best[..., None].expand(-1, -1, 4))
        else:
            chosen = self.anchors[best]
        return self.box(x.gather(1, best[..., None].expand(-1, -1, 8))) + chosen


@pytest.mark.parametrize("how", ["index", "index_select", "gather"])
def test_an_index_is_no_data(how: str) -> None:
    assert not [verdict for verdict in verdicts(Anchored(how)) if verdict[0] == "residual branch"]
    assert verdicts(Anchored(how), "stochastic-pooling") == [("head", "no-global-pooling")]


class QueryNormed(nn.Module):
    """Attention in a residual block whose only norms are of queries and keys."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.of_query, self.of_key = (
            nn.LayerNorm(8) if first else nn.Identity(), nn.LayerNorm(8), nn.LayerNorm(8),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        weights = (self.of_query(self.query(y)) @ self.of_key(self.key(y)).transpose(1, 2)).softmax(-1)
        return self.head((x + self.out(weights @ self.value(y)))[:, 0])


def test_norms_of_queries_and_keys_make_no_place_for_dropout() -> None:
    assert ("residual branch", "no-norm") in verdicts(QueryNormed(first=False))
    assert ("residual branch", "nothing-to-move") in verdicts(QueryNormed(first=True))


class GatedLevel(nn.Module):
    """Outside any block: a map that is weighed by a gate of another map, or the image by all that the network is."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.image = image
        self.stem, self.value = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.gate = nn.Sequential(nn.Conv2d(8, 3 if image else 8, 1), nn.BatchNorm2d(3 if image else 8))
        self.norm, self.out = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x)
        if self.image:
            return x * self.gate(self.norm(features).relu()).sigmoid()
        return self.out(self.norm(self.value(features)) * self.gate(F.avg_pool2d(features, 16)).sigmoid())


def test_the_norm_of_a_gate_is_told_outside_of_blocks_too() -> None:
    assert categories(GatedLevel(image=False)) == {"norm": "main", "gate.1": "branch_other"}


class Unread(nn.Module):
    """A level that nobody reads, and one that is only read by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.unread, self.out = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
        self.norm, self.gate = nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        self.norm(self.unread(x))
        return self.out(x * self.gate(x))


def test_the_norm_of_what_nobody_reads_weighs_nothing() -> None:
    assert categories(Unread()) == {"norm": "main", "gate.1": "branch_other"}


def test_what_weighs_the_image_is_the_network_itself() -> None:
    assert categories(GatedLevel(image=True)) == {"norm": "main", "gate.1": "main"}


class Biased(nn.Module):
    """Attention whose bias is computed from positions alone, by a network with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 4)
        self.bias = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
        self.register_buffer("distances", torch.rand(16, 16, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        weights = (query @ key.transpose(1, 2) + self.bias(self.distances)[..., 0]).softmax(-1)
        return self.head((x + self.out(weights @ value))[:, 0])


def test_a_norm_that_only_biases_attention_is_within_the_block() -> None:
    assert categories(Biased()) == {"norm": "branch_last", "bias.1": "branch_other"}


class Responding(nn.Module):
    """Filter response normalisation, which is written out: its statistic is a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.weight * (x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-6))
        return self.head(x.amax((2, 3)))


def test_the_statistic_of_a_norm_is_no_pooling() -> None:
    assert verdicts(Responding(), "stochastic-pooling") == [("head", "max-pooling")]


class Stages(nn.Module):
    """A decoder that returns the last of its stages, which were stacked; or a class token."""

    def __init__(self, dimension: int | None) -> None:
        super().__init__()
        self.dimension = dimension
        self.patches, self.layer, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.dimension is None:
            return self.head(self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])
        stages = self.head(torch.stack([x, self.layer(x)], self.dimension))
        return stages[-1] if self.dimension == 0 else stages[:, -1]


def test_the_last_of_stacked_stages_is_no_class_token() -> None:
    expected = {None: Reason.CLASS_TOKEN, 0: Reason.NO_GLOBAL_POOLING, 1: Reason.NO_GLOBAL_POOLING}
    for dimension, reason in expected.items():
        assert verdicts(Stages(dimension), "stochastic-pooling") == [("head", str(reason))]


class Windowed(nn.Module):
    """A pooling with a window of 8."""

    def __init__(self, pool: Callable[..., torch.Tensor] | nn.Module) -> None:
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv2d(3, 8, 3, 1, 1), pool, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.stem(x).relu()).flatten(1))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(8), lambda x: F.avg_pool2d(x, 8)], ids=["module", "function"])
def test_one_window_that_leaves_out_the_border_is_not_global(pool: Callable[..., torch.Tensor]) -> None:
    patterns = {size: verdicts(Windowed(pool), "stochastic-pooling", size)[0][0] for size in (8, 12)}
    assert patterns == {8: "head", 12: "local pool"}


@pytest.mark.parametrize(("bins", "fewest"), [(2, 16), (3, 9), (6, 4)])
def test_bins_that_overlap_are_counted_as_they_are(bins: int, fewest: int) -> None:
    """As the gradient of one output says which elements it averages."""
    map_ = torch.zeros(1, 1, 7, 7, requires_grad=True)
    pooled = F.adaptive_avg_pool2d(map_, bins)
    read = [torch.autograd.grad(out, map_, retain_graph=True)[0].count_nonzero() for out in pooled.flatten()]
    assert min(read) == fewest
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(bins), nn.Conv2d(8, 4, 1), nn.Upsample(7))
    plan = rewriter.plan(_Pyramid(model), "stochastic-pooling", input_size=7)
    assert [site.action.split("average ")[1] for site in plan.sites] == [
        f"{fewest // 2} of {fewest} elements in training"
    ]


class _Pyramid(nn.Module):
    def __init__(self, level: nn.Module) -> None:
        super().__init__()
        self.level, self.out = level, nn.Conv2d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([x, self.level(x)], 1))
