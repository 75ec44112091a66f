"""The results of verification: one check per contract clause, with whether it held and what was observed."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Checked(enum.StrEnum):
    """The subject of a check."""

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
        what: its subject.
        held: whether it held; None if that could not be decided.
        detail: what was observed, in words.
        alone: the passes applied by themselves for it; empty if all requested passes were applied.
    """

    what: Checked
    held: bool | None
    detail: str = ""
    alone: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The subject of the check, in words."""
        return f"{self.what} of {', '.join(self.alone)} alone" if self.alone else str(self.what)

    @property
    def verdict(self) -> str:
        """Whether it held, in words."""
        return {True: "holds", False: "BROKEN", None: "not decidable"}[self.held]

    def to_data(self) -> list[Any]:
        """Return it as JSON data: name, whether it held, and the detail."""
        return [self.name, self.held, self.detail]

    @staticmethod
    def from_data(data: Sequence[Any]) -> Check:
        """Return the check that :meth:`to_data` described.

        Raises:
            ValueError: the data do not describe a check.
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
