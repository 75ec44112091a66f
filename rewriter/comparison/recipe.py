"""How both arms are trained: one recipe, and three that fit the time there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewriter.errors import ComparisonError


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Recipe:
    """How both arms are trained. The fields are the options of the command line.

    Attributes:
        seeds: how many: 0, 1, …
        epochs: passes over the training images.
        batch_size: images a step; the last, smaller batch of an epoch is left out.
        train_images: how many of the training images to use, the same for all seeds; None for all.
        test_images: likewise.
        optimizer: a name of ``timm.optim``.
        lr: the highest learning rate.
        weight_decay: of what decays. An arm that ``weight-decay`` was applied to decays by its table, the other by
            timm's rule (weights only).
        schedule: of the learning rate, by timm: ``"cosine"``, ``"poly"``, ``"tanh"``, or ``"none"``.
        warmup: part of the steps in which the learning rate rises, from a hundredth of the highest.
        clip_grad: largest norm of the gradient; None for any.
        crop_scale: smallest part of an image's area that a training crop has; 1 for no random crops.
        hflip: probability of a horizontal flip in training.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        calibration_batches: how many batches scale equalizers are calibrated on.

    Raises:
        ComparisonError: a value out of range.
    """

    seeds: int = 5
    epochs: int = 20
    batch_size: int = 64
    train_images: int | None = None
    test_images: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.05
    clip_grad: float | None = None
    crop_scale: float = 0.8
    hflip: float = 0.0
    mixed_precision: str = "no"
    calibration_batches: int = 50

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "batch_size", "calibration_batches"):
            self._check(name, lambda value: type(value) is int and value >= 1, "a positive int")
        for name in ("train_images", "test_images"):
            self._check(
                name, lambda value: value is None or (type(value) is int and value >= 1), "a positive int or None"
            )
        if self.train_images is not None and self.train_images < self.batch_size:
            raise ComparisonError(
                f"train_images: expected at least one batch of batch_size={self.batch_size}, found "
                f"{self.train_images}; choose a smaller batch_size or more train_images"
            )
        self._check("lr", lambda value: _is_number(value) and value > 0, "a positive number")
        self._check("weight_decay", lambda value: _is_number(value) and value >= 0, "a number of at least 0")
        self._check(
            "clip_grad", lambda value: value is None or (_is_number(value) and value > 0), "a positive number or None"
        )
        self._check("crop_scale", lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, up to 1")
        for name in ("warmup", "hflip"):
            self._check(name, lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
        schedules = ("cosine", "poly", "tanh", "none")
        self._check("schedule", lambda value: value in schedules, f"one of {', '.join(schedules)}")
        self._check("mixed_precision", lambda value: value in ("no", "bf16", "fp16"), "'no', 'bf16' or 'fp16'")

    def _check(self, name: str, holds: Any, expected: str) -> None:
        if not holds(getattr(self, name)):
            raise ComparisonError(f"{name}: expected {expected}, found {getattr(self, name)!r}")

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


BUDGETS: dict[str, Recipe] = {
    "smoke": Recipe(seeds=2, epochs=3, train_images=512, test_images=200, batch_size=32),
    "small": Recipe(seeds=3, epochs=5, train_images=1000, test_images=500, batch_size=32),
    "full": Recipe(),
}
"""``smoke`` shows that everything runs (under a minute for a small model on a CPU), ``small`` takes a few minutes."""


def resolve_recipe(budget: str | Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of ``budget`` with some fields changed.

    Raises:
        ComparisonError: an unknown budget or field, or a value out of range.
    """
    if not isinstance(budget, Recipe) and (not isinstance(budget, str) or budget not in BUDGETS):
        raise ComparisonError(f"budget: expected one of {', '.join(BUDGETS)} or a Recipe, found {budget!r}")
    recipe = budget if isinstance(budget, Recipe) else BUDGETS[budget]
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in changes:
        if name == "recipe":
            raise ComparisonError("give a Recipe as budget=, fields of it by their names: seeds=10, lr=1e-2")
        if name not in known:
            raise ComparisonError(f"a recipe has no field {name!r}; its fields: {', '.join(known)}")
    return dataclasses.replace(recipe, **changes)
