"""``only`` and ``skip``: which modules a rewrite may touch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from rewriter.errors import SelectorError
from rewriter.guideline.registry import suggest

Selectors: TypeAlias = "str | type[nn.Module] | Iterable[str | type[nn.Module]]"
"""Module paths, globs, ``"re:…"`` patterns or classes."""

Preserve: TypeAlias = Literal["auto", "eval", "nothing"]
"""Passes that change the eval output and are held back: on trained weights those not named, always all, never any."""


@dataclass(frozen=True)
class Selection:
    """Chosen module paths; a path stands for everything below it."""

    only: frozenset[str] | None
    skip: frozenset[str]

    def allows(self, path: str) -> bool:
        """Whether the module at ``path`` may be touched."""
        chain = set(_parents(path))
        return not (chain & self.skip) and (self.only is None or bool(chain & self.only))


def select(model: nn.Module, only: Selectors | None = None, skip: Selectors | None = None) -> Selection:
    """Resolve selectors on ``model``.

    Args:
        only, skip: a module path, a glob (``"layer4.*"``), a regular expression (``"re:.*conv[12]"``), a module class,
            or a sequence of these.

    Raises:
        SelectorError: a selector matches no module; the message shows the nearest names.
    """
    chosen = None if only is None else frozenset(_matches(model, only))
    return Selection(chosen, frozenset(_matches(model, skip) if skip is not None else ()))


def selector_texts(selectors: Any) -> list[str]:
    """Return selectors as text, for the record of the request."""
    return [s.__name__ if isinstance(s, type) else str(s) for s in as_sequence(selectors)]


def _matches(model: nn.Module, selectors: Any) -> Iterable[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for selector in as_sequence(selectors):
        found = [path for path, module in modules.items() if _fits(selector, path, module)]
        if not found:
            shown = selector.__name__ if isinstance(selector, type) else selector
            classes = {type(module).__name__ for module in modules.values()}
            known = classes if isinstance(selector, type) else [path for path in modules if path]
            raise SelectorError(
                f"the selector {shown!r} matches no module of {type(model).__name__}; {suggest(str(shown), known)}"
            )
        yield from found


def _fits(selector: Any, path: str, module: nn.Module) -> bool:
    if isinstance(selector, type):
        return isinstance(module, selector)
    if not isinstance(selector, str):
        raise SelectorError(f"not a selector: {selector!r}; give a module path, a glob, 're:…' or a class")
    if selector.startswith("re:"):
        try:
            return re.fullmatch(selector[3:], path) is not None
        except re.error as error:
            raise SelectorError(f"{selector!r} is not a regular expression: {error}") from error
    return path == selector or (any(c in selector for c in "*?[") and fnmatch.fnmatchcase(path, selector))


def as_sequence(selectors: Any) -> tuple[Any, ...]:
    """Return one selector or several as a tuple; an empty one for None."""
    if selectors is None:
        return ()
    if isinstance(selectors, (str, type)):
        return (selectors,)
    try:
        return tuple(selectors)
    except TypeError as error:  # a tensor without dimensions claims to be iterable, too
        raise SelectorError(f"not a selector: {selectors!r}; give a module path, a glob, 're:…' or a class") from error


def _parents(path: str) -> Iterable[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts) + 1)]
