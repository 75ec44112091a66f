"""Sweeps, which ask one thing of every model there is, are run in parts: one part a day, and all of them in turn.

``@pytest.mark.sweep("name", NAMES)`` says over which names a test's parameter ``name`` goes. With ``--sample`` only the
part of today is run, in every test of the sweep the same one; ``--sample-seed`` runs that of another day. Of the tests
that are marked ``slow`` and are no sweep (processes, trainings) every third one is run, the others on the next days.
Without either option, all are run.

``--quick`` is for while one works: neither sweeps nor tests marked ``slow`` or ``thorough``, and of a test with many
parameters the first.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Iterable

import pytest

PARTS = 32
"""Days until every name was run; no multiple of seven, so that a project tested once a week sees other parts too."""


SLOW_PARTS = 3
"""Days until every slow test was run."""


def in_part(names: Iterable[str], seed: int) -> list[str]:
    """The names that are run for ``seed``: every :data:`PARTS`-th, so that relatives are not run on one day."""
    return list(names)[seed % PARTS :: PARTS]


def is_of_today(test: str, seed: int) -> bool:
    """Whether a slow test is run for ``seed``: on one of :data:`SLOW_PARTS` days."""
    return zlib.crc32(test.encode()) % SLOW_PARTS == seed % SLOW_PARTS


def is_quick(item: pytest.Item) -> bool:
    """Whether a test is no sweep, takes less than about a second, and does not train."""
    return not any(item.get_closest_marker(name) for name in ("sweep", "slow", "thorough", "trainers"))


def first_of_each(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Of the tests that differ in their parameters only, the first."""
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid.partition("[")[0], item)
    return list(first.values())


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sweeps over many models")
    group.addoption("--sample", action="store_true", help="Run today's part of each sweep only.")
    group.addoption("--quick", action="store_true", help="No sweep, no slow test, one of each test's parameters.")
    group.addoption("--sample-seed", type=int, metavar="N", help="Run the part of this seed (that of a day is told).")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"sweep(parameter, names): run in {PARTS} parts with --sample")
    if config.option.sample and config.option.sample_seed is None:
        # by the first process, for all: a run may go on past midnight
        config.option.sample_seed = datetime.datetime.now(datetime.UTC).date().toordinal()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.option.sample_seed
    kept = items
    if config.option.quick:
        kept = first_of_each(filter(is_quick, items))
    elif seed is not None:
        kept = [item for item in items if _is_in_part(item, seed)]
    chosen = set(kept)
    left_out = [item for item in items if item not in chosen]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _is_in_part(item: pytest.Item, seed: int) -> bool:
    marker = item.get_closest_marker("sweep")
    if marker is None:
        return item.get_closest_marker("slow") is None or is_of_today(item.nodeid, seed)
    parameter, names = marker.args
    return item.callspec.params[parameter] in in_part(names, seed)  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seed = config.option.sample_seed
    if seed is not None:
        terminalreporter.write_line(
            f"sweeps: part {seed % PARTS + 1} of {PARTS}, slow tests: part {seed % SLOW_PARTS + 1} of {SLOW_PARTS}; "
            f"--sample-seed={seed} runs the same ones again"
        )
