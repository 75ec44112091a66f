"""The examples train on real images, are killed, go on to the same curve, and are evaluated in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem.removeprefix("train_"): path for path in sorted((ROOT / "examples").glob("train_*.py"))}
PROCESSES = {"ddp": 2, "fsdp2": 2}
IN_EVERY_RUN = {"timm"}
"""The others need extras, or minutes in all: ``make test-trainers``."""

marked = [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.trainers) for name in EXAMPLES]


def started(example: str, folder: Path, *arguments: str, processes: int) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launcher if example in PROCESSES else []), str(EXAMPLES[example]), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    output = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, text=True, env=environment)


def told(example: str, folder: Path, *arguments: str, processes: int = 1) -> tuple[dict[int, str], str]:
    """The losses by step, and the digest of the logits."""
    process = started(example, folder, *arguments, processes=processes)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    (digest,) = re.findall(r"^logits of \d+ test images: (\w+)$", out, re.MULTILINE)
    return losses(out.splitlines()), digest


def losses(lines: Sequence[str]) -> dict[int, str]:
    found = (re.fullmatch(r"step (\d+): loss (\S+)", line) for line in lines)
    return {int(match[1]): match[2] for match in found if match}


def killed(example: str, folder: Path, step: int, processes: int) -> dict[int, str]:
    """The losses of a run whose processes are killed as soon as it tells of ``step``."""
    process = started(example, folder, processes=processes)
    assert process.stdout is not None and process.stderr is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(f"step {step}:"):
            break
    assert process.poll() is None, process.stderr.read()[-3000:]
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.kill()
    process.communicate()
    return losses(lines)


@pytest.mark.slow
def test_a_checkpoint_of_1000_classes_is_fine_tuned(tmp_path: Path) -> None:
    trained = timm.create_model("test_efficientnet_gn", num_classes=1000)
    torch.save(trained.state_dict(), tmp_path / "imagenet.pth")
    whole, logits = told("timm", tmp_path / "run", "--weights", str(tmp_path / "imagenet.pth"), "--epochs", "1")
    assert whole[0] != told("timm", tmp_path / "fresh", "--epochs", "1")[0][0]
    assert told("timm", tmp_path / "run", "--evaluate", "--epochs", "1") == ({}, logits)


@pytest.mark.slow
@pytest.mark.parametrize("example", marked)
def test_an_example_is_killed_and_goes_on_to_the_same_curve(example: str, tmp_path: Path) -> None:
    processes = PROCESSES.get(example, 1)
    whole, logits = told(example, tmp_path / "whole", processes=processes)
    half = len(whole) // 2
    assert list(whole) == list(range(2 * half)) and len(set(whole.values())) > half

    before = killed(example, tmp_path / "broken", half, processes)
    assert before == {step: whole[step] for step in range(half + 1)}
    after, resumed = told(example, tmp_path / "broken", "--seed", "7", processes=processes)
    assert after == {step: whole[step] for step in range(half, 2 * half)}
    assert resumed == logits

    none, elsewhere = told(example, tmp_path / "broken", "--evaluate", "--seed", "9")
    assert not none and elsewhere == logits


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "trainers").glob("*.md")), ids=lambda path: path.stem)
def test_the_page_shows_what_the_example_does(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (named,) = set(re.findall(r"examples/(train_\w+)\.py", text))
    code = {line.strip() for line in EXAMPLES[named.removeprefix("train_")].read_text(encoding="utf-8").splitlines()}
    shown = [
        line.strip() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    assert shown and not [line for line in shown if line and line not in code]


def test_every_example_has_a_page() -> None:
    named = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "trainers").glob("*.md"))
    assert all(f"examples/{path.name}" in named for path in EXAMPLES.values())
