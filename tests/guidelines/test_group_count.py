"""The group-count pass: its law against real backward passes, its choices, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import diffusers
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import assert_unchanged, image, snapshot, timm_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rewriter
from rewriter import testing, zoo
from rewriter.analysis.activations import ActivationMoments, activation_moments
from rewriter.analysis.chains import find_group_norms
from rewriter.analysis.trained_weights import carries_trained_weights
from rewriter.errors import SelectorError
from rewriter.passes import GroupCount
from rewriter.passes.group_count import GroupChoice, gains
from rewriter.passes.group_count.layers import GroupNormFunction
from rewriter.passes.group_count.measuring import expected_gains, measured_gains
from rewriter.passes.group_count.rules import (
    TIE,
    channels_per_group,
    divisors,
    isometry,
    nearest,
    nearest_to_present,
    slack,
)
from rewriter.reasons import Reason

pytestmark = pytest.mark.slow

RELU = ActivationMoments(1 / math.sqrt(2 * math.pi), 0.5, 0.5, 0.5)


def backward_gain(chain: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, draws: int = 3) -> float:
    """The norm of the gradient at ``x`` over that at the output, for random gradients at the output."""
    x = x.detach().requires_grad_()
    squares = []
    out = chain(x)
    for _ in range(draws):
        gradient = torch.randn_like(out)
        (found,) = torch.autograd.grad(out, x, gradient, retain_graph=True)
        squares.append(float(found.norm() / gradient.norm()) ** 2)
    return math.sqrt(sum(squares) / draws)


class Chain(nn.Module):
    """A weight, a group norm with one group, and an activation."""

    def __init__(self, weight: nn.Module, channels: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.norm, self.activation = weight, nn.GroupNorm(1, channels), activation or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.weight(x)))


def all_measured(model: nn.Module, x: Any) -> dict[Any, dict[int, float]]:
    return measured_gains(rewriter.trace(model, x), lambda place, values: None)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (lambda: nn.Conv2d(32, 48, 3, padding=1), (4, 32, 10, 10), 48),
    "strided conv": (lambda: nn.Conv2d(32, 48, 3, 2, 1), (4, 32, 16, 16), 48),
    "grouped conv": (lambda: nn.Conv2d(32, 64, 3, padding=1, groups=4), (4, 32, 12, 12), 64),
    "depthwise conv": (lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64), (4, 64, 12, 12), 64),
    "circular conv": (lambda: nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"), (4, 32, 12, 12), 32),
    "conv of sequences": (lambda: nn.Conv1d(32, 64, 5), (4, 32, 100), 64),
    "transposed conv": (lambda: nn.ConvTranspose2d(32, 16, 4, 2, 1), (4, 32, 10, 10), 16),
    "linear": (lambda: nn.Linear(256, 256), (256, 256), 256),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 48, 1)), (4, 32, 12, 12), 48),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, None])
def test_measured_gain_is_that_of_a_backward_pass(layer: str, activation: type[nn.Module] | None) -> None:
    make, shape, channels = LAYERS[layer]
    model = Chain(make(), channels, activation() if activation else None)
    x = F.relu(torch.randn(shape) + 0.5)
    (measured,) = all_measured(model, x).values()
    assert set(measured) == set(divisors(channels))
    for groups in divisors(channels):
        if channels // groups < 16 and layer == "linear":  # the inverse variance of few numbers has a heavy tail
            continue
        model.norm.num_groups = groups
        assert measured[groups] == pytest.approx(backward_gain(model, x), rel=0.05), groups


def test_the_published_simulation_of_a_unit_relu_layer_holds() -> None:
    """256 to 64 channels with He weights: squared gains from 1.0 with one group to 1.47 with one for each channel."""
    conv = nn.Conv2d(256, 64, 3, padding=1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (256 * 9)))
    model = Chain(conv, 64, nn.ReLU())
    x = F.relu(torch.randn(2, 256, 24, 24))
    (measured,) = all_measured(model, x).values()
    closed = gains.closed_form(64, 24 * 24, RELU, RELU)
    for groups in divisors(64):
        law = 1 / (1 - groups / (math.pi * 64))
        assert closed[groups] == pytest.approx(law * (1 - 2 / (64 / groups * 24 * 24)))
        model.norm.num_groups = groups
        squared = backward_gain(model, x) ** 2
        assert measured[groups] ** 2 == pytest.approx(squared, rel=0.04)
        assert closed[groups] == pytest.approx(squared, rel=0.1)
    assert closed[64] == pytest.approx(1.467, rel=0.01) and closed[1] == pytest.approx(1.005, rel=0.01)


def test_closed_form_without_positions_is_that_of_the_mean_inverse_variance() -> None:
    closed = gains.closed_form(256, 1, RELU, RELU)
    for groups, measured in {16: 1.077, 32: 1.2, 64: 2.0}.items():
        size = 256 // groups
        assert closed[groups] == pytest.approx((size - 2) / (size - 3))
        assert closed[groups] == pytest.approx(measured, rel=0.01)
    assert closed[128] == math.inf == closed[256]


@pytest.mark.parametrize(("name", "chains"), [("resnet50_gn", 53), ("resnetv2_50d_gn", 34), ("resnetv2_50x1_bit", 32)])
def test_measured_gains_of_real_chains_are_those_of_their_backward_passes(name: str, chains: int) -> None:
    """The chains of models as they are, with standardised weights and padding and the inputs that they get."""
    model, inputs = timm_model(name).eval(), {}
    trace = rewriter.trace(model, input_size=64)
    measured = measured_gains(trace, lambda place, values: None)
    calls = [call for call in find_group_norms(trace.eval.dataflow, model) if call.chain is not None]
    assert len(calls) == len(measured) == chains
    sampled = calls[::7]
    for call in sampled:
        weight = model.get_submodule(str(call.chain.weight.target))
        weight.register_forward_pre_hook(lambda _, args, place=call.place: inputs.update({place: args[0]}))
    with torch.no_grad():
        model(*trace.inputs.args)
    for call in sampled:
        weight = model.get_submodule(str(call.chain.weight.target))
        for groups in (1, 4, 32):

            def chain(x: torch.Tensor, weight: Any = weight, call: Any = call, groups: int = groups) -> torch.Tensor:
                z = F.group_norm(weight(x), groups, eps=model.get_submodule(call.holder).eps)
                return F.relu(z) if call.chain.activation else z

            gain = backward_gain(chain, inputs[call.place], draws=2)
            assert measured[call.place][groups] == pytest.approx(gain, rel=0.05), (call.place, groups)


@pytest.mark.parametrize("make", [nn.ReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.PReLU, lambda: nn.PReLU(48), nn.Hardswish])
def test_moments_of_an_activation_are_those_of_many_draws(make: Callable[[], nn.Module]) -> None:
    model = Chain(nn.Conv2d(3, 48, 1), 48, make())
    (call,) = find_group_norms(rewriter.trace(model, torch.randn(2, 3, 4, 4)).train.dataflow, model)
    found = activation_moments(call.chain.activation, model)
    z = torch.randn(20000, 48, requires_grad=True)
    f = model.activation(z)
    (slope,) = torch.autograd.grad(f.sum(), z)
    expected = (f.mean(), f.square().mean(), slope.square().mean(), (slope * z).square().mean())
    for value, drawn in zip((found.mean, found.square, found.slope, found.radial_slope), expected, strict=True):
        assert value == pytest.approx(float(drawn), abs=0.01)


gain = st.one_of(st.floats(0.01, 100), st.sampled_from([0.0, math.inf]))


@given(st.sampled_from([16, 48, 60, 64, 96, 210]), st.data())
def test_a_choice_is_nearest_to_one_in_the_band_and_of_equals_the_largest_groups(channels: int, data: Any) -> None:
    numbers = divisors(channels)
    values = dict(zip(numbers, data.draw(st.lists(gain, min_size=len(numbers), max_size=len(numbers))), strict=True))
    band = tuple(sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1))))
    chosen = nearest(isometry)(GroupChoice(channels, channels, 1, 0.5, values, band))
    assert chosen in band

    def distance(groups: int) -> float:
        return abs(math.log(values[groups])) if 0 < values[groups] < math.inf else math.inf

    assert all(distance(chosen) <= distance(other) + TIE for other in band)
    assert all(distance(other) > min(map(distance, band)) + TIE for other in band if other < chosen)


@given(st.sampled_from([16, 48, 60, 64, 96, 210]), st.integers(1, 64), st.data())
def test_channels_per_group_are_as_near_as_the_band_allows(channels: int, size: int, data: Any) -> None:
    numbers = divisors(channels)
    band = tuple(sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1))))
    chosen = nearest(channels_per_group(size))(GroupChoice(channels, channels, 1, 0.5, {}, band))
    distances = {groups: abs(math.log(channels / groups / size)) for groups in band}
    assert distances[chosen] <= min(distances.values()) + TIE


MEASURED = GroupCount(rule="measured-isometry")


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, rewriter.Plan]:
    model = timm_model("resnetv2_50d_gn")
    return model, rewriter.plan(model, MEASURED, input_size=64)


def test_every_norm_is_set_to_a_divisor_in_the_band_with_its_gains(planned: Any) -> None:
    model, plan = planned
    assert len(plan.sites) > 30
    for site in plan.sites:
        (edit,) = site.edits
        norm = model.get_submodule(edit.path)
        assert edit.name == "num_groups" and edit.value != norm.num_groups == 32
        assert norm.num_channels % edit.value == 0 and edit.value >= 2 and norm.num_channels // edit.value >= 8
        assert site.action.startswith(f"set num_groups 32 -> {edit.value}, gradient gain ")
        assert site.reason.endswith("measured on Gaussian input")


def test_the_text_of_a_plan_names_the_gains_of_every_layer(planned: Any) -> None:
    text = str(planned[1])
    for site in planned[1].sites:
        assert site.action.partition(", ")[2] in text  # no two gains are joined into one set of numbers


def test_pre_activation_norms_have_no_weight_before_them(planned: Any) -> None:
    reasons = {skip.path: skip.reason for skip in planned[1].skipped}
    assert reasons["stages.1.blocks.1.norm1"] == reasons["norm"] == Reason.NO_WEIGHT_BEFORE
    assert reasons.get("stages.1.blocks.1.norm2") in (None, Reason.ALREADY_DONE)


def test_choices_are_the_nearest_to_one_behind_the_chosen_norms_above(planned: Any) -> None:
    """Layer by layer: the gains that the plan names are those of the model that it makes."""
    model, plan = planned
    rewritten = plan.apply(model, verify=False)
    measured = all_measured(rewritten, image(64))
    again = rewriter.plan(rewritten, MEASURED, example_inputs=image(64))
    assert not again.sites
    for site in plan.sites:
        groups, values = site.edits[0].value, measured[site.path]
        assert f"-> {values[groups]:.2f}" in site.action
        band = [g for g in values if g >= 2 and g <= rewritten.get_submodule(site.path).num_channels // 8]
        assert abs(math.log(values[groups])) <= min(abs(math.log(values[g])) for g in band) + TIE
        free = min(values, key=lambda g: abs(math.log(values[g])))
        near = abs(math.log(values[groups])) <= abs(math.log(values[free])) + TIE
        assert near or ", the band decided (" in site.action


@pytest.mark.parametrize("asked", [GroupCount(), MEASURED], ids=["isometry", "measured-isometry"])
def test_only_the_numbers_change_and_planning_touches_nothing(asked: GroupCount) -> None:
    model = timm_model("resnet50_gn", num_classes=10)
    model.train()
    seen: list[str] = []
    model.layer1[0].conv1.register_forward_hook(lambda *_: seen.append("hook"))
    before = snapshot(model)
    rewriter.plan(model, asked, input_size=64)
    assert_unchanged(model, before)
    assert not seen
    rewritten = testing.check_contract(model, asked, input_size=64)
    assert_unchanged(model, before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rewritten.parameters(), strict=True))
    assert {m.num_groups for m in rewritten.modules() if isinstance(m, nn.GroupNorm)} > {8, 32}


def test_a_measured_choice_does_not_depend_on_the_numbers_that_are_there(planned: Any) -> None:
    model, plan = planned
    other = timm_model("resnetv2_50d_gn")
    for path in {site.path for site in plan.sites}:
        other.get_submodule(path).num_groups = 1
    expected, found = (
        plan.apply(model, verify=False),
        rewriter.rewrite(other, MEASURED, input_size=64, verify=False),
    )
    for module, same in zip(expected.modules(), found.modules(), strict=True):
        assert getattr(module, "num_groups", None) == getattr(same, "num_groups", None)


def test_trained_weights_are_held_back_and_fresh_ones_are_not() -> None:
    model = timm_model("resnetv2_50d_gn")
    assert not carries_trained_weights(model)
    assert rewriter.plan(model, input_size=64).findings("group-count")[0]
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.weight.uniform_(0.5, 1.5)
    plan = rewriter.plan(model, input_size=64)
    sites, skipped, _ = plan.findings("group-count")
    held = [skip for skip in skipped if skip.reason is Reason.HELD_BACK]
    assert not sites and held and plan.notes[0].startswith("held back: group-count")
    assert rewriter.plan(model, "group-count", input_size=64).sites  # asked for by name


def test_a_model_without_values_is_measured_in_closed_form() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet50_gn")
    plan = rewriter.plan(model, MEASURED, input_size=224)
    sites = {site.path: site for site in plan.sites}
    assert len(sites) == 53
    assert all(site.reason.endswith("closed form: the model has no values") for site in plan.sites)
    assert "32 -> 2, gradient gain 1.09 -> 1.01, the band decided (1 would have 1.00)" in sites["layer1.0.bn2"].action
    assert sites["layer1.0.bn3"].pattern == "weight → group norm"


def test_a_model_whose_run_cannot_be_repeated_is_planned_in_closed_form(import_text: Any) -> None:
    module = import_text(
        """
        import torch
        from torch import nn

        class Reads(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.other, self.norm = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 1), nn.GroupNorm(16, 32)
                self.register_buffer("chosen", torch.ones(()))

            def forward(self, x):
                conv = self.conv if x.is_meta else self.other
                return self.norm(conv(x)).relu()
        """
    )
    for rule, values in (("isometry", "drawn"), ("measured-isometry", "its own")):
        plan = rewriter.plan(module.Reads(), GroupCount(rule=rule), input_size=16)
        assert [site.edits[0].value for site in plan.sites] == [{"drawn": 4, "its own": 2}[values]]
        assert f"closed form: the model does not run on {values} values as it was traced" in plan.sites[0].reason


def test_parameters_that_forward_writes_to_are_left_alone(import_text: Any) -> None:
    module = import_text(
        """
        import torch
        from torch import nn

        class Writes(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 32, 3), nn.GroupNorm(16, 32)
                self.register_buffer("count", torch.zeros(()))

            def forward(self, x):
                with torch.no_grad():
                    self.conv.weight.mul_(0.5)
                    self.count.add_(1)
                return self.norm(self.conv(x)).relu()
        """
    )
    model = module.Writes()
    before = snapshot(model)
    plan = rewriter.plan(model, MEASURED, input_size=16)
    assert plan.sites[0].reason.endswith("measured on Gaussian input")
    assert rewriter.plan(model, GroupCount(), input_size=16).sites[0].reason.endswith("draws of the weights")
    assert_unchanged(model, before)


def test_half_precision_is_measured() -> None:
    model = Chain(nn.Conv2d(3, 64, 3), 64, nn.ReLU())
    x = image(16)
    expected = all_measured(model, x)["norm"]
    found = all_measured(model.bfloat16(), x.bfloat16())["norm"]
    assert found == {groups: pytest.approx(value, rel=0.02) for groups, value in expected.items()}


UNET: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16}


def unet() -> tuple[nn.Module, Any]:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(sample_size=16, in_channels=3, out_channels=3, **UNET, **blocks)
    return model, (image(16), torch.tensor([1, 500]))


def conditional_unet() -> tuple[nn.Module, Any]:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    model = diffusers.UNet2DConditionModel(sample_size=16, cross_attention_dim=32, **UNET, **blocks)
    return model, (image(16, 4), torch.tensor([1, 500]), torch.randn(2, 7, 32))


def scale_shift_unet() -> tuple[nn.Module, Any]:
    model, x = unet()
    return diffusers.UNet2DModel(**{**model.config, "resnet_time_scale_shift": "scale_shift"}), x


def autoencoder() -> tuple[nn.Module, Any]:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**UNET, **blocks), image(16)


FEW_LAYERS = {"layers": (1, 1, 1, 1)}


class TestExpectedGains:
    """The default: what is decided depends on the architecture, and on nothing that a process draws."""

    @pytest.mark.parametrize("layer", LAYERS)
    def test_they_are_those_of_backward_passes_through_drawn_weights(self, layer: str) -> None:
        make, shape, channels = LAYERS[layer]
        model = Chain(make(), channels, nn.ReLU())
        (expected,) = expected_gains(rewriter.trace(model, torch.zeros(shape))).values()
        drawn = []
        for _ in range(12):
            found = Chain(make(), channels, nn.ReLU())
            if layer == "depthwise conv":  # of nine weights the distribution tells; torch's is uniform
                nn.init.normal_(found.weight.weight)
            (of_draw,) = all_measured(found, torch.randn(shape)).values()
            drawn.append(of_draw)
        for groups in divisors(channels):
            if channels // groups >= 8:
                law = math.sqrt(sum(of_draw[groups] ** 2 for of_draw in drawn) / len(drawn))
                scale = 1.0 if layer != "weight norm" else expected[1] / drawn[0][1]  # its lengths are drawn otherwise
                assert expected[groups] == pytest.approx(law * scale, rel=0.06), groups

    @pytest.mark.parametrize(
        ("name", "options"),
        [("resnetv2_50d_gn", FEW_LAYERS), ("test_efficientnet_gn", {})],
    )
    def test_a_plan_is_the_same_whatever_the_process_has_drawn(self, name: str, options: Any) -> None:
        def plan(seed: int, change: Callable[[nn.Module], nn.Module] = nn.Module.float, **inputs: Any) -> Any:
            torch.manual_seed(seed)
            model = change(timm.create_model(name, **options))
            made = rewriter.plan(model, GroupCount(tolerance=0), **(inputs or {"input_size": 64}))
            return made.sites, made.skipped

        first = plan(0)
        assert first[0] and all("expected over" in site.reason for site in first[0])
        assert plan(1) == first
        assert plan(2, nn.Module.bfloat16) == first
        assert plan(2, nn.Module.double) == first
        assert plan(3, lambda model: model.to("meta")) == first
        assert plan(4, example_inputs=torch.rand(5, 3, 64, 64)) == first
        threads = torch.get_num_threads()
        torch.set_num_threads(3 - min(threads, 2))
        try:
            with torch.autocast("cpu", torch.bfloat16), torch.device("cpu"):
                assert plan(5) == first
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.parametrize("make", [unet, autoencoder])
    def test_inputs_besides_an_image_are_not_read_either(self, make: Any) -> None:
        def plan(seed: int) -> Any:
            torch.manual_seed(seed)
            model, x = make()
            made = rewriter.plan(model, GroupCount(tolerance=0), example_inputs=x)
            return made.sites, made.skipped

        assert plan(0) == plan(1) and plan(0)[0]
        assert all("expected over 8 draws of the weights" in site.reason for site in plan(0)[0])

    def test_a_rewritten_model_has_nothing_left_to_set(self) -> None:
        model = rewriter.rewrite(timm_model("resnetv2_50d_gn", **FEW_LAYERS), GroupCount(), input_size=64)
        again = rewriter.plan(model, GroupCount(), input_size=64)
        assert not again.sites and rewriter.report(model).applied
        assert sum(skip.reason is Reason.ALREADY_DONE for skip in again.skipped) == 10

    def test_of_numbers_within_the_tolerance_the_nearest_to_the_present_is_kept(self) -> None:
        model = timm_model("resnetv2_50d_gn", **FEW_LAYERS).to("meta")
        numbers = {}
        for tolerance in (0, 0.05, 0.5):
            plan = rewriter.plan(model, GroupCount(tolerance=tolerance), input_size=64)
            numbers[tolerance] = {site.path: site.edits[0].value for site in plan.sites}
        assert len(numbers[0]) >= len(numbers[0.05]) > len(numbers[0.5])
        norms = {path: model.get_submodule(path) for path in numbers[0.5]}
        assert all(numbers[0.5][path] == norm.num_channels // 8 < norm.num_groups for path, norm in norms.items())

    def test_a_model_that_does_not_run_on_drawn_inputs_is_planned_in_closed_form(self) -> None:
        """A detector refuses boxes that are drawn: the same refusal, and the same plan, everywhere."""
        plans = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            entry = zoo.create("torchvision:fcos_resnet50_fpn", min_size=64, max_size=64)
            plans.append(rewriter.plan(entry.model, GroupCount(), example_inputs=entry.example_inputs))
        assert plans[0].sites == plans[1].sites and plans[0].skipped == plans[1].skipped
        details = [skip.detail for skip in plans[0].skipped if skip.reason is Reason.ALREADY_DONE]
        assert len(details) == 8
        assert all("closed form: the model does not run on drawn values" in detail for detail in details)


@given(st.sampled_from([16, 48, 60, 64, 96, 210]), st.floats(0, 0.5), st.data())
def test_a_choice_changes_no_more_than_it_must(channels: int, tolerance: float, data: Any) -> None:
    numbers = divisors(channels)
    values = dict(zip(numbers, data.draw(st.lists(gain, min_size=len(numbers), max_size=len(numbers))), strict=True))
    band = tuple(sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1))))
    present = data.draw(st.sampled_from(numbers))
    choice = GroupChoice(channels, channels, present, 0.5, values, band)
    chosen = nearest_to_present(isometry, tolerance)(choice)
    best = min(isometry(choice, groups) for groups in band)
    equal = [groups for groups in band if isometry(choice, groups) <= best + slack(tolerance)]
    assert chosen in equal
    assert all(abs(math.log(chosen / present)) <= abs(math.log(other / present)) for other in equal)
    assert present not in equal or chosen == present


@pytest.mark.parametrize("make", [unet, conditional_unet, scale_shift_unet, autoencoder])
def test_norms_behind_the_time_embedding_of_diffusion_models_are_set(make: Any) -> None:
    torch.manual_seed(0)
    model, x = make()
    plan = rewriter.plan(model, MEASURED, example_inputs=x)
    in_chains = {site.path for site in plan.sites} | {
        skip.path for skip in plan.skipped if skip.reason is Reason.ALREADY_DONE
    }
    second_norms = {path for path, m in model.named_modules() if path.endswith("norm2") and isinstance(m, nn.GroupNorm)}
    assert in_chains == second_norms and plan.sites
    assert all(site.pattern == "weight → group norm → activation" for site in plan.sites)
    assert all(site.reason.endswith("measured on the given input") for site in plan.sites)
    testing.check_contract(model, MEASURED, example_inputs=x)


def test_the_time_embedding_counts_in_the_moments() -> None:
    """A term that differs between channels makes groups of many channels more varied, and the gain smaller."""
    torch.manual_seed(0)
    model, x = unet()
    before = all_measured(model, x)["mid_block.resnets.0.norm2"]
    with torch.no_grad():
        model.mid_block.resnets[0].time_emb_proj.bias.normal_(std=10)
    after = all_measured(model, x)["mid_block.resnets.0.norm2"]
    assert after[1] < before[1] / 4 and after[64] == pytest.approx(before[64], rel=1e-3)


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_heads_that_are_called_on_every_level_get_one_number_each(name: str) -> None:
    torch.manual_seed(0)
    entry = zoo.create(f"torchvision:{name}", min_size=64, max_size=64)
    plan = rewriter.plan(entry.model, MEASURED, example_inputs=entry.example_inputs)
    norms = {path for path, module in entry.model.named_modules() if isinstance(module, nn.GroupNorm)}
    done = {skip.path for skip in plan.skipped if skip.reason is Reason.ALREADY_DONE}
    assert len(norms) == 8 and {site.path for site in plan.sites} | done == norms and len(plan.sites) >= 4
    rewritten = plan.apply(entry.model, verify=False)
    assert not rewriter.plan(rewritten, MEASURED, example_inputs=entry.example_inputs).sites


def test_calls_of_one_norm_decide_together() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = Chain(nn.Conv2d(8, 64, 3), 64, nn.ReLU())

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.chain(x), self.chain(x * 4 + 2)

    model, x = Shared(), image(16, 8)
    single = [all_measured(model.chain, x)["norm"], all_measured(model.chain, x * 4 + 2)["norm"]]
    together = all_measured(model, x)["chain.norm"]
    for groups, value in together.items():
        assert value**2 == pytest.approx((single[0][groups] ** 2 + single[1][groups] ** 2) / 2, rel=1e-4)


FUNCTIONAL = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 64, 3, bias=False), nn.Linear(64, 5)
        self.gamma, self.beta = nn.Parameter(torch.ones(64)), nn.Parameter(torch.zeros(64))

    def forward(self, x):
        x = F.group_norm(self.conv(x), 32, self.gamma, self.beta, eps=1e-6)
        x = torch.relu(x)
        return self.head(x.mean((2, 3)))
"""


