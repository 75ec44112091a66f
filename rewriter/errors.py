"""Every error that this package raises on purpose.

All of them derive from :class:`RewriterError`, so one ``except`` catches them. A message says where (module path,
source line), what was expected, what was found, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


class RewriterError(Exception):
    """Base class of every error raised on purpose by this package."""


class SubjectError(RewriterError, ValueError):
    """What a name stands for cannot be made: no such file, module or factory, or it returns something else."""


class ConfigurationError(RewriterError, ValueError):
    """The settings in ``[tool.rewriter]`` cannot be read, or have an unknown key or value."""


class ModelError(RewriterError, TypeError):
    """The object given is not a model that can be rewritten (not a module, wrapped, compiled, scripted, lazy)."""


class InputError(RewriterError, ValueError):
    """No usable example input: none was found, or the one given does not fit the model."""


class TraceError(RewriterError, RuntimeError):
    """The model could not be run and recorded."""


class SelectorError(RewriterError, ValueError):
    """An ``only``/``skip`` selector, a pass name or a pass option matched nothing."""


class PassError(RewriterError, RuntimeError):
    """A pass raised an error of its own, or returned something invalid; the message names the pass."""


class SourceError(RewriterError, RuntimeError):
    """A method's source is missing, or is not the code that runs, so it cannot be edited."""


class PlanError(RewriterError, ValueError):
    """A plan file is damaged, has another format, or was made for another model."""


class PlanMismatchError(RewriterError, RuntimeError):
    """A state dict belongs to a model with other edits than the one it is loaded into; nothing was loaded."""


class ContractError(RewriterError, AssertionError):
    """A pass changed something that it promises to preserve; the model has been restored."""


class UndoError(RewriterError, RuntimeError):
    """There is nothing to undo, or undoing is no longer possible."""


class CalibrationError(RewriterError, ValueError):
    """There is nothing to calibrate, or the data cannot be used for it; the model is unchanged."""


class FoldError(RewriterError, RuntimeError):
    """There is nothing to fold, or the model cannot be folded in its present state; it is unchanged."""


class MeasurementError(RewriterError, ValueError):
    """A model cannot be measured: no such measurement, unusable images, or what is measured cannot be found in it."""


class InstallationError(RewriterError, ImportError):
    """An installed package cannot be used: its pass or layer is broken, or a folder of the same name shadows ours."""


class RewriterWarning(UserWarning):
    """Base class of every warning issued by this package."""


class PlaceLeftAlone(RewriterWarning):
    """A place stays against a guideline, as where its code cannot be edited; the plan and the report say why."""


class OptimizerError(RewriterError, ValueError):
    """Parameter groups or an optimizer do not fit the model: parameters are missing, or belong to another model."""


class StorageError(RewriterError, OSError):
    """A saved directory is incomplete, damaged or does not fit the model."""


class SweepError(RewriterError, ValueError):
    """A sweep cannot start or continue: no such models, a result file of another kind, or workers that do not start."""


class DataError(RewriterError, ValueError):
    """A data source is unknown, not installed or missing, or its targets do not fit the model."""


class ComparisonError(RewriterError, ValueError):
    """A comparison cannot start or continue: nothing to compare, another one's run directory, no disk space."""


class ReportError(ComparisonError):
    """The reports of a comparison cannot be written; its results are not lost.

    Attributes:
        comparison: the :class:`rewriter.Comparison` whose reports could not be written.
    """

    def __init__(self, message: str, comparison: Any) -> None:
        super().__init__(message)
        self.comparison = comparison

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.comparison)  # for sending it to other processes
