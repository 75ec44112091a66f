"""Output in an encoding that lacks a character: it is replaced by a plain one instead of raising."""

from __future__ import annotations

import codecs
import io
import sys

_NAME = "rewriter.plain"
_PLAIN = {
    "→": "->", "←": "<-", "…": "...", "−": "-", "–": "-", "—": "-", "‐": "-", "×": "x", "·": ".", "•": "*", "±": "+/-",
    "≤": "<=", "≥": ">=", "≈": "~", "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
    "─": "-", "│": "|",
}  # fmt: skip


def write_what_can_be_encoded() -> None:
    """Make standard output and standard error accept any text: ``→`` becomes ``->`` if necessary."""
    codecs.register_error(_NAME, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end