def test_a_number_written_in_the_code_is_redirected(import_text: Callable[[str], ModuleType]) -> None:
    model = import_text(FUNCTIONAL).Net()
    plan = rewriter.plan(model, GroupCount(), input_size=16)
    assert "+        x = self.group_norm(self.conv(x), 32, self.gamma, self.beta, eps=1e-6)" in plan.diff(model)
    rewritten = testing.check_contract(model, GroupCount(), input_size=16)
    assert isinstance(rewritten.group_norm, GroupNormFunction)
    groups, x = rewritten.group_norm.num_groups, image(16)
    assert groups < 32
    expected = F.relu(F.group_norm(model.conv(x), groups, model.gamma, model.beta, eps=1e-6)).mean((2, 3))
    assert torch.equal(rewritten(x), model.head(expected))
    wider = rewriter.plan(rewritten, GroupCount(rule="channels-per-group", channels=32), input_size=16)
    assert [(edit.path, edit.name, edit.value) for edit in wider.edits] == [("group_norm", "num_groups", 2)]


class Other(nn.Module):
    """Norms that are in no chain, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.small = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 12, 1)
        self.read_twice, self.of_input, self.of_sum, self.outside = (
            nn.GroupNorm(8, 32), nn.GroupNorm(1, 3), nn.GroupNorm(8, 32), nn.GroupNorm(1, 12),
        )  # fmt: skip
        self.layer, self.instance, self.batch = nn.LayerNorm(8), nn.InstanceNorm2d(32), nn.BatchNorm2d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.of_input(x))
        z = self.of_sum(y + self.read_twice(y))
        return self.outside(self.small(self.batch(self.instance(self.layer(z)))))


def test_near_misses_are_told_apart() -> None:
    plan = rewriter.plan(Other(), GroupCount(), input_size=8)
    assert not plan.sites
    found = {skip.path: (skip.reason, skip.detail) for skip in plan.skipped}
    assert found == {
        "of_input": (Reason.NO_WEIGHT_BEFORE, "the input comes directly before the norm, not a weight"),
        "read_twice": (Reason.NO_WEIGHT_BEFORE, "the output of conv is not read by the norm alone"),
        "of_sum": (Reason.NO_WEIGHT_BEFORE, "a sum comes directly before the norm, not a weight"),
        "outside": (
            Reason.OUTSIDE_BAND, "12 channels cannot be divided into at least 2 groups of at least 8 channels",
        ),
    }  # fmt: skip
    wider = rewriter.plan(Other(), GroupCount(min_channels_per_group=3), input_size=8)
    assert [site.path for site in wider.sites] == ["outside"]


def test_norms_of_token_mixers_have_no_weight_before_them() -> None:
    with torch.device("meta"):
        model = timm.create_model("poolformer_s12")
    plan = rewriter.plan(model, GroupCount(), input_size=64)
    assert not plan.sites and {skip.reason for skip in plan.skipped} == {Reason.NO_WEIGHT_BEFORE}


def most_groups(choice: GroupChoice) -> int:
    """A rule of the user's own."""
    return max(choice.candidates)


