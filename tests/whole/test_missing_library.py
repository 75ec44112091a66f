"""What is said where a library that a module is for is not installed, or is broken."""

from __future__ import annotations

import importlib
import sys

import pytest

import rewriter
from rewriter import libraries

INTEGRATIONS = ("accelerate", "lightning", "timm", "transformers")


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_an_integration_says_how_to_install_its_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    monkeypatch.delitem(sys.modules, f"rewriter.integrations.{name}", raising=False)
    with pytest.raises(rewriter.InstallationError) as caught:
        importlib.import_module(f"rewriter.integrations.{name}")
    words = f'rewriter.integrations.{name}: {name} is not installed; install it with: pip install "{name}'
    assert str(caught.value).startswith(words) and isinstance(caught.value, ImportError)


def test_a_library_that_is_broken_is_not_called_missing() -> None:
    with (
        pytest.raises(rewriter.InstallationError, match="timm cannot be imported: of another library"),
        libraries.needed("timm", rewriter.InstallationError),
    ):
        raise ImportError("of another library", name="numpy")


@pytest.mark.parametrize("name", [*libraries.MODEL_LIBRARIES, *INTEGRATIONS])
def test_commands_install_what_the_extras_ask_for(name: str) -> None:
    asked = [text for text in importlib.metadata.requires("rewriter") or () if "extra" in text]
    requirement = libraries.install_command(name).partition('"')[2].rstrip('"')
    if ">=" in requirement:
        assert any(text.partition(";")[0].replace(" ", "") == requirement for text in asked)
