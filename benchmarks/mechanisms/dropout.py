"""Dropout: the noise that it puts into logits, and the variance that a norm sees in training and at test time.

python benchmarks/mechanisms/dropout.py [--quick] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import timm
import torch
from shared import Table, digits, estimate, listening, photographs, run, train
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.analysis.trained_weights import carries_trained_weights
from rewriter.passes import Dropout

HEADS: dict[str, Callable[[], nn.Module]] = {
    "tf_efficientnet_lite0, trained": lambda: zoo.create("tf_efficientnet_lite0", pretrained=True).model,
    "resnet18, fresh": lambda: timm.create_model("resnet18"),
}

DRAWS_AT_ONCE = 10


def measure(quick: bool) -> list[Table]:
    tables = [head_noise(quick)]
    if not quick:
        tables.append(changed_predictions())
    return [*tables, branch_shift(quick), *post_activation_shifts(quick)]


def head_noise(quick: bool) -> Table:
    """Variance of the logits over draws, dropout after pooling over before it; laws beside what was measured."""
    images, _ = photographs(224, count=4 if quick else 20)
    table = Table(f"Variance of logits, dropout after pooling over before it; {len(images)} photographs, 224 pixels")
    for name, create in HEADS.items():
        model = create()
        features = features_of(model, images)
        height, width = features.shape[-2:]
        for rate in (0.2,) if quick else (0.2, 0.5):
            after, before = heads(model, rate)
            draws = 100 if quick else 400
            ratios = noise(after, features, draws) / noise(before, features, draws)
            table.add(
                model=name,
                drop_rate=rate,
                map=f"{height}x{width}",
                measured=estimate(ratios.tolist(), ratio=True),
                law_of_this_map=estimate(law(model, features).tolist(), ratio=True),
                law_of_independent_positions=independent_law(features),
            )
    return table


def features_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the head is given; a fresh model normalises by the batch, for it has no running statistics yet."""
    model.train(not carries_trained_weights(model))
    with torch.no_grad():
        return model.forward_features(images)


def heads(model: nn.Module, rate: float) -> tuple[nn.Module, nn.Module]:
    """The model as timm makes it, with its dropout after pooling, and rewritten; of both only the dropout is active."""
    model.drop_rate = rate
    after = model.eval()
    before = rewriter.rewrite(after, "dropout", input_size=64)
    after.training = before.training = True
    return after, before


@torch.no_grad()
def logits(model: nn.Module, features: torch.Tensor, draws: int) -> torch.Tensor:
    """The logits in ``draws`` draws, ``(draws, N, classes)``."""
    found = []
    for _ in range(draws // DRAWS_AT_ONCE):
        drawn = model.forward_head(features.repeat(DRAWS_AT_ONCE, 1, 1, 1))
        found.append(drawn.view(DRAWS_AT_ONCE, len(features), -1))
    return torch.cat(found)


def noise(model: nn.Module, features: torch.Tensor, draws: int) -> torch.Tensor:
    """Variance of the logits over draws, the mean over classes, ``(N,)``."""
    return logits(model, features, draws).var(0).mean(-1)


def law(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """The exact ratio for each image: the mask's variance goes through pooling and the weights of the classifier."""
    weights = model.get_classifier().weight.detach().square().sum(0)
    positions = features.flatten(2)
    after = positions.mean(-1).square() @ weights
    before = positions.square().mean(-1) @ weights / positions.shape[-1]
    return after / before


def independent_law(features: torch.Tensor) -> float:
    """``HW (E[x]^2 + Var / HW) / E[x^2]``: what it would be if positions were independent, over all channels."""
    positions, mean = features[0, 0].numel(), float(features.mean())
    return positions * (mean**2 + float(features.var()) / positions) / float(features.square().mean())


def changed_predictions() -> Table:
    """How often the trained model's first class is another one than without dropout."""
    images, _ = photographs(224)
    model = HEADS["tf_efficientnet_lite0, trained"]()
    features = features_of(model, images)
    with torch.no_grad():
        expected = model.forward_head(features).argmax(-1)
    table = Table("tf_efficientnet_lite0, trained: share of draws whose first class is not that without dropout")
    for rate in (0.2, 0.5, 0.8):
        after, before = heads(model, rate)
        shares = {}
        for place, head in {"after_pooling": after, "before_pooling": before}.items():
            changed = logits(head, features, 200).argmax(-1) != expected
            shares[place] = float(changed.float().mean())
        table.add(drop_rate=f"{rate}", **shares)
    return table


PLACES: dict[str, tuple[str, bool]] = {
    "before norm 1": ("norms.0", True),
    "between norm 1 and ReLU": ("norms.0", False),
    "before conv 1": ("convs.0", True),
    "between conv 1 and norm 2": ("convs.0", False),
    "between norm 2 and ReLU": ("norms.1", False),
    "before conv 2": ("convs.1", True),
    "after conv 2": ("convs.1", False),
}
"""Where a dropout is put into a block of two convolutions: on the input of a child (True) or on its output."""


def branch_shift(quick: bool) -> Table:
    """Variance in training over that at test time of what the norms of the block read, and of what the next one reads.

    A geometric mean over channels and blocks; one block at a time has the dropout, on what it gets in the model.
    """
    rate, depths = 0.5, (2, 2, 2) if quick else (3, 3, 3)
    images, classes = digits(512 if quick else 2000, 32)
    columns: dict[tuple[str, str, str], list[float]] = {}
    seeds = 1 if quick else 3
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = zoo.create("zoo:preact_resnet110", depths=depths, in_chans=1).model
        for state in ("fresh",) if quick else ("fresh", "trained"):
            if state == "trained":
                train(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), images, classes)
            found = shifts(model.train(), images[: 32 if quick else 128], rate)
            for key, ratio in found.items():
                columns.setdefault((key[0], state, key[1]), []).append(ratio)
    table = Table(
        f"Variance in training over at test time, drop rate {rate}; pre-activation ResNet, MNIST, seeds: {seeds}"
    )
    for place in [*PLACES, "where the library puts it"]:
        cells = {}
        for (where, state, norm), ratios in columns.items():
            if where == place:
                cells[f"{norm}, {state}"] = estimate(ratios, ratio=True)
        table.add(dropout=place, **cells)
    return table


@torch.no_grad()
def shifts(model: nn.Module, images: torch.Tensor, rate: float) -> dict[tuple[str, str], float]:
    """By place and norm, the geometric mean over the channels of all blocks without a projection."""
    blocks = {name: block for name, block in model.named_modules() if getattr(block, "shortcut", model) is None}
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in blocks}
    with ExitStack() as hooks:
        for name, block in blocks.items():
            hooks.enter_context(listening(block, inputs[name], to_input=True))
        model(images)
    logs: dict[tuple[str, str], list[torch.Tensor]] = {}
    for name, block in blocks.items():
        x = inputs[name][0]
        plain = seen_by_norms(block, x)
        edited = rewriter.rewrite(model, Dropout(p=rate), only=name, input_size=images.shape[1:], verify=False)
        found = {"where the library puts it": seen_by_norms(edited.get_submodule(name), x)}
        for place, (child, on_input) in PLACES.items():
            module = block.get_submodule(child)
            drop = partial(nn.functional.dropout, p=rate)
            if on_input:
                handle = module.register_forward_pre_hook(lambda _, args, drop=drop: drop(args[0]))
            else:
                handle = module.register_forward_hook(lambda _, args, output, drop=drop: drop(output))
            found[place] = seen_by_norms(block, x)
            handle.remove()
        for place, variances in found.items():
            for norm, variance in variances.items():
                logs.setdefault((place, norm), []).append((variance / plain[norm]).log())
    return {key: float(torch.cat(ratios).mean().exp()) for key, ratios in logs.items()}


