"""What a comparison found, as data: equivalence, trained weights, training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewriter.comparison.run import Run


@dataclass(frozen=True)
class Equivalence:
    """The eval outputs of one rewritten model beside those of the original, on the same images.

    Attributes:
        name: the pass that was applied alone, or ``"all"``.
        images: how many images both models saw.
        identical: whether all outputs are equal bit for bit; None where the original, run twice, differs from itself.
        max_difference: largest |difference| of two outputs.
        relative_difference: the same as part of the largest |output| of the original.
        spread: largest |difference| of the original's outputs from its own in a second run.
        agreement: part of the images (segmentation: pixels) with the same prediction, in [0, 1]; None where the output
            has no classes.
        not_finite: for how many images the outputs of the original, and of the rewritten model, are not all finite.
    """

    name: str
    images: int
    identical: bool | None
    max_difference: float
    relative_difference: float
    spread: float
    agreement: float | None
    not_finite: tuple[int, ...] = (0, 0)


@dataclass(frozen=True)
class ImageRow:
    """One test image: what both models say about it.

    Attributes:
        index: its place in the test images.
        target: its class; None for segmentation and multi-label.
        before: the original's first prediction; None for segmentation and multi-label.
        after: the rewritten model's first prediction, likewise.
        max_difference: largest |difference| of the two models' outputs.
        agreement: part of the predictions that are the same (1 or 0 for classification, pixels for segmentation).
    """

    index: int
    target: int | None
    before: int | None
    after: int | None
    max_difference: float
    agreement: float


@dataclass(frozen=True)
class Trained:
    """Metrics of a model with the weights that it has, before and after, on the same test images.

    Attributes:
        before: metric by name, the one that is judged first.
        after: likewise.
        rows: one an image, in order.
        as_created: whether the weights are those that the constructor drew, so that the metrics are those of chance.
    """

    before: dict[str, float]
    after: dict[str, float]
    rows: tuple[ImageRow, ...]
    as_created: bool = False


@dataclass(frozen=True)
class Training:
    """Both arms trained under one recipe with the same seeds.

    Attributes:
        metric: name of the metric that is judged.
        higher_is_better: its direction.
        seeds: that were asked for.
        runs: finished and stopped ones, in order of seed and arm; some may be missing after an interrupt.
        recipe: how they were trained, as plain data: the fields that had an effect, and what was the user's own.
        environment: versions, device, number of threads and processes.
        test_images: how many there are; None if that is not known.
    """

    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    test_images: int | None = None


@dataclass(frozen=True)
class ComparisonData:
    """Before and after, at up to three levels.

    Attributes:
        model: name of the model, or of its class.
        change: what the rewrite did, one line a pass.
        data: name of the data and the numbers of train and test images.
        equivalence: each pass alone, then all together; empty if not asked for.
        trained: None if not asked for, or if the model carries no trained weights.
        training: None if not asked for.
        notes: what the reader has to know (what was left out, and why).
    """

    model: str
    change: tuple[str, ...]
    data: str
    equivalence: tuple[Equivalence, ...] = ()
    trained: Trained | None = None
    training: Training | None = None
    notes: tuple[str, ...] = ()
