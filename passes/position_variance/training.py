"""What a training configuration does to the variance of images, where positions are added to what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewriter.analysis.absolute_positions import find_absolute_positions
from rewriter.authoring import Recommendation, Trace, name_of


def faults(trace: Trace, training: Mapping[str, Any]) -> Iterator[Recommendation]:
    """What changes the ratio of images to positions, for a model that adds positions to tokens that follow the image.

    Read are options of timm's training script (``mixup``, ``cutmix``, ``reprob``, ``remode``, ``mean``, ``std``), of
    torchvision's (``mixup_alpha``, ``random_erase``), and of image processors of transformers (``image_mean``,
    ``image_std``, ``do_normalize``).
    """
    position = next((found for found in find_absolute_positions(trace.flow, trace.model) if found.norm is None), None)
    if position is None:
        return
    where = f"{name_of(position.sum)} adds positions of the same variance in training and test"
    yield from _mixup(training, where)
    yield from _erasing(training, where)
    yield from _normalisation(training)


def mixup_variance(alpha: float) -> float:
    """The mean of ``lam^2 + (1 - lam)^2`` over Beta(alpha, alpha): the variance that a mixture of two images keeps."""
    return 1 - 2 * alpha**2 / ((2 * alpha) * (2 * alpha + 1))


def _mixup(training: Mapping[str, Any], where: str) -> Iterator[Recommendation]:
    name = next((name for name in ("mixup", "mixup_alpha") if _number(training.get(name)) > 0), None)
    if name is None or _number(training.get("mixup_prob"), 1.0) <= 0:
        return
    cutmix = _number(training.get("cutmix")) > 0 or bool(training.get("cutmix_minmax"))
    if cutmix and _number(training.get("mixup_switch_prob"), 0.5) >= 1:
        return  # every mixture is a CutMix
    alpha, until = _number(training[name]), _number(training.get("mixup_off_epoch"))
    kept = f"two images mixed at Beta({alpha:g}, {alpha:g}) keep on average {mixup_variance(alpha):.2f} of the variance"
    yield Recommendation(
        f"leave Mixup out ({name}=0) and mix by CutMix, which keeps the variance",
        f"{kept} of one{f', until epoch {until:g}' if until > 0 else ''}, and {where}",
        "RW1102",
    )


def _erasing(training: Mapping[str, Any], where: str) -> Iterator[Recommendation]:
    if _number(training.get("reprob")) > 0:
        mode = training.get("remode")
        if not isinstance(mode, str) or mode == "pixel":
            return  # "pixel" is the default of the script
        remedy, filled = "set remode='pixel'", "one random colour" if mode == "rand" else "a constant"
    elif _number(training.get("random_erase")) > 0:
        remedy, filled = "give RandomErasing value='random'", "a constant, its default,"
    else:
        return
    kept = 0.94 if filled == "one random colour" else 0.75
    yield Recommendation(
        f"{remedy}, which draws every pixel from N(0, 1)",
        f"an image of which a quarter is erased with {filled} keeps {kept} of its variance, and {where}",
        "RW1103",
    )


def _normalisation(training: Mapping[str, Any]) -> Iterator[Recommendation]:
    mean, std = (_channels(training.get(name, training.get(f"image_{name}"))) for name in ("mean", "std"))
    if training.get("do_normalize") is False:
        mean, std = (0.0,), (1.0,)
    wrong = _impossible(mean, std)
    if wrong is None:
        return
    found = (
        f"no images have the mean {wrong[0]:g} and the standard deviation {wrong[1]:g}, unless all pixels are black "
        f"or white; those of ImageNet get a variance of about {(0.226 * _unit(mean, std) / wrong[1]) ** 2:.2g}"
    )
    remedy = (
        "normalise by the mean and standard deviation of the training images (ImageNet: 0.485, 0.456, 0.406 and 0.229, "
        "0.224, 0.225)"
    )
    if max(_number(training.get(name)) for name in ("reprob", "random_erase")) > 0:
        yield Recommendation(remedy, f"{found}, and erased pixels are drawn with a variance of 1", "RW1104")
    else:
        yield Recommendation(
            f"{remedy} before random erasing is used; weights that were trained otherwise go on as they were trained",
            f"{found}; alone this is no fault, for training and test are alike",
            "RW1105",
        )


def _impossible(mean: Sequence[float], std: Sequence[float]) -> tuple[float, float] | None:
    """A pair that no images of pixels from 0 to 1, or 255, have, for ``std^2 < mean (1 - mean)``; None for none."""
    unit = _unit(mean, std)
    for one, deviation in zip(mean, std, strict=False) if len(mean) == len(std) else ():
        if deviation > 0 and (deviation / unit) ** 2 >= one / unit * (1 - one / unit):
            return one, deviation
    return None


def _unit(mean: Sequence[float], std: Sequence[float]) -> float:
    return 255.0 if max((*mean, *std), default=0) > 1 else 1.0


def _number(value: Any, default: float = 0.0) -> float:
    """``value`` as a number, also from text; ``default`` for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if math.isfinite(number) else default


def _channels(value: Any) -> tuple[float, ...]:
    """One number or one for each channel, also as text (``"0.5 0.5 0.5"``); none for anything else."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = [_number(one, math.nan) for one in value]
        return () if any(map(math.isnan, numbers)) else tuple(numbers)
    number = _number(value, math.nan)
    return () if math.isnan(number) else (number,)
