"""Sweeps in parts: all of them in turn, the same one for the same seed, and it is told which."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampling import PARTS, in_part, is_of_today

NAMES = [f"model_{number}" for number in range(20)]
SWEEP = f"""
import pytest

NAMES = {NAMES}

@pytest.fixture(params=NAMES)
def subject(request):
    return request.param

@pytest.mark.sweep("subject", NAMES)
def test_first(subject):
    assert subject != "model_7", "a failure"

@pytest.mark.sweep("name", NAMES)
@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_second(name, again):
    pass

def test_other():
    pass
"""


@pytest.mark.parametrize("step", [1, 7, 5, 31])
def test_every_name_is_run_within_some_runs(step: int) -> None:
    """Daily, weekly and in other rhythms."""
    start = datetime.date(2026, 1, 1).toordinal()
    seen = {name for run in range(PARTS) for name in in_part(NAMES, start + step * run)}
    assert seen == set(NAMES)


def test_parts_are_of_one_size() -> None:
    sizes = [len(in_part(NAMES, seed)) for seed in range(PARTS)]
    assert sum(sizes) == len(NAMES) and max(sizes) - min(sizes) <= 1


def test_each_slow_test_is_run_on_one_day_of_three() -> None:
    tests = [f"tests/test_{number}.py::test" for number in range(100)]
    days = [[test for test in tests if is_of_today(test, seed)] for seed in range(738_000, 738_004)]
    assert sorted(days[0] + days[1] + days[2]) == sorted(tests) and days[3] == days[0]
    assert 20 < len(days[0]) < 50


@pytest.fixture
def run(tmp_path: Path) -> object:
    (tmp_path / "conftest.py").write_text("from sampling import *\n")
    (tmp_path / "test_sweeps.py").write_text(SWEEP)

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        for name in [name for name in environment if name.startswith("PYTEST_")]:
            del environment[name]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    return call


@pytest.mark.slow
def test_a_part_is_run_told_and_repeated(run: object) -> None:
    assert callable(run)
    whole = run()
    assert "60 passed" in whole and "1 failed" in whole and "sweeps:" not in whole
    of_the_seed = run("--sample-seed=7")
    assert "model_7" in of_the_seed and "1 failed" in of_the_seed
    told = f"sweeps: part {7 % PARTS + 1} of {PARTS}, slow tests: part 2 of 3; --sample-seed=7 runs the same ones again"
    assert told in of_the_seed
    length = len(in_part(NAMES, 7))
    assert f"{3 * length} passed, {3 * (len(NAMES) - length)} deselected" in of_the_seed
    assert "failed" not in run("--sample-seed=8")
    assert "1 passed" in run("--sample-seed=7", "-m", "not sweep")


@pytest.mark.slow
def test_a_part_of_today_in_several_processes(run: object) -> None:
    assert callable(run)
    first = datetime.datetime.now(datetime.UTC).date().toordinal()
    found = run("--sample", "-n", "2")
    last = datetime.datetime.now(datetime.UTC).date().toordinal()
    assert any(f"--sample-seed={seed} runs the same ones again" in found for seed in (first, last))
    assert "passed" in found and "error" not in found.lower()


@pytest.mark.slow
def test_quick_takes_one_of_each_test_and_no_sweep(run: object, tmp_path: Path) -> None:
    assert callable(run)
    (tmp_path / "test_many.py").write_text("""
import pytest

@pytest.mark.parametrize("number", range(5))
def test_many(number):
    assert number == 0

@pytest.mark.slow
def test_slow():
    assert False
""")
    found = run("--quick")
    assert "2 passed" in found and "failed" not in found  # test_other, and test_many with 0
