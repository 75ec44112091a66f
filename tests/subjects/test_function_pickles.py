"""A rewritten function is pickled by the name of the original, and is the same in another process."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from losses import FORMS, FiniteLog, LogPass, TemperaturePass, batch, closure, decorated, plain
from torch.utils.data import DataLoader

import rewriter
from rewriter import StorageError

LOCAL = ("closure", "wrapped without saying so", "cached", "decorated by an object")


@pytest.mark.parametrize("form", [form for form in FORMS if form not in LOCAL])
def test_it_is_pickled_and_computes_the_same(form: str) -> None:
    inputs = batch()
    rewritten: Any = rewriter.rewrite(FORMS[form], LogPass(), example_inputs=inputs)
    for layer in rewritten.modules():
        if isinstance(layer, FiniteLog):
            layer.least = 9.0
    again = pickle.loads(pickle.dumps(rewritten))
    assert torch.equal(again(*inputs), rewritten(*inputs)) and not torch.equal(again(*inputs), FORMS[form](*inputs))
    assert str(rewriter.report(again)) == str(rewriter.report(rewritten))
    assert type(rewriter.undo(again)) is type(FORMS[form])


def test_a_pickle_holds_no_code_of_the_function() -> None:
    data = pickle.dumps(rewriter.rewrite(plain, LogPass(), example_inputs=batch()))
    assert b"torch.sigmoid" not in data and b'"operations"' in data


def test_parameters_and_mode_are_saved_with_it() -> None:
    rewritten: Any = rewriter.rewrite(plain, TemperaturePass(), example_inputs=batch())
    with torch.no_grad():
        rewritten.scale.temperature.fill_(3.0)
    rewritten.eval()
    buffer = io.BytesIO()
    torch.save(rewritten, buffer)
    again = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert again.scale.temperature == 3 and not again.training and again.__wrapped__ is plain
    assert torch.equal(again(*batch()), rewritten(*batch()))


def test_the_name_may_stand_for_the_rewritten_one(import_text: Callable[[str], ModuleType]) -> None:
    module: Any = import_text("import torch\ndef loss(p):\n    return -torch.log(p).mean()\n")
    original = module.loss
    for module.loss in (
        rewriter.rewrite(original, LogPass(), example_inputs=torch.rand(3)),
        torch.compile(rewriter.rewrite(original, LogPass(), example_inputs=torch.rand(3)), backend="eager"),
    ):
        rewritten = getattr(module.loss, "_orig_mod", module.loss)
        assert pickle.loads(pickle.dumps(rewritten)).__wrapped__ is original


@pytest.mark.parametrize("form", LOCAL)
def test_what_no_other_process_finds_is_not_pickled(form: str) -> None:
    rewritten = rewriter.rewrite(FORMS[form], LogPass(), example_inputs=batch())
    if form == "decorated by an object":
        assert pickle.loads(pickle.dumps(rewritten)).__wrapped__ is FORMS[form]
        return
    with pytest.raises(StorageError, match=r"cannot be pickled: a pickle holds a function by its name.*keep the plan"):
        pickle.dumps(rewritten)


def test_a_plan_is_kept_for_what_is_not_pickled() -> None:
    text = rewriter.plan(closure(0.5), LogPass(), example_inputs=batch()).to_json()
    rewritten = rewriter.Plan.from_json(text).apply(closure(2.0))
    assert torch.equal(rewritten(*batch()), closure(2.0)(*batch()))


LOSS = "import torch\ndef loss(p):\n    return -torch.log(p).mean()\n"


def test_a_function_that_is_not_there_is_named(import_text: Callable[[str], ModuleType]) -> None:
    module, other = import_text(LOSS), import_text(LOSS.replace("mean", "sum"))
    data = pickle.dumps(rewriter.rewrite(module.loss, LogPass(), example_inputs=torch.rand(3)))
    message = rf"by its name, {module.__name__}\.loss, and there is none here. Make its file importable"
    module.loss = other.loss  # another version of the file
    with pytest.raises(rewriter.PlanError, match=r"loss\.forward has another source than the plan was made for"):
        pickle.loads(data)
    del module.loss
    with pytest.raises(StorageError, match=message):
        pickle.loads(data)
    del sys.modules[module.__name__]
    with pytest.raises(StorageError, match=message):
        pickle.loads(data)


@pytest.mark.slow
def test_another_process_loads_it(tmp_path: Path) -> None:
    file = tmp_path / "loss.pickle"
    file.write_bytes(pickle.dumps(rewriter.rewrite(plain, LogPass(), example_inputs=batch())))
    code = "import pickle, sys, losses; print(float(pickle.load(open(sys.argv[1], 'rb'))(*losses.batch())))"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", code, str(file)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert float(done.stdout) == float(plain(*batch()))


def collated(samples: list[torch.Tensor]) -> torch.Tensor:
    """A function that workers of a loader run."""
    return torch.log(torch.stack(samples))


@pytest.mark.slow
def test_workers_of_a_loader_run_it() -> None:
    samples: Any = torch.arange(4.0)
    collate = rewriter.rewrite(collated, LogPass(least=0.5), example_inputs=[samples[1], samples[2]])
    loader: Any = DataLoader(samples, 2, collate_fn=collate, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), torch.log(samples.clamp_min(0.5)))


def test_a_decorated_function_is_found_as_it_is_decorated() -> None:
    again = pickle.loads(pickle.dumps(rewriter.rewrite(decorated, LogPass(), example_inputs=batch())))
    assert again.__wrapped__ is decorated
    assert torch.equal(again(*batch(), weight=torch.ones(4, 3)), decorated(*batch(), weight=torch.ones(4, 3)))
