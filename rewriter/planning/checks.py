"""What verification found: one check a promise, each with whether it held and what was seen."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Checked(enum.StrEnum):
    """What a check is about."""

    MODEL = "model"
    EVAL_MODE = "eval mode"
    OUTPUT_STRUCTURE = "output structure"
    EVAL_OUTPUT = "eval output"
    STATE_DICT = "state dict"
    TRAINING = "training"
    GRADIENTS = "gradients"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        what: it is about.
        held: whether it held; None if that could not be decided.
        detail: what was seen, in words.
        alone: the passes that were applied by themselves for it; empty for all that were asked for.
    """

    what: Checked
    held: bool | None
    detail: str = ""
    alone: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is about, in words."""
        return f"{self.what} of {', '.join(self.alone)} alone" if self.alone else str(self.what)

    @property
    def verdict(self) -> str:
        """Whether it held, in words."""
        return {True: "holds", False: "BROKEN", None: "not decidable"}[self.held]

    def to_data(self) -> list[Any]:
        """What JSON can hold: name, whether it held, and the detail."""
        return [self.name, self.held, self.detail]

    @staticmethod
    def from_data(data: Sequence[Any]) -> Check:
        """The check that :meth:`to_data` gave.

        Raises:
            ValueError: it is none.
        """
        name, held, detail = data
        what, _, passes = str(name).removesuffix(" alone").partition(" of ")
        return Check(Checked(what), held, str(detail), tuple(passes.split(", ")) if passes else ())


@dataclass(frozen=True)
class Verification:
    """The checks of one rewrite."""

    checks: tuple[Check, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a pickle of version 0.1.0 has tuples
        checks = (check if isinstance(check, Check) else Check.from_data(check) for check in state["checks"])
        object.__setattr__(self, "checks", tuple(checks))

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if check.held is False)

    def __str__(self) -> str:
        return "; ".join(f"{c.name} {c.verdict}" + (f" ({c.detail})" if c.detail else "") for c in self.checks)
