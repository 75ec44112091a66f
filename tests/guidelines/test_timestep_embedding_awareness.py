"""Time-awareness: the table of the guideline, the measurement against a plain one, and what is said of it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from group_norms import unet
from helpers import image
from time_dependent import ODE_INPUTS, TIMES, Added, Joined, OdeFunction, groups
from torch import nn

import rewriter
from rewriter.passes import TimestepEmbedding
from rewriter.passes.timestep_embedding.awareness import Awareness, measured
from rewriter.passes.timestep_embedding.layers import waves

DRAWS = 24
BY_GROUPS = {64: 0.000, 32: 0.67, 16: 0.78, 8: 0.89, 1: 0.98}
RAMP = torch.linspace(-1, 1, 64).view(8, 8)


def drawn(norm: nn.Module, table: torch.Tensor | None = None) -> Iterator[Awareness]:
    """The time-awareness of unit normal maps and embeddings of 64 channels."""
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(4, 64, 8, 8, generator=generator), torch.randn(4, 64, generator=generator)
        (found,) = measured(rewriter.trace(Joined(norm, table), inputs)).blocks.values()
        yield found


def test_the_table_for_numbers_of_groups() -> None:
    """The table is of one draw: it lies within two standard deviations of a draw around our mean."""
    found = list(drawn(nn.GroupNorm(64, 64)))
    for number, expected in BY_GROUPS.items():
        values = [awareness.by_groups[number] for awareness in found]
        deviation = statistics.stdev(values)
        assert deviation < 0.09, "the tolerance would say little"
        assert abs(statistics.mean(values) - expected) <= 2 * deviation + 1e-6, number
    assert all(awareness.now == awareness.by_groups[64] <= 1e-6 for awareness in found)
    means = [statistics.mean(awareness.by_groups[number] for awareness in found) for number in BY_GROUPS]
    assert means == sorted(means), "fewer groups keep more"


def test_a_batch_norm_takes_out_a_timestep_that_the_batch_shares() -> None:
    """9e-8 in the table: rounding in single precision, which differs between machines."""
    found = list(drawn(nn.BatchNorm2d(64)))
    assert all(0 <= awareness.now <= 1e-6 for awareness in found)
    assert min(awareness.placed for awareness in found) > 0.63, "with the positions of the layer"


def test_an_instance_norm_takes_out_everything() -> None:
    assert all(awareness.now <= 1e-6 for awareness in drawn(nn.InstanceNorm2d(64)))


def test_an_embedding_that_varies_over_space_before_a_batch_norm() -> None:
    """0.63 in the table, with a ramp over the map: we do not know its table, and this is the plainest."""

    def changed(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(4, 64, 8, 8, generator=generator)
        one, other = (
            F.silu(F.batch_norm(x + embedding[:, None, None] * RAMP, None, None, training=True))
            for embedding in torch.randn(2, 64, generator=generator)
        )
        return float((one - other).norm() / one.norm())

    values = [changed(seed) for seed in range(DRAWS)]
    assert statistics.stdev(values) < 0.05
    assert abs(statistics.mean(values) - 0.63) <= 2 * statistics.stdev(values)


@pytest.mark.slow
def test_the_measurement_is_that_of_a_block_run_twice() -> None:
    """A ResnetBlock2D has its map from its first input: it can be run at two embeddings and looked at by hooks."""
    torch.manual_seed(0)
    block, x, embeddings = ResnetBlock2D(in_channels=64), image(8, 64), torch.randn(2, 512)
    for fix in ("groups", "position"):
        plan = rewriter.plan(block, TimestepEmbedding(fix), example_inputs=(x, embeddings))
        rewritten = plan.apply(block)
        (before, after) = map(float, re.search(r"([\d.]+) -> ([\d.]+)$", plan.sites[0].action).groups())  # type: ignore[union-attr]
        assert behind_norm(block, block.norm2, x, embeddings) == pytest.approx(before, abs=0.005)
        assert behind_norm(rewritten, rewritten.norm2, x, embeddings) == pytest.approx(after, abs=0.005)
        assert after > before
        assert change_of_output(rewritten, x, embeddings) > change_of_output(block, x, embeddings)


@torch.no_grad()
def behind_norm(block: nn.Module, norm: nn.Module, x: torch.Tensor, embeddings: torch.Tensor) -> float:
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda *given: seen.append(F.silu(given[2])))
    for embedding in embeddings:
        block(x, embedding.expand(2, -1))
    handle.remove()
    return float((seen[0] - seen[1]).norm() / seen[0].norm())


@torch.no_grad()
def change_of_output(block: nn.Module, x: torch.Tensor, embeddings: torch.Tensor) -> float:
    """What the whole block adds to its shortcut."""
    one, other = (block(x, embedding.expand(2, -1)) - x for embedding in embeddings)
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("norm", [groups(16), nn.BatchNorm2d, nn.InstanceNorm2d], ids=["group", "batch", "instance"])
@torch.no_grad()
def test_planes_are_measured_through_their_convolution(norm: Any) -> None:
    """Zero padding leaks the time at the border, so that a little is left."""
    torch.manual_seed(0)
    model, (t, x) = OdeFunction(norm), ODE_INPUTS
    found = list(measured(rewriter.trace(model, ODE_INPUTS)).blocks.values())
    model.eval().norm2.train()  # a batch norm by the batch
    one, other = (model.relu(model.norm2(model.conv1(time, model.norm1(x).relu()))) for time in (t, t / 2))
    plain = float((one - other).norm() / one.norm())
    assert len(found) == 2 and found[0].now == pytest.approx(plain, rel=1e-3) and plain > 0
    assert found[0].placed > found[0].now or norm is not nn.BatchNorm2d


def test_planning_leaves_the_model_and_its_running_statistics_alone() -> None:
    model = Added(nn.BatchNorm2d)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewriter.plan(model, TimestepEmbedding("position"), example_inputs=(image(8), TIMES))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("timestep", "said"),
    [
        (torch.tensor([1, 500]), "timesteps 1 and 500"),
        (torch.tensor([7, 7]), "timesteps 7 and 3"),
        (torch.tensor([0, 0]), "timesteps 0 and 1"),
        (torch.tensor([0.5, 0.5]), "timesteps 0.5 and 0.25"),
        (torch.tensor([1]), "timesteps 1 and 0"),
    ],
)
def test_the_two_timesteps_are_those_of_the_batch_or_made_from_it(timestep: torch.Tensor, said: str) -> None:
    plan = rewriter.plan(Added(groups(16)), TimestepEmbedding(), example_inputs=(image(8), timestep))
    assert plan.sites[0].reason.endswith(f"measured on the model's weights between {said}")


def test_without_values_a_law_decides() -> None:
    inputs = image(8).to("meta"), TIMES.to("meta")
    plan = rewriter.plan(Added(groups(16)).to("meta"), TimestepEmbedding(), example_inputs=inputs)
    assert plan.sites[0].action == "set num_groups 16 -> 2, time-awareness 0.71 -> 0.97"
    assert plan.sites[0].reason.endswith("by the law sqrt(1 - 1 / channels a group), since the model has no values")


def test_an_embedding_that_is_zero_before_training_is_judged_by_the_law() -> None:
    model = Added(groups(16))
    nn.init.zeros_(model.time[2].weight)
    plan = rewriter.plan(model, TimestepEmbedding(), example_inputs=(image(8), TIMES))
    assert "0.71 -> 0.97" in plan.sites[0].action and "does not change yet" in plan.sites[0].reason


@pytest.mark.slow
def test_numbers_in_a_plan_of_a_unet_are_those_of_the_rewritten_model() -> None:
    """The second of two plans measures what the first one promised, but for the maps that differ by then."""
    torch.manual_seed(0)
    model, inputs = unet()
    plan = rewriter.plan(model, TimestepEmbedding(), example_inputs=inputs)
    found = measured(rewriter.trace(plan.apply(model, verify=False), inputs)).blocks
    assert plan.sites
    for site in plan.sites:
        promised = float(site.action.rpartition(" ")[2])
        (now,) = (value.now for (_, norm), value in found.items() if norm == site.path)
        assert now == pytest.approx(promised, rel=0.15)


@pytest.mark.parametrize("size", [(8,), (7,), (8, 8), (5, 12), (2, 3), (4, 6, 8)])
def test_positions_have_mean_0_and_mean_square_1_at_any_resolution(size: tuple[int, ...]) -> None:
    table = waves(size).flatten(1).double()
    assert len(table) == 2 ** len(size) - 1
    assert table.mean(1).abs().max() <= 1e-6
    between = table @ table.T / table.shape[1]
    torch.testing.assert_close(between, torch.eye(len(table), dtype=torch.double), atol=1e-6, rtol=0)


def test_the_positions_of_another_resolution_are_the_same_picture() -> None:
    halved = F.avg_pool2d(waves((32, 64))[None], 2)[0]
    torch.testing.assert_close(halved, waves((16, 32)), atol=5e-3, rtol=0)
