"""What every test of tracing is held to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import global_state


@pytest.fixture(autouse=True)
def leaves_no_mode_behind() -> Iterator[None]:
    """No test may leave a mode of torch, or a seed, that others would meet."""
    before = global_state()
    yield
    assert global_state() == before