def test_rules_can_be_chosen_and_given() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnetv2_50d_gn")
    sixteen = rewriter.plan(model, GroupCount(rule="channels-per-group"), input_size=64)
    for site in sixteen.sites:
        channels = model.get_submodule(site.path).num_channels
        assert site.edits[0].value == channels // 16
    own = rewriter.plan(model, GroupCount(rule=most_groups, min_channels_per_group=4), input_size=64)
    assert {model.get_submodule(site.path).num_channels // site.edits[0].value for site in own.sites} == {4}
    assert own.passes[0][1]["rule"] == f"{__name__}.most_groups"
    assert rewriter.Plan.from_json(own.to_json()) == own


def test_a_rule_gets_what_it_needs_to_know() -> None:
    seen: list[GroupChoice] = []

    def rule(choice: GroupChoice) -> int:
        seen.append(choice)
        return 4

    rewriter.plan(
        Chain(nn.Conv2d(24, 32, 3, groups=2), 32, nn.ReLU()), GroupCount(rule=rule), example_inputs=image(8, 24)
    )
    assert (seen[0].n_in, seen[0].n_out, seen[0].num_groups, seen[0].candidates) == (12, 32, 1, (2, 4))
    assert seen[0].slope == pytest.approx(0.5) and set(seen[0].gains) == {1, 2, 4, 8, 16, 32}


def test_bad_rules_and_options_are_refused() -> None:
    model = Chain(nn.Conv2d(3, 32, 3), 32, nn.ReLU())
    before = snapshot(model)
    with pytest.raises(SelectorError, match=r"returned 7 groups for 32 channels; expected one of .* 2, 4"):
        rewriter.rewrite(model, GroupCount(rule=lambda choice: 7), input_size=8)
    with pytest.raises(SelectorError, match="the rule raised ZeroDivisionError"):
        rewriter.rewrite(model, GroupCount(rule=lambda choice: 1 // 0), input_size=8)
    for options in (
        {"rule": "ideal"},
        {"tolerance": -0.1},
        {"tolerance": "5%"},
        {"channels": 0},
        {"min_groups": 1.5},
        {"min_channels_per_group": True},
    ):
        with pytest.raises(SelectorError, match=f"{next(iter(options))}: expected"):
            rewriter.rewrite(model, {"group-count": options}, input_size=8)
    assert_unchanged(model, before)
