"""What a command prints where the encoding of a terminal or pipe lacks a character."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm

import rewriter
from rewriter.cli import commands as cli
from rewriter.cli.encoding import write_what_can_be_encoded

pytestmark = pytest.mark.slow

ENCODINGS = ["ascii", "cp1252", "latin-1", "cp437", "cp932", "koi8-r"]
COMPARE = (
    "compare", "test_vit", "--pass", "dropout:p=0.1", "--data", "digits", "--device", "cpu", "--level", "equivalence",
    "-r", "train_images=16,test_images=20,batch_size=8",
)  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "passes": ("passes",),
    "plan": ("plan", "test_resnet", "-k", "drop_rate=0.1", "--diff"),
    "rewrite": ("rewrite", "test_vit", "-k", "proj_drop_rate=0.1", "--pass", "dropout"),
    "compare": COMPARE,
    "help": ("--help",),
    "help of a command": ("compare", "--help"),
    "version": ("--version",),
    "a refusal": ("plan", "modèle→inconnu"),
    "wrong usage": ("plan", "test_resnet", "--input-size", "größe"),
}


class Streams:
    """Standard output and error as a process has them: bytes behind an encoding, and strict."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self.encoding = encoding
        self._bytes = io.BytesIO(), io.BytesIO()
        self.out, self.err = (io.TextIOWrapper(raw, encoding=encoding, errors="strict") for raw in self._bytes)
        monkeypatch.setattr(sys, "stdout", self.out)
        monkeypatch.setattr(sys, "stderr", self.err)

    def text(self) -> str:
        """All that was written, to both."""
        self.out.flush()
        self.err.flush()
        return "".join(raw.getvalue().decode(self.encoding, "replace") for raw in self._bytes)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["rewriter", *arguments])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_ends_in_an_error_of_encoding(command: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, encoding)
    code = main(monkeypatch, *COMMANDS[command])
    assert code == {"a refusal": 1, "wrong usage": 2}.get(command, 0), streams.text()
    assert streams.text().strip() and "UnicodeEncodeError" not in streams.text()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_plans_and_reports_are_printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.1), input_size=64)
    plan, report = rewriter.plan(timm.create_model("test_vit"), input_size=160), rewriter.report(model)
    streams = Streams(monkeypatch, encoding)
    write_what_can_be_encoded()
    print(plan)
    print(report)
    assert "atrous-rates -> dropout -> group-count" in streams.text().replace("→", "->")


def test_what_stands_for_a_character_that_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, "ascii")
    write_what_can_be_encoded()
    print("a → b ← c … 3 × 4 − 1 ± 2 • ≥ ≤ ≈ “q” ‘s’ \N{SNOWMAN} ü \udcff")
    assert streams.text() == "a -> b <- c ... 3 x 4 - 1 +/- 2 * >= <= ~ \"q\" 's' ? ? ?\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_can_be_encoded_is_as_it_was(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, encoding)
    write_what_can_be_encoded()
    print("a → b … ü \N{SNOWMAN}")
    assert "a → b … ü \N{SNOWMAN}\n" in streams.text()


@pytest.mark.parametrize(
    "command",
    [("passes", "--json"), ("plan", "test_resnet", "-k", "drop_rate=0.1", "--json"),
     ("rewrite", "test_resnet", "--no-verify", "--json"), (*COMPARE, "--json"), ("plan", "modèle→inconnu", "--json")],
    ids=["passes", "plan", "rewrite", "compare", "refusal"],
)  # fmt: skip
def test_json_is_pure_ascii(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, "utf-8")
    main(monkeypatch, *command)
    streams.out.flush()
    text = streams.out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert json.loads(text)


def test_streams_that_are_no_files_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    write_what_can_be_encoded()


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "rewriter", "plan", "test_resnet", "-k", "drop_rate=0.1", "--diff"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"->" in done.stdout and not done.stderr
