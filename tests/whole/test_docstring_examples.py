"""The example in the docstring of every public verb runs, and gives what stands there."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest
import timm
import torch

import rewriter
import rewriter.authoring
import rewriter.testing
import rewriter.zoo

VERBS = [getattr(rewriter, name) for name in rewriter.__all__ if inspect.isfunction(getattr(rewriter, name))]
SLOW = (rewriter.calibrate, rewriter.fold, rewriter.compare)


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(verb, marks=pytest.mark.slow if verb in SLOW else (), id=verb.__name__)
        for verb in (*VERBS, rewriter.testing.check_contract)
    ],
)
def test_it_runs(verb: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(
        verb, globs={"rewriter": rewriter, "timm": timm, "torch": torch}
    )
    assert example.examples, f"{verb} has no example"
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=told.append)
    assert not told, "".join(told)
