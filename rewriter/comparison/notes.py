"""What the reader has to know of how a comparison was made."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from rewriter.comparison.idle import same_optimizer
from rewriter.comparison.loading import YOUR_DATA, Data
from rewriter.comparison.subject import Subject, passes_of, same_weights
from rewriter.comparison.training import OptimizerFactory, decays_by_place
from rewriter.planning.remembered_inputs import inputs_of_rewrite


def notes_of(
    subject: Subject,
    first: tuple[nn.Module, nn.Module],
    data: Data,
    idle: str,
    *,
    seeds: int,
    trained: bool,
    optimizer: OptimizerFactory | None,
    levels_given: bool,
) -> Iterator[str]:
    """One sentence each, the most important first.

    Args:
        subject, first, data: what was compared, and the models of the first seed.
        idle: why training them both is no use; empty if it is of use, or nobody wanted it.
        seeds: how many were asked for.
        trained: whether both arms were trained.
        optimizer: the user's own; None for that of the recipe.
        levels_given: whether the user named the levels; if not, it is said why nothing was trained.
    """
    if idle:
        yield idle if trained else f"nothing was trained: {idle}; the level training would do it all the same"
    elif data.train is None and not levels_given:
        remedy = "; give (train, test)" if data.name == YOUR_DATA else ""
        yield f"nothing was trained: {data.name} has no training images{remedy}"
    if getattr(data.train, "dataset", data.train) is getattr(data.test, "dataset", data.test):
        yield "training and test images are the same data set, so metrics say nothing of other images"
    planned = inputs_of_rewrite(first[1])
    if planned is not None and data.image_shape and planned.image_size not in (None, data.image_shape):
        sizes = (" × ".join(map(str, size)) for size in (planned.image_size or (), data.image_shape))
        yield (
            "the rewrite was planned for images of {}, the data are {}: what depends on the size may not fit; rewrite "
            "with input_size={}".format(*sizes, data.image_shape)
        )
    if trained and decays_by_place(first[1]):
        if optimizer is None:
            unchanged = "" if passes_of(first[1]) else "the model itself is unchanged; "
            yield (
                f"{unchanged}weight-decay: the optimizer of after takes its groups from rewriter.param_groups, that of "
                "before from timm's rule; leave the pass out to hold the optimizer fixed"
            )
        elif same_optimizer(*first, optimizer):
            yield "weight-decay: your optimizer decides what decays, the pass changes nothing here"
        else:
            yield "weight-decay: your optimizer decides what decays, and it does so otherwise for after than for before"
    if trained and seeds > 1 and not _varies(subject, first[0]):
        yield (
            "all seeds begin with the weights that were given, so the interval says nothing of other initial weights; "
            "give a function that makes the model to vary them"
        )
    if not same_weights(*first):
        yield "the two models do not begin with the same weights"


def _varies(subject: Subject, first: nn.Module) -> bool:
    """Whether the initial weights depend on the seed."""
    return subject.varies and not same_weights(first, subject.pair(1)[0])
