"""The page about losses: its code runs as it stands, prints what it says, and its diff is the one that is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(python .+?|diff)\n(.*?)^```$", PAGE, re.M | re.S)

DIFF = """
import torch
import rewriter
from finite_log import FiniteLogs
from my_losses import likelihood
inputs = torch.randn(3), torch.ones(3)
print(rewriter.plan(likelihood, FiniteLogs(), example_inputs=inputs).diff(likelihood))
"""


@pytest.mark.slow
def test_its_code_runs_and_prints_what_it_says(tmp_path: Path) -> None:
    for words, text in BLOCKS:
        if words.startswith("python file="):
            (tmp_path / words.removeprefix("python file=")).write_text(text, encoding="utf-8")
    (code,) = (text for words, text in BLOCKS if words == "python run")
    (diff,) = (text for words, text in BLOCKS if words == "diff")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + DIFF],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    promised = re.findall(r"^print\(.*\)\s+# (.*)$", code, re.M)
    assert printed[: len(promised)] == promised
    assert printed[len(promised) :][1:-1] == diff.splitlines()
