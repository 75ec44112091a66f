"""Names for added modules."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable

from torch import nn


class FreeNames:
    """Hands out names that a module does not use, each once.

    Args:
        model: the model that modules are added to.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._given: set[tuple[str, str]] = set()
        self._remembered: dict[tuple[str, Hashable], str] = {}
        self._variables: dict[Hashable, dict[Hashable, str]] = {}

    def module(self, path: str) -> nn.Module:
        """The module at ``path``, in which names are taken."""
        return self._model.get_submodule(path)

    def take(self, path: str, name: str) -> str:
        """The first of ``name``, ``name_1``, … that the module at ``path`` does not use and that is not taken yet."""
        module = self.module(path)
        candidates = itertools.chain([name], (f"{name}_{index}" for index in itertools.count(1)))
        free = next(c for c in candidates if not hasattr(module, c) and (path, c) not in self._given)
        self._given.add((path, free))
        return free

    def take_once(self, path: str, name: str, what: Hashable) -> str:
        """The name that was taken at ``path`` for ``what``; at first one like :meth:`take` gives."""
        if (path, what) not in self._remembered:
            self._remembered[path, what] = self.take(path, name)
        return self._remembered[path, what]

    def variable(self, taken: Collection[str], name: str, function: Hashable, what: Hashable) -> str:
        """A name for a variable of ``function`` that is not ``taken``; the same again for the same ``what``."""
        given = self._variables.setdefault(function, {})
        if what not in given:
            candidates = itertools.chain([name], (f"{name}_{index}" for index in itertools.count(1)))
            given[what] = next(c for c in candidates if c not in taken and c not in given.values())
        return given[what]
