"""Group counts: the gradient gain of every chain weight → group norm → activation, by a backward pass.

python benchmarks/mechanisms/group_count.py [--quick] [--json FILE]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import timm
import torch
from shared import Table, estimate, listening, photographs, run
from torch import nn

import rewriter
from rewriter.analysis.chains import GroupNormCall, find_group_norms
from rewriter.passes import GroupCount


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm resnet50_gn": (lambda: timm.create_model("resnet50_gn", zero_init_last=False), 128),
    "timm resnetv2_50x1_bit": (lambda: timm.create_model("resnetv2_50x1_bit", zero_init_last=False), 128),
    "diffusers UNet2DModel": (_unet, 32),
}
"""Models, and the height and width of their images; with branches that begin at zero they would hand back nothing."""

RULES = {
    "as it is": None,
    "isometry": GroupCount(),
    "measured-isometry": GroupCount(rule="measured-isometry"),
    "measured-isometry, no band": GroupCount(rule="measured-isometry", min_channels_per_group=1, min_groups=1),
    "channels-per-group": GroupCount(rule="channels-per-group"),
}


def measure(quick: bool) -> list[Table]:
    count, seeds = (2, 1) if quick else (4, 3)
    names = ["diffusers UNet2DModel"] if quick else list(MODELS)
    table = Table(f"Gradient gains of the chains, {count} photographs, at initialisation; seeds: {seeds}")
    for name in names:
        create, size = MODELS[name]
        inputs = _inputs(name, photographs(size, count)[0])
        for rule, pass_ in RULES.items():
            found = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                model = create()
                if pass_ is not None:
                    model = rewriter.rewrite(model, pass_, example_inputs=inputs, verify=False)
                found.append((gains(model, inputs), gain_of_the_whole(model, inputs)))
            chains = [gains_of_chains for gains_of_chains, _ in found]
            table.add(
                rule=f"{name}, {rule}",
                chains=len(chains[0]),
                distance_from_one=estimate((math.exp(_mean_distance(some)) for some in chains), ratio=True),
                smallest=min(min(some) for some in chains),
                geometric_mean=estimate((statistics.geometric_mean(some) for some in chains), ratio=True),
                largest=max(max(some) for some in chains),
                product=estimate((math.prod(some) for some in chains), ratio=True),
                whole_network=estimate((whole for _, whole in found), ratio=True),
            )
    return [table]


def _inputs(name: str, images: torch.Tensor) -> tuple[object, ...]:
    images = images.clone().requires_grad_()
    return (images, torch.tensor(500)) if name.startswith("diffusers") else (images,)


def _mean_distance(values: Sequence[float]) -> float:
    return statistics.fmean(abs(math.log(value)) for value in values)


def gains(model: nn.Module, inputs: tuple[object, ...]) -> list[float]:
    """For each chain, the norm of the gradient at its input over that at its end, for a random gradient at its end."""
    model.eval()
    calls = chains_of(model, inputs)
    read: dict[str, list[torch.Tensor]] = {str(call.chain.weight.target): [] for call in calls}
    normed: dict[str, list[torch.Tensor]] = {str(call.holder): [] for call in calls}
    with ExitStack() as hooks:
        for path, heard in [*read.items(), *normed.items()]:
            hooks.enter_context(listening(model.get_submodule(path), heard, to_input=True))
        model(*inputs)
    found = []
    for call in calls:
        (x,), (before,) = read[str(call.chain.weight.target)], normed[str(call.holder)]
        norm = model.get_submodule(str(call.holder))
        end = nn.functional.group_norm(before, norm.num_groups, norm.weight, norm.bias, norm.eps)
        if call.chain.activation:
            end = nn.functional.relu(end) if "relu" in _name(call, model) else nn.functional.silu(end)
        found.append(_gain(end, x))
    return found


def chains_of(model: nn.Module, inputs: tuple[object, ...]) -> list[GroupNormCall]:
    flow = rewriter.trace(model, inputs).eval.dataflow
    return [call for call in find_group_norms(flow, model) if call.chain is not None and call.holder is not None]


def _name(call: GroupNormCall, model: nn.Module) -> str:
    operation = call.chain.activation[0]
    if operation.op == "call_module":
        return type(model.get_submodule(str(operation.target))).__name__.lower()
    return str(operation.target).lower()


def gain_of_the_whole(model: nn.Module, inputs: tuple[object, ...]) -> float:
    """The same between the output of the first convolution and the output of the network."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    heard: list[torch.Tensor] = []
    with listening(first, heard):
        output = model.eval()(*inputs)
    output = output if isinstance(output, torch.Tensor) else output.sample
    return _gain(output, heard[0])


def _gain(end: torch.Tensor, start: torch.Tensor) -> float:
    """Root mean square of a random gradient's norm at ``start`` over that at ``end``, in two draws."""
    squares = []
    for _ in range(2):
        gradient = torch.randn_like(end)
        (found,) = torch.autograd.grad(end, start, gradient, retain_graph=True)
        squares.append(float(found.norm() / gradient.norm()) ** 2)
    return math.sqrt(statistics.fmean(squares))


def main(arguments: Sequence[str] | None = None) -> None:
    run(__doc__, measure, arguments)


if __name__ == "__main__":
    main()
