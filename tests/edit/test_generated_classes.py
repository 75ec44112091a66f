"""The class that an edited module gets is nobody's business: no hook of the user's classes hears of it."""

from __future__ import annotations

import abc
import copy
import pickle
from typing import Any, Generic, Protocol, TypeVar

import pytest
import torch
from helpers import image
from torch import fx, nn

import rewriter
from rewriter import Reason
from rewriter.edit.classes import is_generated

T = TypeVar("T")
HEARD: list[str] = []
REGISTRY: dict[str, type] = {}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.conv(x).relu().mean((2, 3))))


class Registered(nn.Module):
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        HEARD.append(cls.__name__)
        REGISTRY[cls.__name__] = cls


class InRegistry(Registered, Head):
    pass


class Strict(nn.Module):
    def __init_subclass__(cls, *, tag: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        if tag in REGISTRY:
            raise ValueError(f"{tag} is already registered")
        REGISTRY[tag] = cls


class WithTag(Strict, Head, tag="with-tag"):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.conv(x).relu().mean((2, 3))))


class Meta(type):
    def __new__(mcs, name: str, bases: Any, namespace: Any, **options: Any) -> Any:
        HEARD.append(name)
        return super().__new__(mcs, name, bases, namespace)

    def __init__(cls, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments)
        REGISTRY[cls.__name__] = cls

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        made = super().__call__(*arguments, **options)
        made.after_init = True
        return made


class OfMeta(Head, metaclass=Meta):
    pass


class Abstract(Head, abc.ABC):
    @abc.abstractmethod
    def name(self) -> str: ...


class Concrete(Abstract):
    def name(self) -> str:
        return "concrete"


class OtherConcrete(Abstract):
    def name(self) -> str:
        return "other"


class OfGeneric(Head, Generic[T]):
    pass


class HasForward(Protocol):
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...


class OfProtocol(Head, HasForward):
    pass


class WithSlots(Head):
    __slots__ = ("extra",)


class Private(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.__drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.__drop(self.conv(x).relu().mean((2, 3))))


FORMS = [InRegistry, WithTag, OfMeta, Concrete, OfGeneric, OfProtocol, WithSlots, Private]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_hears_of_the_class_and_everything_else_holds(form: Any) -> None:
    registry, model = dict(REGISTRY), form()
    HEARD.clear()
    result = rewriter.rewrite(model, ["dropout", "stochastic-pooling"], input_size=16)
    assert len(rewriter.report(result).applied) == 1 and is_generated(type(result))
    assert registry == REGISTRY and not HEARD
    assert isinstance(result, form) and issubclass(type(result), form) and type(result).__name__ == form.__name__
    for duplicate in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert type(duplicate) is type(result) and torch.equal(duplicate.eval()(image(16)), model.eval()(image(16)))
    assert registry == REGISTRY and not HEARD
    assert type(rewriter.undo(result)) is form


@pytest.mark.parametrize("form", FORMS)
def test_calling_the_class_gives_an_ordinary_original(form: Any) -> None:
    result = rewriter.rewrite(form(), "dropout", input_size=16)
    made = type(result)()
    assert type(made) is form and made(image(16)).shape == (2, 4)
    assert getattr(made, "after_init", None) == getattr(form(), "after_init", None)
    assert not rewriter.report(made).records


def test_a_class_that_asks_abc_keeps_a_cache_of_its_own() -> None:
    """Sharing it would make ``isinstance`` forget other subclasses of the abstract base."""
    other = OtherConcrete()
    result = rewriter.rewrite(Concrete(), "dropout", input_size=16)
    assert not isinstance(other, type(result)) and isinstance(other, Abstract) and isinstance(result, Abstract)
    assert isinstance(OtherConcrete(), Abstract) and not isinstance(OtherConcrete(), Concrete)
    assert type(result).name(result) == "concrete"


def test_a_later_model_of_the_registry_is_as_it_was() -> None:
    shapes: list[tuple[int, ...]] = []
    rewriter.rewrite(REGISTRY["InRegistry"](), "dropout", input_size=16)
    fresh = REGISTRY["InRegistry"]()
    fresh.drop.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    fresh.train()(image(16))
    assert shapes == [(2, 8)]
    assert all(type(cls()) is not cls or not is_generated(cls) for cls in InRegistry.__subclasses__())


def test_a_method_patched_on_the_original_later_shows() -> None:
    result = rewriter.rewrite(Concrete(), "dropout", input_size=16)
    name = Concrete.name
    try:
        Concrete.name = lambda self: "patched"  # type: ignore[method-assign]
        assert result.name() == "patched"
    finally:
        Concrete.name = name  # type: ignore[method-assign]


def test_a_class_with_slots_and_a_hook_is_left_alone_with_the_reason() -> None:
    class Both(Registered, Head):
        __slots__ = ("extra",)

    plan = rewriter.plan(Both(), "dropout", input_size=16)
    assert not plan.sites and "__slots__" in plan.skipped[0].detail


class TestGeneratedModels:
    def test_methods_of_a_graph_module_are_not_edited(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fc(self.conv(x).mean((2, 3)))

        plan = rewriter.plan(fx.symbolic_trace(Net()), "stochastic-pooling", input_size=16)
        assert not plan.sites and plan.skipped[0].reason is Reason.NO_SOURCE
        assert "Rewrite the model, then trace it" in plan.skipped[0].detail

    def test_what_can_be_edited_in_a_graph_module_survives_its_copies(self) -> None:
        class Pooled(Head):
            def __init__(self) -> None:
                super().__init__()
                self.pool = nn.AdaptiveAvgPool2d(1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fc(self.drop(self.pool(self.conv(x)).flatten(1)))

        result = rewriter.rewrite(fx.symbolic_trace(Pooled()), "dropout", input_size=16)
        result.recompile()
        for model in (result, copy.deepcopy(result)):
            report = rewriter.report(model)
            assert len(report.applied) == 1 and not report.stale
            assert not rewriter.plan(model, "dropout", input_size=16).sites
            model.train()
            assert not torch.equal(model(image(16)), model(image(16)))
        assert not rewriter.report(rewriter.undo(result)).records

    @pytest.mark.parametrize("where", ["class", "object"])
    def test_a_compiled_method_is_named(self, where: str) -> None:
        class Compiled(Head):
            pass

        model = Compiled()
        compiled = torch.compile(Head.forward, backend="eager")
        if where == "class":
            Compiled.forward = compiled  # type: ignore[method-assign]
        else:
            model.forward = compiled.__get__(model)  # type: ignore[method-assign]
        with pytest.raises(rewriter.ModelError, match=r"forward\(\) of Compiled was compiled by torch\.compile"):
            rewriter.rewrite(model, "dropout", input_size=16)

    def test_an_operation_that_no_python_code_issues_is_left_alone(self) -> None:
        class Builtin(nn.Module):
            forward = staticmethod(torch.nn.functional.adaptive_avg_pool2d)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3), Builtin(), nn.Linear(8, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fc(self.pool(self.conv(x), 1).flatten(1))

        plan = rewriter.plan(Net(), ["stochastic-pooling", {"dropout": {"p": 0.1}}], input_size=16)
        assert all(skip.detail for skip in plan.skipped)
