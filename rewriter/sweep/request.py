"""What a sweep checks on every model, and its options."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rewriter import libraries, version
from rewriter.errors import SweepError
from rewriter.guideline.registry import resolve_passes
from rewriter.planning.selection import Preserve
from rewriter.renamed import forward_names


@dataclass(frozen=True)
class SweepRequest:
    """The checks that a sweep runs on every model.

    Attributes:
        passes: names and options of the passes, in the order they are applied.
        preserve: as in :func:`rewriter.rewrite`.
        model_kwargs: options of the models' constructors.
        numerics: compare numbers on real weights, not only structure on meta tensors.
    """

    passes: tuple[tuple[str, dict[str, Any]], ...]
    preserve: Preserve = "auto"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    numerics: bool = False

    @staticmethod
    def of(passes: Any, preserve: Preserve, model_kwargs: Mapping[str, Any] | None, numerics: bool) -> SweepRequest:
        """Return the request with the passes resolved.

        Raises:
            SelectorError: an unknown pass or option.
            SweepError: an option that cannot be serialised, and so cannot be passed to a worker.
        """
        resolved = tuple((item.name, item.options()) for item in resolve_passes(passes))
        request = SweepRequest(resolved, preserve, dict(model_kwargs or {}), numerics)
        try:
            same = SweepRequest.from_text(request.to_text()) == request
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise SweepError(
                "options of passes and models: expected plain values (numbers, texts, tuples, lists, dicts), found "
                f"{request.to_text()}"
            )
        return request

    @property
    def pass_list(self) -> list[dict[str, Any]]:
        """Return the passes as :func:`rewriter.plan` takes them."""
        return [{name: options} for name, options in self.passes]

    def to_text(self) -> str:
        """Serialise to one line, read by :meth:`from_text`. Unlike JSON it distinguishes tuples from lists."""
        return repr(asdict(self))

    @staticmethod
    def from_text(text: str) -> SweepRequest:
        """Return the request that :meth:`to_text` wrote."""
        return SweepRequest(**ast.literal_eval(text))

    def described(self) -> dict[str, str]:
        """Describe each part in words, for people and for the header of a result file."""
        passes = [f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})" for name, options in self.passes]
        return {
            "passes": ", ".join(passes) or "none",
            "preserve": self.preserve,
            "model-kwargs": json.dumps({key: repr(value) for key, value in sorted(self.model_kwargs.items())}),
            "numerics": "yes" if self.numerics else "no",
        }


def versions_of_libraries() -> dict[str, str]:
    """Return versions of everything that results depend on; libraries that are not installed are ``"none"``."""
    names = libraries.MODEL_LIBRARIES
    return {"rewriter": version.__version__, **dict.fromkeys(names, "none"), **libraries.versions(names)}


__getattr__ = forward_names(__name__, {"Request": "SweepRequest", "versions": "versions_of_libraries"})
