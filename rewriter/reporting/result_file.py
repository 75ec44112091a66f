"""JSON lines written by long-running work: a header with the question, then one line per result as it arrives."""

from __future__ import annotations

import abc
import contextlib
import json
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Generic, Self, TypeVar

from rewriter.errors import RewriterError

Result = TypeVar("Result")


class ResultFile(abc.ABC, Generic[Result]):
    """Results of one question, on disk as soon as they are known.

    A partially written line (power loss, full disk) is dropped when the file is opened again. Of several results with
    one key, the last counts.

    Args:
        path: created if it does not exist.
        question: what the results answer: named parts, each with named texts.
        restart: discard the content of the file.
        owner: False for a process that only appends to a file that another process has opened and locked.

    Attributes:
        results: the content of the file, by key.

    Raises:
        RewriterError: the file is of another kind, is damaged, has another format version, or answers another question.
    """

    KIND: ClassVar[str]
    WORK: ClassVar[str]
    FORMAT: ClassVar[int]
    ERROR: ClassVar[type[RewriterError]]
    ELSEWHERE: ClassVar[str]

    def __init__(
        self, path: Path, question: Mapping[str, Mapping[str, str]], *, restart: bool = False, owner: bool = True
    ) -> None:
        self.path = path
        self.results: dict[Hashable, Result] = {}
        self._start = f'{{"kind": "{self.KIND}"'.encode()
        header = {"kind": self.KIND, "format": self.FORMAT, **question}
        try:
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise self.ERROR(f"the result file {path} cannot be used: {error.strerror}") from error
        try:
            if owner:
                self._lock()
            self._open(header, restart and owner, owner)
        except BaseException:
            self._file.close()
            raise

    @abc.abstractmethod
    def key(self, result: Result) -> Hashable:
        """Return the key of a result."""

    @abc.abstractmethod
    def to_data(self, result: Result) -> Any:
        """Return a result as plain data."""

    @abc.abstractmethod
    def from_data(self, data: Any) -> Result:
        """Return the result that :meth:`to_data` described; raise ValueError, TypeError or KeyError otherwise."""

    def append(self, result: Result) -> None:
        """Add a result; it is on disk when this returns."""
        self.results[self.key(result)] = result
        self._write(self.to_data(result))

    def read_again(self) -> None:
        """Update ``results`` from disk, including what other processes have added."""
        self._file.seek(0)
        content = self._file.read()
        self.results.clear()
        self._read(_whole_lines(content).splitlines()[1:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self, header: dict[str, Any], restart: bool, owner: bool) -> None:
        """Read and check the existing content; the owner drops what is not to be kept."""
        self._file.seek(0)
        content = self._file.read()
        whole = _whole_lines(content)
        half_header = not whole and (self._start.startswith(content) or content.startswith(self._start))
        if not whole.startswith(self._start) and not half_header:
            raise self.ERROR(f"{self.path} is not the result of {self.WORK}. {self.ELSEWHERE}.")
        lines = [] if restart else whole.splitlines()
        if lines:
            self._check_header(lines[0], header)
            self._read(lines[1:])
        if owner:
            self._file.truncate(len(whole) if lines else 0)
            if not lines:
                self._write(header)

    def _write(self, data: Any) -> None:
        line = f"{json.dumps(data)}\n".encode()
        written = 0
        try:
            written = self._file.write(line)  # in one call, so that an interrupt leaves whole lines
            if written < len(line):  # disk full: the next call raises the reason
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._take_back(line[:written])
            raise self.ERROR(f"the result file {self.path} cannot be written: {error.strerror}") from error

    def _take_back(self, half_line: bytes) -> None:
        """Remove a partial line, so that what another process appends does not continue it."""
        with contextlib.suppress(OSError):
            start = self._file.seek(0, os.SEEK_END) - len(half_line)
            self._file.seek(max(start, 0))
            if half_line and self._file.read() == half_line:
                self._file.truncate(start)

    def _check_header(self, line: bytes, expected: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = {}
        if found.get("format") != self.FORMAT:
            raise self.ERROR(
                f"{self.path}: expected the format {self.FORMAT} of result files, found {found.get('format')!r}. "
                f"{self._remedy}"
            )
        different = []
        for part in (name for name in expected if name not in ("kind", "format")):
            here, there = expected[part], found.get(part) or {}
            different += [
                f"{name} is {here.get(name, 'none')} now and {there.get(name, 'none')} in the file"
                for name in dict.fromkeys((*here, *there))
                if here.get(name) != there.get(name)
            ]
        if different:
            raise self.ERROR(
                f"{self.path} is of another {self.WORK.split()[-1]}: {'; '.join(different)}. {self._remedy}"
            )

    def _read(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, start=2):
            try:
                result = self.from_data(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise self.ERROR(f"{self.path}, line {number} is damaged: {error}. {self._remedy}") from error
            self.results[self.key(result)] = result

    @property
    def _remedy(self) -> str:
        return f"{self.ELSEWHERE}, or restart=True (--restart) to begin this one anew."

    def _lock(self) -> None:
        """Lock the file against other processes with the same work, if the system can."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self.ERROR(
                f"another {self.WORK.split()[-1]} writes to {self.path}. Wait for it, or: {self.ELSEWHERE}."
            ) from None


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
