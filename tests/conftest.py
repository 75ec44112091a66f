"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import itertools
import linecache
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sampling import (  # noqa: F401 - hooks
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_terminal_summary,
)

torch.set_num_threads(1)

for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)  # what is printed is tested, here and in processes of their own; a terminal is not

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test begins with the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def import_text(tmp_path: Path) -> Iterator[Callable[[str], ModuleType]]:
    """A function that writes text into a file of its own and imports it, so that its functions have a source."""
    names: list[str] = []

    def load(text: str) -> ModuleType:
        name = f"handmade_{next(_numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        names.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in names:
        sys.modules.pop(name, None)
    linecache.checkcache()
