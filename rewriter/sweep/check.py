"""The check of one model: create, trace, plan, apply, verify, undo."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rewriter import zoo
from rewriter.api import undo
from rewriter.edit.classes import class_name, original_class
from rewriter.errors import ContractError, TraceError
from rewriter.model.differences import differences
from rewriter.model.state import state_kept
from rewriter.planning.apply import apply_plan
from rewriter.planning.checks import Checked, Verification
from rewriter.planning.make import make_plan
from rewriter.planning.mark import nothing_said
from rewriter.planning.plan import Plan
from rewriter.planning.record import records_of
from rewriter.renamed import forward_names
from rewriter.reporting.memory import PeakMemory
from rewriter.sweep.request import SweepRequest
from rewriter.sweep.row import Held, Row, Status, one_line
from rewriter.testing import behaviour
from rewriter.tracing.inputs import Inputs, candidate_inputs
from rewriter.tracing.trace import Trace, trace_model
from rewriter.tracing.written import written_parameters

_SMALL_SIDES = (64, 96, 128)
"""Image sizes in pixels to try for runs on real weights; the model's own size comes last."""


def check_model_by_name(name: str, request: SweepRequest) -> Row:
    """Run the checks of ``request`` on the model called ``name``. A failure is recorded in the row, never raised."""
    row = Row(name)
    gc.collect()
    memory = PeakMemory()
    try:
        _Check(row, request).run()
    except Exception as error:
        row.status, row.error = Status.FAILED, one_line(f"{type(error).__name__}: {error}")
    row.milliseconds = {step: round(value, 1) for step, value in row.milliseconds.items()}
    row.peak_mb = memory.megabytes()
    return row


