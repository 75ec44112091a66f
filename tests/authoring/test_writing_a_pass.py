"""The page about writing a pass: its code runs as it stands, and a pass is as short as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-pass.md"
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```python (.+?)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S
)
FILES = {words.removeprefix("file="): code for words, code in BLOCKS if words.startswith("file=")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


def run(code: str, folder: Path) -> str:
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [code for words, code in BLOCKS if words == "run"], ids=lambda code: code.split("\n")[1]
)
def test_the_code_runs(code: str, folder: Path) -> None:
    printed = run(code, folder)
    promised = re.findall(r"^print\(.*\)\s+# (.*)$", code, re.M)
    assert printed.splitlines() == promised


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_pass_is_one_file_with_one_import_of_ours_in_forty_lines(name: str) -> None:
    lines = [line for line in FILES[name].splitlines() if line.strip()]
    ours = [line for line in lines if "rewriter" in line]
    assert len(ours) == 1 and ours[0].startswith("from rewriter.authoring import ")
    assert len(lines) <= 40
