"""Device and processes of a comparison, by accelerate, whose process-wide state is restored afterwards."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import gather_object

from rewriter.errors import ComparisonError

_LONGEST = timedelta(days=30)
"""How long a process waits for another that is still training; one that died is noticed immediately."""


@contextlib.contextmanager
def accelerated(mixed_precision: str, device: str | None) -> Iterator[Accelerator]:
    """Yield an ``Accelerator``, whether or not the process already has one.

    The caller's accelerator, environment and number of threads are restored afterwards. A process group made for
    ``torchrun`` is kept for the next comparison.

    Raises:
        ComparisonError: there is no such device, or it has no such precision.
    """
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as kept:
        # accelerate can reset its state, but not restore it
        for holder in (AcceleratorState, GradientState, PartialState):
            kept.enter_context(patch.dict(holder._shared_state, clear=True))
        kept.enter_context(patch.dict(os.environ))
        try:
            yield _accelerator(mixed_precision, device)
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def _accelerator(mixed_precision: str, device: str | None) -> Accelerator:
    wanted = None if device is None else check_device(device)
    # with several processes, accelerate has to be told that there is only the CPU
    cpu = (wanted is not None and wanted.type == "cpu") or not torch.accelerator.is_available()
    try:
        found = Accelerator(mixed_precision=mixed_precision, cpu=cpu)
    except ValueError as error:
        raise ComparisonError(f"mixed_precision={mixed_precision!r} cannot be used here: {error}") from error
    if found.num_processes > 1:  # only now: processes that do not find each other report soon
        of_torch = torch.distributed  # the older name is private
        set_timeout: Any = getattr(of_torch, "set_timeout", None) or of_torch.distributed_c10d._set_pg_timeout
        set_timeout(_LONGEST)
    if mixed_precision == "fp16" and found.device.type == "cpu":
        raise ComparisonError("mixed_precision='fp16' cannot be used on cpu: there is no loss scaling; use 'bf16'")
    if wanted is not None and (
        wanted.type != found.device.type or (wanted.index is not None and wanted.index != (found.device.index or 0))
    ):
        raise ComparisonError(f"device: expected one that is there, found {device!r}; accelerate offers {found.device}")
    if found.device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # from now on its generators have a state, which is kept
    return found


def check_device(text: str) -> torch.device:
    """Return the device with this name, checked before anything is made.

    Raises:
        ComparisonError: it is not the name of a device, or this machine has none of its kind.
    """
    try:
        wanted = torch.device(text)
    except (RuntimeError, TypeError) as error:
        raise ComparisonError(f"device: expected such as 'cpu' or 'cuda', found {text!r}") from error
    if wanted.type != "cpu" and not torch.accelerator.is_available():
        raise ComparisonError(f"device: expected one that is there, found {text!r}; this machine offers cpu")
    return wanted


@contextlib.contextmanager
def errors_shared(accelerator: Accelerator) -> Iterator[None]:
    """Raise an error of one process in all of them, once each has done its part, so that none waits for a failed one.

    Nothing inside may wait for another process.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    told = problem
    try:
        pickle.loads(pickle.dumps(told))
    except Exception:
        told = ComparisonError(f"process {accelerator.process_index} failed: {type(problem).__name__}: {problem}")
    everywhere = gather_object([told])  # also by a process with an error of its own
    problem = problem or next((error for error in everywhere if error is not None), None)
    if problem is not None:
        raise problem


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels on a GPU, as far as torch has them."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    kept = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with deterministic(True):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = kept


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Set whether torch uses deterministic algorithms where available; the previous setting is restored afterwards."""
    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