@dataclass
class _Check:
    row: Row
    request: SweepRequest

    def run(self) -> None:
        torch.manual_seed(0)
        entry = self._create(meta=not self.request.numerics)
        model = entry.model
        self.row.class_name = class_name(original_class(type(model)))
        self.row.parameters = sum(parameter.numel() for parameter in model.parameters())
        made, traced = self._plan(entry)
        if self.row.weights == "meta" and traced is not None and traced.backend != "meta":
            del model, entry  # models that do not run on meta are verified with real weights
            entry = self._create(meta=False)
            model = entry.model
        inputs = None if traced is None else self._inputs(entry, traced)
        del traced
        before = _structure(model)
        with _kept(model, inputs, self.request.numerics):
            numbers = self._numbers(model, inputs)
            self._apply(made, model, inputs)
            with self._step("undo"), nothing_said():
                undo(model, inplace=True)
            self._judge_undo(_differences(before, _structure(model)), numbers, self._numbers(model, inputs))

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - started)

    def _add(self, name: str, seconds: float) -> None:
        self.row.milliseconds[name] = self.row.milliseconds.get(name, 0.0) + 1000 * seconds

    def _create(self, meta: bool) -> zoo.Entry:
        options = zoo.quick_options(self.row.name) | self.request.model_kwargs
        with self._step("create"):
            if meta:
                try:
                    with torch.device("meta"):
                        entry = zoo.create(self.row.name, **options)
                    self.row.weights = "meta"
                    return entry
                except zoo.CreationError:
                    pass  # some constructors need values
            entry = zoo.create(self.row.name, **options)
            self.row.weights = "real"
            return entry

    def _plan(self, entry: zoo.Entry) -> tuple[Plan, Trace | None]:
        given: dict[str, Any] = {"input_size": entry.input_size}
        if entry.example_inputs is not None:
            given = {"example_inputs": entry.example_inputs}
        made, traced, seconds = make_plan(entry.model, self.request.pass_list, preserve=self.request.preserve, **given)
        for step, taken in seconds.items():
            self._add(step, taken)
        self.row.backend = traced.backend if traced is not None else None
        for name, _ in made.passes:
            reasons = Counter(str(skip.reason) for skip in made.skipped if skip.pass_name == name)
            sites = sum(site.pass_name == name for site in made.sites)
            inactive = sum(site.pass_name == name for site in made.inactive)
            advised = sum(advice.pass_name == name for advice in made.advice)
            self.row.passes[name] = {
                "sites": sites, "inactive": inactive, "applied": 0, "advised": advised,
                "skipped": dict(sorted(reasons.items())),
            }  # fmt: skip
        return made, traced

    def _inputs(self, entry: zoo.Entry, traced: Trace) -> Inputs:
        """Return inputs to run the model on: without memory on meta, small images on real weights."""
        if self.row.weights == "meta":
            return traced.inputs.map(lambda tensor: tensor.to("meta"))
        if entry.example_inputs is not None:
            return candidate_inputs(entry.model, entry.example_inputs)[0]
        for side in _SMALL_SIDES:
            for inputs in candidate_inputs(entry.model, input_size=side):
                with contextlib.suppress(TraceError):
                    trace_model(entry.model, inputs, backends=(traced.backend,))
                    return inputs
        return candidate_inputs(entry.model, input_size=traced.inputs.image_size)[0]

    def _apply(self, made: Plan, model: nn.Module, inputs: Inputs | None) -> None:
        meta = self.row.weights == "meta"
        try:
            with torch.device("meta") if meta else contextlib.nullcontext():
                apply_plan(made, model, inplace=True, inputs=inputs, in_force=True)
        except ContractError:
            self.row.verified = Held.NOT
            raise
        record = records_of(model)[-1]
        self._add("apply", record.seconds["apply"])
        self._add("verify", record.seconds["verify"])
        for name, found in self.row.passes.items():
            found["applied"] = sum(site.pass_name == name for site in record.plan.sites)
        self._judge(record.verdict or Verification(), meta)

    def _judge(self, verification: Verification, meta: bool) -> None:
        words = {True: Held.HELD, False: Held.NOT, None: Held.NOT_DECIDABLE}
        checks = [(check.name, words[check.held], one_line(check.detail)) for check in verification.checks]
        # tensors without values are equal whatever the rewrite did
        self.row.checks = [item for item in checks if not (meta and item[0] == Checked.EVAL_OUTPUT)]
        found = {held for _, held, _ in self.row.checks}
        undecided = not found or Held.NOT_DECIDABLE in found
        self.row.verified = Held.NOT if Held.NOT in found else Held.NOT_DECIDABLE if undecided else Held.HELD

    def _numbers(self, model: nn.Module, inputs: Inputs | None) -> dict[str, Any] | None:
        """Return outputs, gradients and buffers in both modes; None without ``numerics``."""
        if not self.request.numerics or inputs is None:
            return None
        with self._step("numbers"):
            found = {}
            for mode, training in (("eval", False), ("train", True)):
                try:
                    found[mode] = behaviour(model, inputs, training=training)
                except Exception as error:
                    found[mode] = {"error": one_line(f"{type(error).__name__}: {error}")}
            return found

    def _judge_undo(self, found: list[str], before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        compared = "classes, attributes and children of every module"
        if before is not None and not found:
            found = differences(before, after)
            compared += "; outputs, gradients, buffers and random numbers in both modes"
            failed = [f"{mode}: {result['error']}" for mode, result in before.items() if "error" in result]
            if failed and not found:
                self.row.undo, self.row.undo_detail = Held.NOT_DECIDABLE, f"the original does not run: {failed[0]}"
                return
        self.row.undo, self.row.undo_detail = Held.HELD, compared
        if found:
            self.row.undo, self.row.undo_detail = Held.NOT, one_line(", ".join(found[:5]))
            self.row.status, self.row.error = Status.FAILED, f"undo left differences: {self.row.undo_detail}"


def _kept(model: nn.Module, inputs: Inputs | None, numerics: bool) -> contextlib.AbstractContextManager[None]:
    """Preserve the few parameters that a forward writes to, so that runs before and after start from the same state."""
    if not numerics or inputs is None:
        return contextlib.nullcontext()
    return state_kept(model, written_parameters(model, inputs))


def _structure(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return, for every module, its identity, class, attribute names and children."""
    return {
        path: (id(m), type(m), tuple(sorted(m.__dict__)), tuple((name, id(c)) for name, c in m._modules.items()))
        for path, m in model.named_modules(remove_duplicate=False)
    }


def _differences(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> list[str]:
    parts = ("object", "class", "attributes", "children")
    found = []
    for path in dict.fromkeys((*before, *after)):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found.append(f"{path or '(root)'} {'is new' if old is None else 'is gone'}")
        else:
            found += [f"{part} of {path or '(root)'}" for part, a, b in zip(parts, old, new, strict=True) if a != b]
    return found


__getattr__ = forward_names(__name__, {"check": "check_model_by_name"})
