"""Handle standard output that is closed, full or no longer read: one line on stderr and an exit code, no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_OF_A_STREAM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


@contextlib.contextmanager
def output_written() -> Iterator[None]:
    """Ensure within the context that all output is written, or end the process with exit code 1.

    Raises:
        SystemExit: standard output is closed or could not be written to; silently if the reader went away.
    """
    if sys.stderr is None:  # print would otherwise use standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        _refuse("standard output is closed")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _OF_A_STREAM or error.filename is not None or not _fails():
            raise
        # what is left in the buffer would be written again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(1)
        _refuse(f"the output cannot be written: {error.strerror}")


def _fails() -> bool:
    try:
        sys.stdout.write("\n")  # an unbuffered stream has nothing left to flush
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _refuse(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(1)
