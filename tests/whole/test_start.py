"""What starting costs, counted in modules that are imported: help, usage errors and lists need no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "timm", "torchvision", "numpy", "networkx", "scipy", "matplotlib", "pandas", "accelerate"}


def imported(code: str) -> set[str]:
    """The modules that are imported after ``code``, in a process of its own."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def of_command(*arguments: str) -> set[str]:
    return imported(
        f"import sys\nsys.argv = {['rewriter', *arguments]!r}\nfrom rewriter.cli.commands import main\n"
        "import io, contextlib\n"
        "with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):\n    main()"
    )


def test_importing_the_package_imports_no_library() -> None:
    found = imported("import rewriter")
    assert not found & HEAVY
    ours = {name for name in found if name.startswith("rewriter.")}
    assert ours == {"rewriter.libraries", "rewriter.renamed", "rewriter.version"}


@pytest.mark.slow
def test_what_a_verb_needs_is_loaded_with_it() -> None:
    found = imported("import rewriter\nrewriter.plan")
    assert "torch" in found and not found & {"timm", "torchvision", "scipy", "matplotlib", "pandas", "pydantic"}
    of_others = ("rewriter.comparison", "rewriter.data", "rewriter.sweep", "rewriter.cli", "rewriter.storage")
    assert not {name for name in found if name.startswith(of_others)}


@pytest.mark.slow
def test_without_the_libraries_of_comparisons_everything_else_is_there() -> None:
    imported(
        "import sys\nsys.modules['pandas'] = None\nfrom rewriter import *\nplan, rewrite, Plan, ComparisonError\n"
        "import rewriter\n"
        "try:\n    rewriter.compare\nexcept ComparisonError as error:\n    assert 'need pandas' in str(error)\n"
        "else:\n    raise AssertionError"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("--version",), ("passes",), ("passes", "--json"), ("plan",), ("plan", "resnet18", "--nonsense"),
        ("plan", "resnet18", "--input-size", "large"), ("plan", "resnet18", "-k", "pretrained=True"),
        ("rewrite", "--help"), ("compare", "--help"), ("compare", "--seeds", "0"), ("sweep", "--shard", "3/2", "x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_lists_and_usage_errors_need_no_torch(arguments: tuple[str, ...]) -> None:
    assert not of_command(*arguments) & HEAVY


def test_neither_does_completion() -> None:
    code = (
        "import os, sys\n"
        "os.environ |= {'_REWRITER_COMPLETE': 'complete_bash', 'COMP_WORDS': 'rewriter pl', 'COMP_CWORD': '1'}\n"
        "sys.argv = ['rewriter']\nfrom rewriter.cli.commands import main\n"
        "import contextlib\nwith contextlib.suppress(SystemExit):\n    main()"
    )
    assert not imported(code) & HEAVY
