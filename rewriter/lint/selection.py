"""Which codes are asked for: whole ones, or the beginnings of several (``RW02``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewriter.errors import SelectorError


@dataclass(frozen=True)
class Codes:
    """Codes that are looked for.

    Attributes:
        select: beginnings of codes; all for None.
        ignore: beginnings of codes that are left out; the longer of two that fit a code decides.
    """

    select: tuple[str, ...] | None
    ignore: tuple[str, ...]

    def allow(self, code: str) -> bool:
        """Whether findings of ``code`` are wanted."""
        chosen = 0 if self.select is None else _longest(self.select, code)
        return chosen > _longest(self.ignore, code)


def _longest(beginnings: Iterable[str], code: str) -> int:
    return max((len(text) for text in beginnings if code.startswith(text)), default=-1)


def chosen_codes(select: str | Iterable[str] | None, ignore: str | Iterable[str] | None, known: Sequence[str]) -> Codes:
    """Read ``select`` and ``ignore``: one code or several, separated by commas or as a sequence.

    Raises:
        SelectorError: one is the beginning of no known code.
    """
    codes = Codes(None if select is None else _read(select), _read(ignore or ()))
    for text in (*(codes.select or ()), *codes.ignore):
        if not any(code.startswith(text) for code in known):
            raise SelectorError(f"{text!r} is no code, nor the beginning of one; there are {', '.join(sorted(known))}")
    return codes


def _read(codes: str | Iterable[str]) -> tuple[str, ...]:
    items = codes.split(",") if isinstance(codes, str) else codes
    if not all(isinstance(item, str) for item in items):
        raise SelectorError(f"expected codes such as 'RW02' or 'RW0201', found {codes!r}")
    return tuple(item.strip().upper() for item in items if item.strip())
