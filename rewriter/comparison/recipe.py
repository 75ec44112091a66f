"""How both arms are trained: one recipe, and three presets for different time budgets."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, create_model

from rewriter.errors import ComparisonError

# error messages show the descriptions as what was expected
_Count = Annotated[int, Field(ge=1, description="a positive int")]
_Most = Annotated[_Count | None, Field(description="a positive int or None")]
_Positive = Annotated[float, Field(gt=0, description="a positive number")]
_NotNegative = Annotated[float, Field(ge=0, description="a number of at least 0")]
_Norm = Annotated[_Positive | None, Field(description="a positive number or None")]
_Area = Annotated[float, Field(gt=0, le=1, description="a number above 0, up to 1")]
_Part = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
_Schedule = Annotated[
    Literal["cosine", "poly", "tanh", "none"], Field(description="one of cosine, poly, tanh, none")
]  # fmt: skip
_Precision = Annotated[Literal["no", "bf16", "fp16"], Field(description="'no', 'bf16' or 'fp16'")]


@dataclass(frozen=True)
class Recipe:
    """How both arms are trained. The fields are the options of the command line.

    Attributes:
        seeds: their number: 0, 1, …
        epochs: passes over the training images.
        batch_size: images per step; the last, smaller batch of an epoch is dropped.
        train_images: number of training images to use, the same for all seeds; None for all.
        test_images: the same for test images.
        optimizer: a name of ``timm.optim``.
        lr: the peak learning rate.
        weight_decay: of the parameters that decay: by its table in an arm that ``weight-decay`` was applied to, in the
            other by timm's rule (weights only).
        schedule: of the learning rate, by timm: ``"cosine"``, ``"poly"``, ``"tanh"``, or ``"none"``.
        warmup: fraction of the steps in which the learning rate rises, from a hundredth of the peak.
        clip_grad: maximum norm of the gradient; None for no clipping.
        crop_scale: minimum fraction of an image's area in a training crop; 1 for no random crops.
        hflip: probability of a horizontal flip in training.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        calibration_batches: number of batches that scale equalizers are calibrated on.

    Raises:
        ComparisonError: a value is out of range.
    """

    seeds: _Count = 5
    epochs: _Count = 20
    batch_size: _Count = 64
    train_images: _Most = None
    test_images: _Most = None
    optimizer: Annotated[str, Field(description="a name of timm.optim")] = "adamw"
    lr: _Positive = 1e-3
    weight_decay: _NotNegative = 0.05
    schedule: _Schedule = "cosine"
    warmup: _Part = 0.05
    clip_grad: _Norm = None
    crop_scale: _Area = 0.8
    hflip: _Part = 0.0
    mixed_precision: _Precision = "no"
    calibration_batches: _Count = 50

    def __post_init__(self) -> None:
        try:
            _FIELDS.model_validate(self.to_data())
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            expected = _FIELDS.model_fields[name].description
            raise ComparisonError(f"{name}: expected {expected}, found {getattr(self, name)!r}") from error
        if self.train_images is not None and self.train_images < self.batch_size:
            raise ComparisonError(
                f"train_images: expected at least one batch of batch_size={self.batch_size}, found "
                f"{self.train_images}; choose a smaller batch_size or more train_images"
            )

    def to_data(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


_FIELDS = create_model(
    "_FIELDS",
    __config__={"strict": True},
    **{name: (hint, ...) for name, hint in typing.get_type_hints(Recipe, include_extras=True).items()},  # type: ignore[call-overload]
)

BUDGETS: dict[str, Recipe] = {
    "smoke": Recipe(seeds=2, epochs=3, train_images=512, test_images=200, batch_size=32),
    "small": Recipe(seeds=3, epochs=5, train_images=1000, test_images=500, batch_size=32),
    "full": Recipe(),
}
"""``smoke`` shows that everything runs (under a minute for a small model on a CPU), ``small`` takes a few minutes."""


def resolve_recipe(budget: str | Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of ``budget`` with some fields changed.

    Raises:
        ComparisonError: an unknown budget or field, or a value out of range.
    """
    if not isinstance(budget, Recipe) and (not isinstance(budget, str) or budget not in BUDGETS):
        raise ComparisonError(f"budget: expected one of {', '.join(BUDGETS)} or a Recipe, found {budget!r}")
    recipe = budget if isinstance(budget, Recipe) else BUDGETS[budget]
    for name in changes:
        if name == "recipe":
            raise ComparisonError("give a Recipe as budget=, fields of it by their names: seeds=10, lr=1e-2")
        if name not in _FIELDS.model_fields:
            raise ComparisonError(f"a recipe has no field {name!r}; its fields: {', '.join(_FIELDS.model_fields)}")
    return dataclasses.replace(recipe, **changes)
