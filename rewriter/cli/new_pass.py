"""``rewriter new-pass NAME``: the files of a new pass, as a distribution that can be installed."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from rewriter import libraries
from rewriter.cli.options import JSON, argument, errors_reported, option, print_json
from rewriter.errors import StorageError

_NAME = Annotated[str, argument(help="What users will call it: lower-case words with hyphens, such as blur-pool.")]
_DIRECTORY = Annotated[
    Path | None, option("--output", "-o", metavar="DIRECTORY", help="Where to write; a new folder NAME if not given.")
]

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "rewriter-$name"
version = "0.1.0"
dependencies = ["rewriter"]

[project.entry-points."rewriter.passes"]
$name = "$module:$cls"

[tool.setuptools]
py-modules = ["$module"]
""",
    "$module.py": '''\
"""What the guideline says, and which paper says it.

Rule (authors, *title*, year): in a sentence. Ours, not the paper's: in another one.
"""

from dataclasses import dataclass

import torch
from torch import nn

from rewriter.authoring import Change, Contract, Kind, Pass, Place, Reason, Refused, register_layer


@register_layer("$name/layer")
class Layer(nn.Module):
    """What is put into the model; with a factor of 1 it changes nothing."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@dataclass(frozen=True)
class $cls(Pass):
    """What it does. Every field is an option of the same name on the command line."""

    name = "$name"
    summary = "one line"
    paper = "authors, title, year"
    contract = Contract()  # what it leaves as it is

    factor: float = 1.0

    def candidates(self, trace):
        """Every convolution; narrow it down to the places that look right."""
        return (Place(trace, node, "convolution") for node in trace.operations(Kind.CONV))

    def decide(self, place):
        """Edit one place, or say why it is left alone."""
        if any(isinstance(place.trace.owner_of(reader), Layer) for reader in place.flow.users(place.node)):
            raise Refused(Reason.ALREADY_DONE, "the layer is there")
        if place.trace.shape(place.node)[-2:] == (1, 1):
            raise Refused("$name/one-position", "the map has one position")
        place.edit.insert_after(place.node, Layer, factor=self.factor)
        return Change("put the layer behind it", "why")
''',
    "test_$module.py": '''\
"""The contract of the pass on real models."""

import pytest
import timm

import rewriter
from rewriter.testing import check_contract

from $module import $cls


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_its_contract_holds(model):
    check_contract(timm.create_model(model), $cls(), must_find=True)


def test_what_it_leaves_alone():
    plan = rewriter.plan(timm.create_model("test_resnet"), $cls())
    assert {skip.reason for skip in plan.skipped} <= {"$name/one-position"}
''',
    "README.md": """\
# $name

What the guideline says, who says it, and when to use it and when not.

```
pip install -e .
pytest
rewriter plan resnet18 --pass $name --diff
rewriter plan resnet18 --pass $name:factor=0.5
```

What is the paper's, and what is ours: …
""",
}


def new_pass_command(name: _NAME, output: _DIRECTORY = None, as_json: JSON = False) -> None:
    """Write a pass of your own: its file, a test, a page, and the entry point that makes it known."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise typer.BadParameter(f"NAME: expected lower-case words with hyphens, such as blur-pool, found {name!r}")
    from rewriter.entry_points import PASS_GROUP, entry_points, is_own

    if keyword.iskeyword(name) or name in {entry.name for entry in entry_points(PASS_GROUP) if is_own(entry)}:
        whose = "a word of Python" if keyword.iskeyword(name) else "a pass of rewriter"
        raise typer.BadParameter(f"NAME: {name!r} is {whose}; choose another one")
    if libraries.is_installed(name.replace("-", "_")):
        raise typer.BadParameter(f"NAME: there is a module {name.replace('-', '_')!r} already; choose another one")
    words = {"name": name, "module": name.replace("-", "_"), "cls": "".join(map(str.capitalize, name.split("-")))}
    with errors_reported(as_json):
        folder = Path(name) if output is None else output
        texts = {folder / Template(file).substitute(words): Template(text) for file, text in _FILES.items()}
        taken = [str(file) for file in texts if file.exists()]
        if taken:
            raise StorageError(
                f"{', '.join(taken)}: there already, and not overwritten; give another directory with -o"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in texts.items():
                file.write_text(text.substitute(words), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
        if as_json:
            print_json({"directory": str(folder), "files": [str(file) for file in texts]})
            return
        print("\n".join(f"wrote {file}" for file in texts))
        print(f"next: pip install -e {folder}, then rewriter plan resnet18 --pass {name} --diff")
