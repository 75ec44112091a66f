"""The timestep-embedding pass: where it applies, both fixes, and what keeps its promises."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from group_norms import conditional_unet, scale_shift_unet, unet
from helpers import image, slow_but
from time_dependent import (
    ODE_INPUTS,
    TIMES,
    Added,
    ByFunction,
    ByMethod,
    Expanded,
    Function,
    InPlace,
    OdeFunction,
    OneDimension,
    Reversed,
    Scaled,
    ThreeDimensions,
    groups,
    images,
)
from torch import nn

import rewriter
from rewriter import Reason, testing
from rewriter.passes import TimestepEmbedding
from rewriter.passes.timestep_embedding.layers import PositionalPlanes, PositionalSum

POSITION = TimestepEmbedding("position")
FORMS = [Added, Reversed, InPlace, ByMethod, ByFunction, Expanded, Scaled, OneDimension, ThreeDimensions]


def on_meta() -> tuple[torch.Tensor, ...]:
    return tuple(given.to("meta") for given in images(Added))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("net", slow_but([Added, Function], [*FORMS, Function]), ids=lambda net: net.__name__)
def test_fewer_groups_whatever_the_form_of_the_sum(net: type[Added]) -> None:
    model = testing.check_contract(net(groups(16)), TimestepEmbedding(), example_inputs=images(net), must_find=True)
    norm = model.group_norm if net is Function else model.norm
    assert norm.num_groups < 16 and 32 % norm.num_groups == 0


@pytest.mark.parametrize("net", slow_but([Added, InPlace], FORMS), ids=lambda net: net.__name__)
def test_positions_whatever_the_form_of_the_sum(net: type[Added]) -> None:
    original = net(nn.BatchNorm2d if net.dimensions == 2 else groups(32))
    model = testing.check_contract(original, POSITION, example_inputs=images(net), must_find=True)
    (layer,) = (module for module in model.modules() if isinstance(module, PositionalSum))
    assert layer.amplitude.shape == (2**net.dimensions - 1, 32)
    x, t = images(net)
    model.eval(), original.eval()
    assert not torch.allclose(model(x, t), original(x, t), atol=1e-4)
    with torch.no_grad():
        layer.amplitude.zero_()
    torch.testing.assert_close(model(x, t), original(x, t), rtol=0, atol=0)  # it contains the original


@pytest.mark.slow
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, groups(64)], ids=["batch", "instance", "group"])
def test_planes_of_neural_odes(norm: Any) -> None:
    model = testing.check_contract(OdeFunction(norm), POSITION, example_inputs=ODE_INPUTS, must_find=True)
    layers = [module for module in model.modules() if isinstance(module, PositionalPlanes)]
    assert [layer.amplitude.shape for layer in layers] == [(3, 1)] * 2
    x = torch.randn(2, 64, 12, 10)
    assert model(torch.tensor(0.7), x).shape == x.shape  # at any resolution


def test_arguments_by_name_are_found_and_cannot_be_edited() -> None:
    class Named(Added):
        def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            return torch.add(input=h, other=embedding)

    class NamedPlane(Added):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            h = self.conv(x)
            plane = t.float()[:, None, None, None].expand(-1, 1, *h.shape[2:])
            return self.out(self.norm(torch.cat(tensors=[h, plane], dim=1)[:, 1:]))

    for model in (Named(nn.BatchNorm2d), NamedPlane(nn.BatchNorm2d)):
        plan = rewriter.plan(model, POSITION, example_inputs=images(Added))
        (skipped,) = plan.skipped
        assert not plan.sites and skipped.reason in (Reason.NOT_MOVABLE, "timestep-embedding/no-norm-behind")


def test_norms_without_groups_are_found_and_the_other_fix_is_named() -> None:
    for norm, kind in ((nn.BatchNorm2d, "batch norm"), (nn.InstanceNorm2d, "instance norm")):
        plan = rewriter.plan(Added(norm), TimestepEmbedding(), example_inputs=images(Added))
        (skipped,) = plan.skipped
        assert not plan.sites and skipped.reason == "timestep-embedding/no-groups" and kind in skipped.pattern
        assert skipped.detail.endswith("but fix='position' lets the embedding vary over space")


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, conditional_unet])
@pytest.mark.parametrize("fix", ["groups", "position"])
def test_unets_of_diffusers(make: Any, fix: str) -> None:
    model, inputs = make()
    plan = rewriter.plan(model, TimestepEmbedding(fix), example_inputs=inputs)
    blocks = {path for path, module in model.named_modules() if isinstance(module, ResnetBlock2D)}
    found = {item.path.removesuffix(".norm2") for item in (*plan.sites, *plan.skipped)}
    assert found == blocks and len(plan.sites) >= 6, "every block, and most of them are mended"
    assert {skip.reason for skip in plan.skipped} <= {"timestep-embedding/wide-groups"}


@pytest.mark.slow
@pytest.mark.parametrize("fix", ["groups", "position"])
def test_the_contract_on_a_unet(fix: str) -> None:
    model, inputs = unet()
    testing.check_contract(model, TimestepEmbedding(fix), example_inputs=inputs, must_find=True)


def test_the_default_block_of_diffusers_and_one_with_wide_groups() -> None:
    embedding = torch.randn(2, 512)
    for channels, reason in ((64, None), (1280, "timestep-embedding/wide-groups")):
        plan = rewriter.plan(
            ResnetBlock2D(in_channels=channels), TimestepEmbedding(), example_inputs=(image(4, channels), embedding)
        )
        assert [site.path for site in plan.sites] == (["norm2"] if reason is None else [])
        assert [skip.reason for skip in plan.skipped] == ([] if reason is None else [reason])


@pytest.mark.slow
def test_a_timestep_that_is_a_python_number() -> None:
    class ByNumber(Added):
        def forward(self, x: torch.Tensor, t: Any, scale: float = 1.0) -> torch.Tensor:
            return super().forward(x * scale, torch.tensor([t]) if isinstance(t, int) else t)

    plans = [
        rewriter.plan(ByNumber(groups(32)), TimestepEmbedding(fix), example_inputs=inputs)
        for fix in ("groups", "position")
        for inputs in ((image(8), 500), {"x": image(8), "t": 500, "scale": 0.5})
    ]
    assert [len(plan.sites) for plan in plans] == [1] * 4
    assert all("timesteps 500 and 250" in plan.sites[0].reason for plan in plans)


def dit() -> tuple[nn.Module, Any]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )
    given = {"hidden_states": image(8, 4), "timestep": TIMES, "class_labels": torch.tensor([1, 2])}
    return model, given


@pytest.mark.slow
@pytest.mark.parametrize("make", [dit, scale_shift_unet])
def test_adaptive_norms_are_fine(make: Any) -> None:
    model, inputs = make()
    for fix in ("groups", "position"):
        plan = rewriter.plan(model, TimestepEmbedding(fix), example_inputs=inputs)
        assert not plan.sites and len(plan.skipped) >= 5
        assert {skip.reason for skip in plan.skipped} == {"timestep-embedding/adaptive-norm"}
    assert not rewriter.check(model, "timestep-embedding", example_inputs=inputs)


def test_a_scale_and_shift_behind_the_norm() -> None:
    block = ResnetBlock2D(in_channels=64, time_embedding_norm="scale_shift")
    plan = rewriter.plan(block, TimestepEmbedding(), example_inputs=(image(8, 64), torch.randn(2, 512)))
    assert [skip.reason for skip in plan.skipped] == ["timestep-embedding/adaptive-norm"]


class Trunk(Added):
    """The embedding joins the trunk of a residual network; the branch has a norm of its own."""

    def __init__(self, *, last: nn.Module) -> None:
        super().__init__(groups(32))
        self.last = last

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.conv(x) + self.embedding(t)
        h = h + F.silu(self.norm(h))
        return self.out(self.last(h))


def test_a_trunk_is_followed_to_all_its_norms() -> None:
    plan = rewriter.plan(Trunk(last=nn.GroupNorm(32, 32)), TimestepEmbedding(), example_inputs=images(Added))
    assert [site.path for site in plan.sites] == ["norm", "last"]
    plan = rewriter.plan(Trunk(last=nn.Identity()), TimestepEmbedding(), example_inputs=images(Added))
    assert not plan.sites and [skip.reason for skip in plan.skipped] == ["timestep-embedding/read-elsewhere"]
    assert plan.skipped[0].detail.startswith("out reads")


def test_a_norm_that_is_called_twice_is_decided_once() -> None:
    class Twice(Added):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            h = self.norm(self.conv(x) + self.embedding(t)).relu()
            return self.out(self.norm(h + self.embedding(t + 1)))

    plan = rewriter.plan(Twice(groups(32)), TimestepEmbedding(), example_inputs=images(Added))
    assert [site.path for site in plan.sites] == ["norm"] and not plan.skipped
    assert plan.apply(Twice(groups(32))).norm.num_groups < 32


def test_a_single_channel_is_lost_with_any_number_of_groups() -> None:
    model = Added(groups(1), channels=1)
    (skipped,) = rewriter.plan(model, TimestepEmbedding(), example_inputs=images(Added)).skipped
    assert skipped.reason == "timestep-embedding/no-groups"


@pytest.mark.parametrize("last", [nn.LayerNorm([32, 8, 8]), nn.GroupNorm(1, 32), nn.ReLU()], ids=type)
def test_what_reads_before_any_norm_that_takes_it_out(last: nn.Module) -> None:
    class Kept(Added):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(self.last(self.conv(x) + self.embedding(t))))

    model = Kept(groups(32))
    model.last = last
    plan = rewriter.plan(model, TimestepEmbedding(), example_inputs=images(Added))
    assert not plan.sites and [skip.reason for skip in plan.skipped] == ["timestep-embedding/no-norm-behind"]


def test_an_embedding_that_all_channels_share_is_taken_out_by_one_group_too() -> None:
    class Shared(Added):
        def embedding(self, t: torch.Tensor) -> torch.Tensor:
            return super().embedding(t).mean(1, keepdim=True)

    plan = rewriter.plan(Shared(groups(1)), TimestepEmbedding(), example_inputs=images(Shared))
    assert [skip.reason for skip in plan.skipped] == ["timestep-embedding/no-groups"]
    testing.check_contract(Shared(groups(1)), POSITION, example_inputs=images(Shared), must_find=True)


def test_findings_have_codes_and_the_line_of_the_sum() -> None:
    lines = Path(__file__).with_name("time_dependent.py").read_text().splitlines()
    for norm, code in ((nn.BatchNorm2d, "RW0801"), (groups(32), "RW0801"), (groups(16), "RW0802")):
        for fix in ("groups", "position"):
            (finding,) = rewriter.check(Added(norm), TimestepEmbedding(fix), example_inputs=images(Added))
            assert finding.code == code and finding.severity == "warning" and finding.active
            assert finding.fixable is (fix == "position" or norm is not nn.BatchNorm2d)
            assert lines[finding.line - 1].strip() == "return h + embedding"
    assert not rewriter.check(Added(groups(1)), TimestepEmbedding(), example_inputs=images(Added))


def test_checkpoints_and_pickles() -> None:
    original = Added(nn.BatchNorm2d)
    model = rewriter.rewrite(original, POSITION, example_inputs=images(Added))
    model.load_state_dict(original.state_dict())
    again = Added(nn.BatchNorm2d)
    again.load_state_dict(rewriter.original_state_dict(model))
    with torch.no_grad():
        model.positional_sum.amplitude.mul_(0.5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = rewriter.rewrite(Added(nn.BatchNorm2d), POSITION, example_inputs=images(Added))
    other.load_state_dict(torch.load(file))
    x, t = images(Added)
    torch.testing.assert_close(other.eval()(x, t), model.eval()(x, t), rtol=0, atol=0)


@pytest.mark.slow
def test_it_trains_compiles_and_exports() -> None:
    model = rewriter.rewrite(Added(nn.BatchNorm2d), POSITION, example_inputs=images(Added))
    x, t = images(Added)
    model(x, t).square().mean().backward()
    assert model.positional_sum.amplitude.grad.abs().sum() > 0
    model.eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), model(x, t))
    sides = {dimension: torch.export.Dim(name, min=4, max=64) for dimension, name in ((2, "height"), (3, "width"))}
    exported = torch.export.export(model, (x, t), dynamic_shapes=(sides, None)).module()
    larger = torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(exported(larger, t), model(larger, t))


def test_other_resolutions_types_and_devices() -> None:
    model = rewriter.rewrite(Added(nn.BatchNorm2d), POSITION, example_inputs=images(Added)).eval()
    for size in ((1, 1), (5, 9), (16, 16)):
        assert model(torch.randn(2, 3, *size), TIMES).shape == (2, 3, *size)
    half = model.bfloat16().positional_sum
    assert half(image(8, 32).bfloat16(), torch.randn(2, 32, 1, 1).bfloat16()).dtype == torch.bfloat16
    empty = rewriter.rewrite(Added(nn.BatchNorm2d).to("meta"), POSITION, example_inputs=on_meta())
    materialised = empty.to_empty(device="cpu").positional_sum.amplitude
    assert materialised.sum(0).eq(1).all() and Counter(materialised.argmax(0).tolist()) == {0: 11, 1: 11, 2: 10}


def test_the_amplitudes_do_not_decay() -> None:
    model = rewriter.rewrite(Added(nn.BatchNorm2d), POSITION, example_inputs=images(Added))
    decayed = [group for group in rewriter.param_groups(model, weight_decay=0.1) if group["weight_decay"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert "positional_sum.amplitude" not in {names[id(p)] for group in decayed for p in group["params"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fix": "bias"}, r"fix: expected 'groups' or 'position', found 'bias'"),
        ({"keep": 0}, r"keep: expected a number above 0 and up to 1, found 0"),
        ({"keep": 1.5}, r"keep: expected a number above 0 and up to 1, found 1.5"),
        ({"keep": True}, r"keep: expected a number above 0 and up to 1, found True"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimestepEmbedding(**options)


def test_keep_decides_how_many_groups() -> None:
    chosen = [
        rewriter.plan(Added(groups(16)).to("meta"), TimestepEmbedding(keep=keep), example_inputs=on_meta())
        for keep in (0.5, 0.8, 0.95, 1.0)
    ]
    numbers = [plan.sites[0].edits[0].value if plan.sites else 16 for plan in chosen]
    assert numbers == [16, 8, 4, 1]
