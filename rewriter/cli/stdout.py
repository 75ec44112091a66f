"""Standard output that is closed, full or no longer read: one line on standard error and an exit code, no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_OF_A_STREAM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


@contextlib.contextmanager
def output_written() -> Iterator[None]:
    """Inside, all output is written, or the process ends with exit code 1.

    Raises:
        SystemExit: standard output is closed or could not be written to; a reader that went away is told nothing.
    """
    if sys.stderr is None:  # print would take standard output instead
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
        # what is left in the buffer would be tried once more when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(1)
        _refuse(f"the output cannot be written: {error.strerror}")


def _fails() -> bool:
    try:
        sys.stdout.write("\n")  # of a stream without a buffer nothing is left to be flushed
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _refuse(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(1)
