"""Check on the model itself that a rewrite keeps the contracts of its passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import nn

from rewriter.edit.edits import Freeze, apply_edits, take_back
from rewriter.errors import ContractError, InputError
from rewriter.guideline.base import Contract
from rewriter.model.differences import other_structure
from rewriter.model.random_state import random_state_kept
from rewriter.planning.checks import Check, Checked, Verification
from rewriter.planning.data import PlanData
from rewriter.planning.observe import NOTHING_TO_TRAIN, Observation, drift_between, judge_outputs, observe
from rewriter.planning.zero_gains import filled, zero_gains
from rewriter.renamed import forward_names
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.inputs import Inputs

_MOST_RUNS = 3
"""How often an original is run again to test whether it repeats itself: alternation shows after two runs."""


class Verifier:
    """The checks of one plan on one model, which is observed before it is edited.

    If some passes change the eval output, the others are first applied by themselves, to check their contract too.

    Args:
        plan: the plan.
        model: the model to be edited; its state is restored.
        inputs: what it is run on.

    Raises:
        InputError: the model does not run on them.
        ContractError: the passes that promise to keep the eval output, applied by themselves, do not.
    """

    def __init__(self, plan: PlanData, model: nn.Module, inputs: Inputs) -> None:
        self._plan, self._model, self._inputs = plan, model, inputs
        self._passes = list(dict.fromkeys(site.pass_name for site in plan.sites))
        self._gains = zero_gains(model)
        self._of_inputs = next(model.parameters(), None) is None
        try:
            self._before = self._observe_first()
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} does not run on the {inputs.origin} it is to be verified on: "
                f"{type(error).__name__}: {error}. Give an input that it runs on, or verify=False."
            ) from error
        self._preserving = self._judge_those_that_preserve()

    def judge(self) -> Verification:
        """Check whether the model, now edited, keeps the contracts of all passes."""
        return self._judge(self._passes)

    def excuse(self, verification: Verification) -> Verification:
        """Return ``verification`` with those failures excused that the restored original shows too.

        Raises:
            ContractError: another check failed; the pass is named, found by applying each alone.
        """
        excused = self._without_own(verification, self._passes)
        if excused.failed:
            raise self._broken(excused.failed)
        return excused

    def whole(self, verification: Verification) -> Verification:
        """Return ``verification`` together with the checks of passes by themselves."""
        return Verification((*verification.checks[:1], *self._preserving, *verification.checks[1:]))

    def _observe_first(self) -> Observation:
        """Observe the model with its zero gains filled, or as it is if it does not run with them."""
        try:
            return self._observe()
        except Exception:
            if not self._gains:
                raise
            self._gains = ()
            return self._observe()

    def _observe(self, *, training: bool = True) -> Observation:
        with filled(self._model, self._gains):
            return observe(self._model, self._inputs, training=training, of_inputs=self._of_inputs)

    def _judge(self, passes: Sequence[str], *, training: bool = True) -> Verification:
        """Check whether the model as it is keeps the contracts of ``passes``; one that does not run keeps none."""
        before, contracts, frozen = self._before, self._contracts(passes), self._frozen(passes)
        try:
            after = self._observe(training=training)
        except Exception as error:
            return Verification((Check(Checked.EVAL_MODE, False, f"{type(error).__name__}: {error}"),))
        found = check_contracts(before, after, contracts, frozen)
        if any(check.what is Checked.EVAL_OUTPUT for check in found.failed):
            # it may count its calls where that cannot be undone
            drift = drift_between(after, self._observe(training=False))
            found = check_contracts(replace(before, spread=max(before.spread, drift)), after, contracts, frozen)
        return found

    def _judge_alone(self, passes: Sequence[str], *, training: bool = True) -> Verification:
        """Check whether ``passes`` keep their contracts by themselves; the model is restored afterwards."""
        edits = [edit for site in self._plan.sites if site.pass_name in passes for edit in site.edits]
        with random_state_kept():
            applied = apply_edits(self._model, edits)
        try:
            return self._judge(passes, training=training)
        finally:
            take_back(self._model, applied)

    def _judge_those_that_preserve(self) -> tuple[Check, ...]:
        """If some passes change the eval output, check that the others, by themselves, do not."""
        contracts = zip(self._passes, self._contracts(self._passes), strict=True)
        alone = [name for name, contract in contracts if contract.eval_output]
        if not alone or alone == self._passes:
            return ()
        found = self._judge_alone(alone, training=False)
        if found.failed:
            found = self._without_own(found, alone)
        check = next((check for check in found.checks if check.what is Checked.EVAL_OUTPUT), found.checks[0])
        if check.held is False:
            raise self._broken((check,))
        return (Check(Checked.EVAL_OUTPUT, check.held, check.detail, tuple(alone)),)

    def _without_own(self, verification: Verification, passes: Sequence[str]) -> Verification:
        """Return ``verification`` with those failures excused that the original model, run again, shows too.

        A generator that it holds advances with every run, and that cannot be undone.
        """
        failed, own = {check.what for check in verification.failed}, dict[Checked, str]()
        for _ in range(_MOST_RUNS):
            try:
                again = check_contracts(self._before, self._observe(), self._contracts(passes))
            except Exception as error:
                own = dict.fromkeys(failed, f"it does not run any more, {type(error).__name__}: {error}")
            else:
                own.update((check.what, check.detail) for check in again.failed)
            if failed <= set(own):
                break
        said = "the model itself does not do the same in each run"
        return Verification(
            tuple(
                replace(check, held=None, detail=f"{said}: {own[check.what]}")
                if check.held is False and check.what in own
                else check
                for check in verification.checks
            )
        )

    def _broken(self, failed: Sequence[Check]) -> ContractError:
        culprits = [name for name in self._passes if self._judge_alone([name]).failed]
        what = "; ".join(f"{check.what}: {check.detail}" for check in failed)
        return ContractError(
            f"pass {', '.join(culprits or self._passes)} broke its contract ({what}). "
            "The model is as it was; leave the pass out with passes=, or the place with skip=."
        )

    def _frozen(self, passes: Sequence[str]) -> frozenset[str]:
        """The parameters that ``passes`` freeze, and say so; of a loss that is given them, the inputs of one number."""
        told = {name for name in passes if self._plan.contracts.get(name, Contract()).freezes_parameters}
        edits = (edit for site in self._plan.sites if site.pass_name in told for edit in site.edits)
        given = tensors_in((self._inputs.args, self._inputs.kwargs)) if told else ()
        numbers = [f"input {index}" for index, tensor in enumerate(given) if tensor.numel() == 1]
        frozen = (f"{edit.path}.{edit.name}".lstrip(".") for edit in edits if isinstance(edit, Freeze))
        return frozenset((*frozen, *numbers))

    def _contracts(self, passes: Sequence[str]) -> list[Contract]:
        return [self._plan.contracts.get(name, Contract()) for name in passes]


def check_contracts(
    before: Observation, after: Observation, contracts: Sequence[Contract], frozen: Collection[str] = ()
) -> Verification:
    """Check whether ``after`` keeps ``contracts``; the parameters called ``frozen`` need no gradient."""
    checks: list[Check] = []
    changed = other_structure(before.outputs, after.outputs)
    checks.append(Check(Checked.OUTPUT_STRUCTURE, not changed, changed))
    if all(contract.eval_output for contract in contracts) and not changed:
        rounding = any(contract.rounding for contract in contracts)
        checks.append(Check(Checked.EVAL_OUTPUT, *judge_outputs(before, after, rounding=rounding)))
    if all(contract.state_dict for contract in contracts):
        lost = [key for key, shape in before.state.items() if key not in after.state or after.state[key] != shape]
        adds = any(contract.adds_buffers or contract.adds_parameters for contract in contracts)
        added = [key for key in after.state if key not in before.state and not adds]
        changes = [f"changed: {', '.join(lost[:5])}"] if lost else []
        if added:
            changes.append(f"added, without adds_parameters or adds_buffers in the contract: {', '.join(added[:5])}")
        detail = "; ".join(changes) or f"{len(before.state)} tensors"
        checks.append(Check(Checked.STATE_DICT, not lost and not added, detail))
    if before.train_error:
        why = f"the original does not train on this input: {before.train_error}"
        checks.append(Check(Checked.TRAINING, None, why))
    elif after.train_error == NOTHING_TO_TRAIN and before.with_gradient <= set(frozen):
        checks.append(Check(Checked.TRAINING, None, "what this module trained by itself is frozen"))
    elif after.train_error:
        checks.append(Check(Checked.TRAINING, False, after.train_error))
    elif all(contract.gradients for contract in contracts):
        lost_gradients = sorted(before.with_gradient - after.with_gradient - set(frozen))
        kind = "inputs" if before.of_inputs else "parameters"
        none_for = f"none for {', '.join(lost_gradients[:5])}"
        detail = none_for if lost_gradients else f"{len(after.with_gradient)} {kind} still get one"
        checks.append(Check(Checked.GRADIENTS, not lost_gradients, detail))
    return Verification(tuple(checks))


__getattr__ = forward_names(__name__, {"compare": "check_contracts"})
