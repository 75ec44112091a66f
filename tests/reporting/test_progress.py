"""How far long work is: on a terminal a bar with the count and the time left, elsewhere nothing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CODE = """
from rewriter.reporting.progress import progress_bar

with progress_bar("starting [a]", 2) as done:
    done.rename("second [b]")
    done()
    done.say("[c] failed")
    done()
with progress_bar("a single step", 1):
    pass
"""


def on_terminal(code: str) -> str:
    """What a process shows on standard error, which is a terminal."""
    first, second = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=second, env=environment) as process:
        os.close(second)
        shown = b""
        while piece := _read(first):
            shown += piece
    assert process.returncode == 0
    os.close(first)
    return shown.decode()


def _read(end: int) -> bytes:
    try:
        return os.read(end, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_terminal_shows_what_goes_on_how_far_it_is_and_what_went_wrong() -> None:
    shown = on_terminal(CODE)
    for expected in ("second [b]", "2/2", "100%", "[c] failed", "a single step"):
        assert expected in shown, expected


def test_without_rich_a_terminal_shows_titles() -> None:
    shown = on_terminal(f"import sys; sys.modules['rich'] = None\n{CODE}")
    assert shown.split("\r\n") == ["starting [a]", "a single step", ""]


def test_where_there_is_no_terminal_nothing_is_shown() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
