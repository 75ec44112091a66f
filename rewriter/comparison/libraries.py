"""Libraries that only comparisons need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from rewriter.errors import ComparisonError


def library(name: str) -> Any:
    """The module called ``name``.

    Raises:
        ComparisonError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        raise ComparisonError(
            f'comparisons need {root}, which cannot be imported ({error}). Install it: pip install "rewriter[compare]"'
        ) from error