def seen_by_norms(block: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Variance of each channel of what the norms of the block read, and of its sum, which the next norm reads."""
    first: list[torch.Tensor] = []
    second: list[torch.Tensor] = []
    with listening(block.norms[0], first, to_input=True), listening(block.norms[1], second, to_input=True):
        summed = block(x)
    read = {"norm 1": first[0], "norm 2": second[0], "next norm": summed}
    return {norm: _variance(tensor) for norm, tensor in read.items()}


def _variance(x: torch.Tensor) -> torch.Tensor:
    return x.var((0, 2, 3))


POST_ACTIVATION = {
    "none": (),
    "end of the branch": "end-of-branch",
    "before the last weight": "before-last-weight",
    "after the sum": "after-sum",
}


def post_activation_shifts(quick: bool) -> list[Table]:
    """Variance at test time over that in training, of what norms and the head of a ResNet v1 read.

    Every block has its dropout. At test time norms use what they kept of training, so that a shift goes on from block
    to block, as it does in use.
    """
    depth, count, seeds = (3, 256, 1) if quick else (8, 1000, 5)
    images, classes = digits(count, 32)
    tables = []
    for state in ("fresh",) if quick else ("fresh", "trained one epoch with its dropout"):
        table = Table(
            f"Variance at test time over that in training, drop rate 0.2 in all {depth} blocks; ResNet v1, MNIST, "
            f"{state}, seeds: {seeds}"
        )
        for where, place in POST_ACTIVATION.items():
            ratios: dict[str, list[float]] = {}
            for seed in range(seeds):
                torch.manual_seed(seed)
                options = {"depths": (depth,), "widths": (16,), "in_chans": 1, "dropout_at": place}
                model = zoo.create("zoo:dropout_resnet", **options).model
                if state != "fresh":
                    train(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), images, classes)
                for reader, ratio in test_over_training(model, images).items():
                    ratios.setdefault(reader, []).append(ratio)
            table.add(dropout=where, **{reader: estimate(found, ratio=True) for reader, found in ratios.items()})
        tables.append(table)
    return tables


@torch.no_grad()
def test_over_training(model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """By reader, the geometric mean over its channels; norms keep the average of all batches first."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    batches = images.chunk(len(images) // 125)  # of one size, for norms average over batches
    for _ in range(2):
        for batch in batches:
            model(batch)
    first, last = model.blocks[0], model.blocks[-1]
    readers = {
        "norm 1 of the first block": first.norm1, "norm 2 of the first block": first.norm2,
        "norm 1 of the last block": last.norm1, "norm 2 of the last block": last.norm2, "head": model.pool,
    }  # fmt: skip
    variances: dict[bool, dict[str, torch.Tensor]] = {}
    for training in (True, False):
        heard: dict[str, list[torch.Tensor]] = {reader: [] for reader in readers}
        with ExitStack() as hooks:
            for reader, module in readers.items():
                hooks.enter_context(listening(module, heard[reader], to_input=True))
            model.train(training)
            for batch in batches:
                model(batch)
        variances[training] = {reader: _variance(torch.cat(found)) for reader, found in heard.items()}
    return {
        reader: float((variances[False][reader] / variances[True][reader]).log().mean().exp()) for reader in readers
    }


def main(arguments: Sequence[str] | None = None) -> None:
    run(__doc__, measure, arguments)


if __name__ == "__main__":
    main()
