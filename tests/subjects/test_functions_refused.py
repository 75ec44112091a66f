"""What cannot be rewritten as a function is refused, and the message names the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses import LogPass, batch, keyword_only, plain
from torch import nn

import rewriter
from rewriter import InputError, ModelError, SourceError, StorageError, TraceError, UndoError

typed: dict[str, Any] = {}
exec(compile("def typed(p, t):\n    return p", "<prompt>", "exec"), typed)


async def awaited(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return prediction


def yielded(prediction: torch.Tensor, target: torch.Tensor) -> Any:
    yield prediction


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "lambda": (lambda p, t: p, SourceError, r"the text of a lambda cannot be edited; write it as a function, def"),
    "typed at a prompt": (typed["typed"], SourceError, "its source is not available.*Put it into a file"),
    "builtin": (torch.log, ModelError, "builtin_function_or_method log: it is compiled.*Give a function of Python"),
    "method of a tensor": (torch.Tensor.log, ModelError, "it is compiled, and has no Python code"),
    "compiled": (torch.compile(plain), ModelError, "compiled by torch.compile.*Rewrite the function itself"),
    "method of a module": (
        nn.Linear(3, 3).forward,
        ModelError,
        "a method of the module Linear: give the Linear itself",
    ),
    "async": (awaited, SourceError, r"expected one plain `def awaited`"),
    "generator": (yielded, TraceError, "is a generator function"),
    "number": (5, ModelError, "expected a torch.nn.Module, found int"),
    "class": (nn.BCELoss, ModelError, r"found the class BCELoss; call it first"),
    "class that is no module": (dict, ModelError, "expected a torch.nn.Module, found type"),
    "object that is not called": (object(), ModelError, "expected a torch.nn.Module, found object"),
    "array": (np.zeros(3), ModelError, "expected a torch.nn.Module, found ndarray"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("verb", [rewriter.plan, rewriter.rewrite, rewriter.trace, rewriter.check])
def test_it_is_refused_with_the_remedy(verb: Callable[..., Any], what: str) -> None:
    subject, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        verb(subject, **({} if verb is rewriter.trace else {"passes": LogPass()}), example_inputs=batch())


def test_a_scripted_function_is_refused() -> None:
    with pytest.raises(ModelError, match="found a ScriptFunction: its Python code is gone"):
        rewriter.plan(torch.jit.script(F.relu), LogPass(), example_inputs=batch())


@pytest.mark.parametrize("options", [{}, {"input_size": 32}])
def test_a_function_needs_example_inputs(options: dict[str, Any]) -> None:
    message = r"keyword_only is a function: give example_inputs=.*\(prediction, target, eps\)"
    for verb in (rewriter.plan, rewriter.rewrite, rewriter.check):
        with pytest.raises(InputError, match=message):
            verb(keyword_only, LogPass(), **options)
    with pytest.raises(InputError, match=message):
        rewriter.trace(keyword_only, **options)


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(TraceError, match=r"plain\(\) missing 1 required positional argument: 'target'"):
        rewriter.plan(plain, LogPass(), example_inputs=batch()[0])


def test_a_function_is_not_edited_in_place() -> None:
    for flag in (True, np.bool_(True)):
        with pytest.raises(ModelError, match="none is edited in place: use what is returned"):
            rewriter.rewrite(plain, LogPass(), example_inputs=batch(), inplace=flag)  # type: ignore[arg-type]
    plan = rewriter.plan(plain, LogPass(), example_inputs=batch())
    with pytest.raises(ModelError, match="none is edited in place"):
        plan.apply(plain, inplace=True)
    rewritten = plan.apply(plain)
    assert rewriter.undo(rewritten, inplace=True) is plain


def test_an_original_has_nothing_to_undo() -> None:
    for function in (plain, rewriter.undo(rewriter.rewrite(plain, LogPass(), example_inputs=batch()))):
        with pytest.raises(UndoError, match="plain was not rewritten: it is the original"):
            rewriter.undo(function)


def test_a_directory_holds_no_function(tmp_path: Any) -> None:
    rewritten: Any = rewriter.rewrite(plain, LogPass(), example_inputs=batch())
    with pytest.raises(StorageError, match=r"plain is a rewritten function.*Pickle it"):
        rewriter.save(rewritten, tmp_path)


def test_a_refused_function_is_as_it_was() -> None:
    before = plain.__code__, dict(plain.__dict__), plain(*batch())
    with pytest.raises(InputError):
        rewriter.rewrite(plain, LogPass())
    assert (plain.__code__, plain.__dict__) == before[:2] and torch.equal(plain(*batch()), before[2])
