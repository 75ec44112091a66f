"""Generated subclasses: how one module object changes its behaviour and stays the same object of the same class.

``torch.nn.utils.parametrize`` and FSDP2 do the same: the instance's ``__class__`` becomes a subclass of its own class,
with the same name. ``isinstance``, attributes, parameters, hooks and ``state_dict`` keys are unaffected. Unlike theirs,
these classes can be pickled: an instance is saved as its original class and the declarative edit of that class, and the
edit is applied again on loading. No code is ever stored.
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from rewriter.edit import source
from rewriter.edit.alternatives import ForcedTest
from rewriter.edit.decorators import LEVELS, functions_at, redecorate, undecorated
from rewriter.edit.edited_text import adoptions, edited_text
from rewriter.edit.operations import Adopt, CallMethod, Operation
from rewriter.edit.placing import Placing, place, remembered
from rewriter.edit.subclass import make_subclass, ordinary_init
from rewriter.errors import PlanError, SourceError
from rewriter.layers.registry import layer_class
from rewriter.layers.scripting import forward_of_base


@dataclass(frozen=True)
class MethodEdit:
    """Operations on the source of one method.

    Attributes:
        owner: the class that defines the method, as ``module.Class``; may be a base class reached through ``super()``.
        method: the method's name.
        digest: digest of the source that the operations were planned for.
        operations: what to do to the text; none re-emits the method unchanged.
        forced: conditions in the method whose outcomes are forced, to see what the other path does.
    """

    owner: str
    method: str
    digest: str
    operations: tuple[Operation, ...] = ()
    forced: tuple[ForcedTest, ...] = ()


@dataclass(frozen=True)
class ClassEdit:
    """What a generated subclass changes: the behaviours put in front, and the methods re-emitted."""

    behaviours: tuple[str, ...] = ()
    methods: tuple[MethodEdit, ...] = ()


_DERIVED: dict[tuple[type[nn.Module], ClassEdit], type[nn.Module]] = {}


def class_name(cls: type) -> str:
    """``module.Class``, the same for a generated subclass and its original."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_generated(cls: type) -> bool:
    """Whether ``cls`` itself was made by :func:`derive`."""
    return "_rewriter_edit" in cls.__dict__


def carries_edit(cls: type) -> bool:
    """Whether ``cls`` is generated, or was derived from a generated class by other code (FSDP2, parametrizations)."""
    return any(map(is_generated, cls.__mro__))


def original_class(cls: type) -> type:
    """The class the user wrote, below all generated ones."""
    while is_generated(cls):
        cls = cls._rewriter_base  # type: ignore[attr-defined]
    return cls


def derive(base: type[nn.Module], edit: ClassEdit) -> type[nn.Module]:
    """Return the subclass of ``base`` that applies ``edit``; the same class for the same arguments.

    Raises:
        SourceError: a method has no source, or its source is not the one that the edit was planned for.
        PlanError: the edit names a class, method or behaviour that ``base`` does not have.
    """
    key = (base, edit)
    if key not in _DERIVED:
        _DERIVED[key] = _derive(base, edit)
    return _DERIVED[key]


def _derive(base: type[nn.Module], edit: ClassEdit) -> type[nn.Module]:
    namespace: dict[str, Any] = {}
    functions: dict[types.FunctionType, types.FunctionType] = {}
    codes: dict[tuple[str, str, str], types.CodeType] = {}
    owners: dict[tuple[str, str], type] = {}
    for method in edit.methods:
        owner = owner_of(base, method.owner, method.method, method.digest)
        found = source_of(base, method.owner, method.method, method.digest)
        new = source.re_emit(found, edited_text(found, method.operations), method.forced)
        functions[found.function] = new
        codes[method.owner, method.method, method.digest] = new.__code__
        owners[method.owner, method.method] = owner
        for adopted in _adopted(found, method):
            _check_new_name(base, adopted.__name__)
            namespace[adopted.__name__] = adopted
    placing = place(base, functions, {(owner, name) for (_, name), owner in owners.items()})
    for name, attribute in _renamed(edit, owners, placing):
        _check_new_name(base, name)
        namespace[name] = attribute
    namespace |= placing.namespaces.pop(base, {})
    # for super() and explicit lookups: an edited subclass precedes each base that holds a function
    inserted = [make_subclass(owner, (owner,), names) for owner, names in placing.namespaces.items()]
    behaviours = tuple(layer_class(name) for name in edit.behaviours)
    namespace |= forward_of_base(base) if behaviours else {}
    namespace |= {"_rewriter_base": base, "_rewriter_edit": edit, "_rewriter_codes": codes, **remembered(placing)}
    namespace |= {"__init__": ordinary_init(original_class(base)), "__reduce_ex__": _reduce_generated}
    return make_subclass(base, (*behaviours, base, *inserted), namespace)


def _renamed(edit: ClassEdit, owners: dict[tuple[str, str], type], placing: Placing) -> Iterator[tuple[str, Any]]:
    """Edited functions under new names, where a class overrides them and calls them by the name of their class."""
    for operation in (operation for method in edit.methods for operation in method.operations):
        if isinstance(operation, CallMethod) and operation.method != operation.attribute:
            owner = owners.get((operation.owner, operation.attribute))
            if owner is None:
                raise PlanError(f"the plan calls {operation.owner}.{operation.attribute} and does not edit it")
            yield operation.method, placing.namespaces[owner][operation.attribute]


def _check_new_name(base: type, name: str) -> None:
    if not name.isidentifier() or name.startswith("_") or hasattr(base, name):
        raise PlanError(f"{class_name(base)} cannot get a method {name!r}: the name is taken or private")


