"""The result file of a sweep: JSON lines, a header and then one row a model, appended as they come."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from rewriter.errors import SweepError
from rewriter.sweep.request import Request, versions
from rewriter.sweep.row import Row

FORMAT = 2
"""Version of the file's form."""

_KIND = "rewriter sweep"
_START = f'{{"kind": "{_KIND}"'.encode()
_REMEDY = "Give another file with -o, or --restart to begin this one anew."


class ResultFile:
    """Rows of one request, on disk as soon as they are known.

    A line that was only half written (the machine stopped) is dropped when the file is opened again. Of several rows
    with one name the last counts.

    Args:
        path: created if it does not exist.
        request: what the rows answer.
        restart: drop what the file holds.

    Attributes:
        rows: what the file holds, by name.

    Raises:
        SweepError: the file is no result of a sweep, damaged, of another format, or of another request.
    """

    def __init__(self, path: Path, request: Request, restart: bool = False) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        header = {"kind": _KIND, "format": FORMAT, "request": request.described(), "versions": versions()}
        try:
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise SweepError(f"the result file {path} cannot be used: {error.strerror}") from error
        try:
            _lock(self._file, path)
            self._open(header, restart)
        except BaseException:
            self._file.close()
            raise

    def _open(self, header: dict[str, Any], restart: bool) -> None:
        """Read and check what is there, and drop what is not to be kept."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        half_header = not whole and (_START.startswith(content) or content.startswith(_START))
        if not whole.startswith(_START) and not half_header:
            raise SweepError(f"{self.path} is not the result of a sweep. Give another file with -o.")
        lines = [] if restart else whole.splitlines()
        if lines:
            self._check_header(lines[0], header)
            self._read(lines[1:])
        self._file.truncate(len(whole) if lines else 0)
        if not lines:
            self._write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, row: Row) -> None:
        """Add a row; it is on disk when this returns."""
        self.rows[row.name] = row
        self._write(row.to_data())

    def _write(self, data: Any) -> None:
        try:
            self._file.write(f"{json.dumps(data)}\n".encode())  # in one call, so that an interrupt leaves whole lines
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SweepError(f"the result file {self.path} cannot be written: {error.strerror}") from error

    def _check_header(self, line: bytes, expected: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = {}
        if found.get("format") != FORMAT:
            raise SweepError(
                f"{self.path}: expected the format {FORMAT} of result files, found {found.get('format')!r}. {_REMEDY}"
            )
        different = []
        for part in ("request", "versions"):
            here, there = expected[part], found.get(part) or {}
            different += [
                f"{name} is {here.get(name, 'none')} now and {there.get(name, 'none')} in the file"
                for name in dict.fromkeys((*here, *there))
                if here.get(name) != there.get(name)
            ]
        if different:
            raise SweepError(f"{self.path} is of another sweep: {'; '.join(different)}. {_REMEDY}")

    def _read(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, start=2):
            try:
                row = Row.from_data(json.loads(line))
            except (ValueError, TypeError) as error:
                raise SweepError(f"{self.path}, line {number} is damaged: {error}. {_REMEDY}") from error
            self.rows[row.name] = row


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep a second sweep from writing between our lines, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SweepError(f"another sweep writes to {path}. Wait for it, or give another file with -o.") from None
