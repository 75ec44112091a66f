"""How to make the original of a saved model: a name and options, stored in the recipe in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rewriter.entry_points import MODEL_GROUP, loaded
from rewriter.errors import StorageError
from rewriter.model.random_state import random_state_kept
from rewriter.model.refusal import check_model

_WEIGHT_OPTIONS = (
    "pretrained", "weights", "weights_backbone", "encoder_weights", "checkpoint_path", "pretrained_cfg",
    "pretrained_cfg_overlay", "cache_dir",
)  # fmt: skip
"""Constructor options that download weights; loading downloads nothing, since the directory has the weights."""


def checked_recipe(recipe: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the name and the options of a recipe, without those that download weights.

    Raises:
        StorageError: it is not a recipe, or an option cannot be stored as JSON.
    """
    strange = sorted(set(recipe) - {"model", "kwargs"})
    name, options = recipe.get("model"), recipe.get("kwargs", {})
    if strange or not isinstance(name, (str, type(None))) or not isinstance(options, Mapping):
        raise StorageError(f"recipe: expected {{'model': name, 'kwargs': {{…}}}}, found {dict(recipe)!r}")
    kept = {key: value for key, value in options.items() if key not in _WEIGHT_OPTIONS}
    for key, value in kept.items():
        try:
            same = _as_tuples(json.loads(json.dumps(value, allow_nan=False))) == _as_tuples(value)
        except (TypeError, ValueError):
            same = False
        if not same:
            raise StorageError(
                f"recipe: {key}={value!r} cannot be stored as JSON; leave recipe away, "
                "and give a fresh original to rewriter.load(directory, model)"
            )
    return name, kept


def original_of(recipe: Mapping[str, Any], source: Path) -> nn.Module:
    """Make a fresh original from the recipe in the directory ``source``.

    Raises:
        StorageError: the recipe does not name one, or no installed package makes it.
    """
    name, options = recipe["model"], recipe["kwargs"]
    if name is None:
        raise StorageError(
            f"{source} does not say how its original is made; give a fresh one: rewriter.load(directory, model), "
            f"with a {recipe['class']}"
        )
    fetching = [key for key in options if key in _WEIGHT_OPTIONS]
    if fetching:
        raise StorageError(f"{source}: the recipe is damaged: it asks for other weights ({', '.join(fetching)})")
    refusals = []
    for _, create in loaded(MODEL_GROUP):
        try:
            with random_state_kept():
                model = create(name, **{key: _as_tuples(value) for key, value in options.items()}).model
        except Exception as error:  # a source that does not know the name, or whose library is not installed
            refusals.append(str(error))
            continue
        check_model(model)
        assert isinstance(model, nn.Module)
        return model
    why = "; ".join(refusals) or "no installed package makes models by name"
    raise StorageError(
        f"the original {name!r} cannot be made ({why}); give a fresh one: rewriter.load(directory, model)"
    )


def _as_tuples(value: Any) -> Any:
    """Convert lists, the only sequences in JSON, to the tuples that libraries test for (image sizes, layer counts)."""
    if isinstance(value, (list, tuple)):
        return tuple(_as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return value
