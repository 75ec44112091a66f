"""The gains of the group-count pass, measured and expected, against real backward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from group_norms import Chain, all_measured, autoencoder, unet
from helpers import image, timm_model
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.analysis.activations import ActivationMoments, activation_moments
from rewriter.analysis.chains import find_group_norms
from rewriter.passes import GroupCount
from rewriter.passes.group_count import gains
from rewriter.passes.group_count.measuring import expected_gains, measured_gains
from rewriter.passes.group_count.rules import (
    divisors,
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


def test_half_precision_is_measured() -> None:
    model = Chain(nn.Conv2d(3, 64, 3), 64, nn.ReLU())
    x = image(16)
    expected = all_measured(model, x)["norm"]
    found = all_measured(model.bfloat16(), x.bfloat16())["norm"]
    assert found == {groups: pytest.approx(value, rel=0.02) for groups, value in expected.items()}


def test_the_time_embedding_counts_in_the_moments() -> None:
    """A term that differs between channels makes groups of many channels more varied, and the gain smaller."""
    torch.manual_seed(0)
    model, x = unet()
    before = all_measured(model, x)["mid_block.resnets.0.norm2"]
    with torch.no_grad():
        model.mid_block.resnets[0].time_emb_proj.bias.normal_(std=10)
    after = all_measured(model, x)["mid_block.resnets.0.norm2"]
    assert after[1] < before[1] / 4 and after[64] == pytest.approx(before[64], rel=1e-3)


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
