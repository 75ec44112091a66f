"""Stochastic pooling: moments of pooled features, and logits, in training and at test time.

python benchmarks/mechanisms/stochastic_pooling.py [--quick] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from shared import Table, estimate, listening, photographs, run
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.passes import StochasticPooling
from rewriter.passes.stochastic_pooling import StochasticAvgPool2d
from rewriter.passes.stochastic_pooling.layers import Sampling

KEEP_PROB = 0.5
SCALES = ("sqrt", "none")


def measure(quick: bool) -> list[Table]:
    count, draws = (4, 50) if quick else (20, 400)
    images, classes = photographs(224, count)
    trained = zoo.create("tf_efficientnet_lite0", pretrained=True).model.eval()
    return [moments(feature_maps(trained, images), draws), logits(trained, images, classes, draws)]


@torch.no_grad()
def feature_maps(trained: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Maps ``(N, C, 7, 7)`` behind an activation, and behind a norm without one, of a trained and a fresh model."""
    fresh = timm.create_model("resnet18", zero_init_last=False).train()  # normalises by the batch
    behind_norm: dict[nn.Module, list[torch.Tensor]] = {trained.blocks: [], fresh.layer4[-1].bn2: []}
    activated = {}
    for name, model, last in (
        ("tf_efficientnet_lite0, trained", trained, trained.blocks),
        ("resnet18, fresh", fresh, fresh.layer4[-1].bn2),
    ):
        with listening(last, behind_norm[last], copies=True):
            activated[f"{name}: behind the last activation"] = model.forward_features(images)
        activated[f"{name}: behind the last norm of a branch"] = behind_norm[last][0]
    independent = torch.randn(len(images), 512, 7, 7)
    return activated | {"for comparison, independent normal numbers": independent}


@torch.no_grad()
def moments(maps: dict[str, torch.Tensor], draws: int) -> Table:
    """Of what an image's pooled channels are in training, over what they are at test time."""
    images = len(next(iter(maps.values())))
    table = Table(f"Pooled features in training over at test time, keep_prob {KEEP_PROB}; {images} photographs")
    for name, x in maps.items():
        for scale in SCALES:
            pool = StochasticAvgPool2d(None, keep_prob=KEEP_PROB, scale=scale)
            drawn = torch.stack([pool(x).flatten(1) for _ in range(draws)], 1)
            full = pool.eval()(x).flatten(1)[:, None]
            ratios = {what: (_moment(drawn, what) / _moment(full, what)).tolist() for what in MOMENTS}
            about_zero = bool((_moment(full, "mean").square() < 0.1 * _moment(full, "variance")).any())
            table.add(
                features=f"{name}, {scale}",
                mean="about 0" if about_zero else estimate(ratios["mean"], ratio=True),
                variance=estimate(ratios["variance"], ratio=True),
                second_moment=estimate(ratios["second moment"], ratio=True),
            )
    return table


MOMENTS = ("mean", "variance", "second moment")


def _moment(pooled: torch.Tensor, what: str) -> torch.Tensor:
    """Over draws and channels of ``(N, draws, C)``."""
    values = pooled.flatten(1)
    if what == "mean":
        return values.mean(1)
    return values.var(1, correction=0) if what == "variance" else values.square().mean(1)


@torch.no_grad()
def logits(model: nn.Module, images: torch.Tensor, classes: torch.Tensor, draws: int) -> Table:
    """What the classifier of a trained model makes of the two, with only its pooling in training mode."""
    features = model.forward_features(images)
    full = model.forward_head(features)
    table = Table(
        f"Logits of tf_efficientnet_lite0, trained, {len(images)} photographs; pooling at test time and in training"
    )
    table.add(pooling="at test time", **_described(full[:, None], full, classes))
    for scale in SCALES:
        rewritten = rewriter.rewrite(model, StochasticPooling(keep_prob=KEEP_PROB, scale=scale)).eval()
        for module in rewritten.modules():
            if isinstance(module, Sampling):
                module.train()
        drawn = torch.stack([rewritten.forward_head(features) for _ in range(draws)], 1)
        table.add(pooling=f"in training, {scale}", **_described(drawn, full, classes))
    return table


def _described(drawn: torch.Tensor, full: torch.Tensor, classes: torch.Tensor) -> dict[str, object]:
    """Of logits ``(N, draws, classes)``; intervals over images."""
    probabilities = drawn.softmax(-1)
    own = probabilities.gather(-1, classes[:, None, None].expand(-1, drawn.shape[1], 1))
    spread = drawn.std(-1).mean(1) / full.std(-1)
    return {
        "spread over that at test time": estimate(spread.tolist(), ratio=True),
        "largest probability": estimate(probabilities.amax(-1).mean(1).tolist()),
        "cross-entropy": estimate((-own.log()).mean((1, 2)).tolist()),
        "first class as at test time": float((drawn.argmax(-1) == full.argmax(-1)[:, None]).float().mean()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    run(__doc__, measure, arguments)


if __name__ == "__main__":
    main()