def method_source(module_class: type, code: types.CodeType) -> tuple[type, str, source.FunctionSource] | None:
    """The class, method name and source of the function of ``module_class`` that runs ``code``; None if there is none.

    Raises:
        SourceError: the function exists but has no usable source, or is held by an object that cannot be copied.
    """
    for cls, name, attribute, function in _running(module_class, code):
        found = source.read_source(function)
        redecorate(attribute, function, function)
        return cls, name, found
    return None


def runs_code(module_class: type, code: types.CodeType) -> bool:
    """Whether ``code`` belongs to a function of ``module_class``."""
    return next(_running(module_class, code), None) is not None


def _running(module_class: type, code: types.CodeType) -> Iterator[tuple[type, str, Any, types.FunctionType]]:
    """The functions of ``module_class`` that run ``code``, with the class, name and attribute that hold each."""
    for level in LEVELS:
        for cls in module_class.__mro__:
            for name, attribute in cls.__dict__.items():
                for function in functions_at(attribute, level):
                    if source.contains_code(function.__code__, code):
                        yield cls, name, attribute, function


def readable_sources(attribute: Any) -> Iterator[source.FunctionSource]:
    """The readable sources of a method and of the functions that its decorators hold."""
    for function in undecorated(attribute):
        try:
            yield source.read_source(function)
        except SourceError:
            continue


def re_emittable_methods(cls: type[nn.Module]) -> Iterator[tuple[type, str, types.FunctionType]]:
    """Every plain method of ``cls`` and its bases up to ``nn.Module``: (class that defines it, name, function)."""
    for owner in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for name, attribute in owner.__dict__.items():
            if isinstance(attribute, types.FunctionType) and not (name.startswith("__") and name.endswith("__")):
                yield owner, name, attribute


def owner_of(base: type, owner: str, method: str, digest: str) -> type:
    """The class among the bases of ``base`` whose ``method`` has the source that an edit was planned for.

    The digest identifies the code; its module may have another name: a script's ``__main__`` is imported under its own
    name elsewhere, and is ``__mp_main__`` in a spawned process.

    Raises:
        PlanError: no class has that method, its source differs, or several classes have it and none has that name.
    """
    defining = [cls for cls in base.__mro__ if method in cls.__dict__]
    same = [cls for cls in defining if any(s.digest == digest for s in readable_sources(cls.__dict__[method]))]
    named = [cls for cls in same if class_name(cls) == owner] or [cls for cls in same if is_called(cls, owner)]
    if named or len(same) == 1:
        return (named or same)[0]
    if any(is_called(cls, owner) for cls in defining):
        raise PlanError(
            f"{owner}.{method} has another source than the plan was made for (another version of the library?). "
            "Make a new plan for this model."
        )
    raise PlanError(
        f"{class_name(base)} has no method {method!r} of {owner}; "
        "the plan was made for another class. Make a new plan for this model."
    )


def source_of(base: type, owner: str, method: str, digest: str) -> source.FunctionSource:
    """The source that an edit was planned for.

    Raises:
        PlanError: as for :func:`owner_of`.
    """
    attribute = owner_of(base, owner, method, digest).__dict__[method]
    return next(found for found in readable_sources(attribute) if found.digest == digest)


def is_called(cls: type, name: str) -> bool:
    """Whether ``module.Class`` is the name of ``cls``, whatever name its module was imported under."""
    return name == class_name(cls) or name.endswith(f".{cls.__qualname__}")


def edited_code(cls: type, owner: str, method: str, digest: str) -> types.CodeType | None:
    """The code that a generated class runs instead of a method of ``owner``; None if ``cls`` does not edit it."""
    code: types.CodeType | None = getattr(cls, "_rewriter_codes", {}).get((owner, method, digest))
    return code


def _adopted(found: source.FunctionSource, method: MethodEdit) -> Iterator[types.FunctionType]:
    """The helper functions that become methods."""
    for adopt, changes in adoptions(method.operations):
        helper = adopted_source(found, adopt)
        new = source.re_emit(helper, adopt.text_of_method(helper, changes))
        new.__name__ = adopt.method
        yield new


def adopted_source(found: source.FunctionSource, operation: Adopt) -> source.FunctionSource:
    """The source of the helper function that ``operation`` turns into a method.

    Raises:
        PlanError: it is not the source that the operation was planned for.
    """
    helper = source.read_source(operation.helper(found))
    if helper.digest != operation.digest:
        raise PlanError(
            f"{source.describe(helper.function)} has another source than the plan was made for. Make a new plan."
        )
    return helper


def _reduce_generated(self: nn.Module, protocol: Any) -> Any:
    """Pickle as (original class, its edits), since no other process has the generated class."""
    cls: type = next(cls for cls in type(self).__mro__ if is_generated(cls))
    edits = []
    original = cls
    while is_generated(original):
        edits.append(original._rewriter_edit)  # type: ignore[attr-defined]
        original = original._rewriter_base  # type: ignore[attr-defined]
    reduced = original.__reduce_ex__(self, protocol)  # type: ignore[arg-type, call-arg]
    if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__ and reduced[1][0] is cls:  # type: ignore[attr-defined]
        return (_rebuild, (original, tuple(reversed(edits)), *reduced[1][1:]), *reduced[2:])
    return reduced


def _rebuild(original: type[nn.Module], edits: tuple[ClassEdit, ...], *arguments: Any) -> nn.Module:
    cls = original
    for edit in edits:
        cls = derive(cls, edit)
    return original.__new__(cls, *arguments)
