"""A training configuration as options by name, from the forms in which training scripts hold one."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rewriter import libraries
from rewriter.errors import InputError

Training: TypeAlias = "Mapping[str, Any] | argparse.Namespace | str | Path | object"
"""Options of a training: parsed arguments, a mapping, a file of YAML or JSON, or an object with fields."""


def options_of(training: Training) -> dict[str, Any]:
    """Return the options by name; hyphens are underscores.

    Raises:
        InputError: it is none of the forms of :data:`Training`, or the file cannot be read.
    """
    if isinstance(training, (str, Path)):
        training = _of_file(Path(training))
    if isinstance(training, argparse.Namespace):
        training = vars(training)
    elif dataclasses.is_dataclass(training) and not isinstance(training, type):
        training = {field.name: getattr(training, field.name) for field in dataclasses.fields(training)}
    elif not isinstance(training, Mapping) and not isinstance(training, type) and hasattr(training, "__dict__"):
        training = vars(training)
    if not isinstance(training, Mapping) or not all(isinstance(name, str) for name in training):
        raise InputError(
            "training: expected parsed arguments, a mapping of options, a YAML or JSON file, or an object with fields, "
            f"found {type(training).__name__}"
        )
    return {name.replace("-", "_"): value for name, value in training.items()}


def _of_file(path: Path) -> Any:
    yaml = libraries.load("yaml", 'pip install "pyyaml>=6"', InputError, "reading a training configuration")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"training: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"training: {path} is neither YAML nor JSON: {error}") from error
