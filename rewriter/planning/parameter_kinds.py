"""The kind of each parameter, by name, stored with the plan so that nothing has to be recorded again later.

A *kind* is the position of a gamma (:class:`rewriter.analysis.gammas.Position`) or the role of any other parameter
(:class:`rewriter.analysis.parameter_roles.Role`), as text; after a colon, the unknown operation that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from rewriter.analysis.gamma_positions import Category, GammaPosition
from rewriter.analysis.gammas import Gamma, canonical_names, find_gammas
from rewriter.analysis.norms import parameter_role
from rewriter.analysis.parameter_roles import ParameterRole, find_roles, find_unknown_readers
from rewriter.model.wrappers import paths_inside
from rewriter.planning.record import Record, records_of, rewritten_parts
from rewriter.tracing.trace import Trace

_POSITIONS = {str(position) for position in GammaPosition}
_CAREFUL = [
    *map(str, sorted(GammaPosition, key=lambda position: list(Category).index(position.category))),
    *map(str, ParameterRole),
]
"""If tied parameters had several kinds, the first one here wins."""


def find_kinds(trace: Trace) -> dict[str, str]:
    """Return the kind of every parameter of the traced model, by its first name; gammas first."""
    kinds = {gamma.name: str(gamma.position) for gamma in find_gammas(trace) if gamma.name is not None}
    unknown = {name: f"{ParameterRole.OTHER}: {reader}" for name, reader in find_unknown_readers(trace).items()}
    roles = {name: str(role) for name, role in find_roles(trace).items() if name not in kinds}
    return kinds | {
        name: unknown.get(name, role) if role == ParameterRole.OTHER else role for name, role in roles.items()
    }


def recorded_kinds(model: nn.Module) -> dict[str, str]:
    """Return what the rewrites of ``model``, and of its parts, have recorded, by the present names of its parameters.

    Wrappers of other libraries change names, and parametrizations add to them. Parameters added since are missing. For
    parameters tied since, the most cautious kind wins.
    """
    known: dict[str, str] = {}
    for path, part in rewritten_parts(model):
        for record in records_of(part):
            known |= {f"{path}.{name}".lstrip("."): kind for name, kind in _kinds_of(record)}
    found: dict[str, list[str]] = {}
    inside = paths_inside(model) if known else {}
    for full, first in canonical_names(model).items() if known else ():
        path, _, name = full.rpartition(".")
        if "parametrizations" in path.split("."):
            path, _, inner = path.rpartition("parametrizations.")
            path, name = path.rstrip("."), parameter_role(f"parametrizations.{inner}.{name}")
        plain = f"{inside[path]}.{name}".lstrip(".")
        if plain in known:
            found.setdefault(first, []).append(plain)
    order = {name: number for number, name in enumerate(known)}
    return {
        first: min((known[plain] for plain in names), key=lambda kind: _CAREFUL.index(kind_and_reader(kind)[0]))
        for first, names in sorted(found.items(), key=lambda item: order[item[1][0]])
    }


def _kinds_of(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the kinds known to this version: another may know more."""
    return ((name, kind) for name, kind in record.plan.parameters.items() if kind_and_reader(kind)[0] in _CAREFUL)


def kind_and_reader(kind: str) -> tuple[str, str]:
    """Split a kind into the part before the colon and the operation after it; "" if there is none."""
    before, _, reader = kind.partition(": ")
    return before, reader


def as_gamma(name: str, kind: str) -> Gamma | None:
    """Return the gamma that a parameter of this kind is; None if it is not a gamma."""
    return Gamma(name, name.rpartition(".")[0], GammaPosition(kind)) if kind in _POSITIONS else None
