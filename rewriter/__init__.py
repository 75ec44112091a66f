"""Apply published training guidelines to the vision model you already have.

import rewriter

plan = rewriter.plan(model)        # what would be done, where, and why
model = rewriter.rewrite(model)    # the same model, edited and verified
print(rewriter.report(model))
"""

from rewriter import testing
from rewriter.api import original_state_dict, plan, report, rewrite, to_graph_module, trace, undo
from rewriter.calibration import calibrate
from rewriter.comparison.compare import compare
from rewriter.comparison.recipe import Recipe
from rewriter.comparison.result import Comparison
from rewriter.errors import (
    CalibrationError,
    ComparisonError,
    ContractError,
    DataError,
    FoldError,
    InputError,
    InstallationError,
    ModelError,
    OptimizerError,
    PlaceLeftAlone,
    PlanError,
    PlanMismatchError,
    ReportError,
    RewriterError,
    RewriterWarning,
    SelectorError,
    SourceError,
    StorageError,
    SweepError,
    TraceError,
    UndoError,
)
from rewriter.folding import fold
from rewriter.grouped_parameters import ParamGroups
from rewriter.guideline import Advice, Contract, Pass, Site, Skipped
from rewriter.optimizer_check import check_optimizer
from rewriter.optimizer_groups import param_groups
from rewriter.planning import Plan
from rewriter.pretrained import from_pretrained, save_pretrained
from rewriter.reasons import Reason
from rewriter.record import Report
from rewriter.storage import load, save
from rewriter.tracing.trace import Trace

__all__ = [
    "Advice", "CalibrationError", "Comparison", "ComparisonError", "Contract", "ContractError", "DataError",
    "FoldError", "InputError", "InstallationError", "ModelError", "OptimizerError", "ParamGroups", "Pass",
    "PlaceLeftAlone", "Plan", "PlanError", "PlanMismatchError", "Reason", "Recipe", "Report", "ReportError",
    "RewriterError", "RewriterWarning", "SelectorError", "Site", "Skipped", "SourceError", "StorageError",
    "SweepError", "Trace", "TraceError", "UndoError", "calibrate", "check_optimizer", "compare", "fold",
    "from_pretrained", "load", "original_state_dict", "param_groups", "plan", "report", "rewrite", "save",
    "save_pretrained", "testing", "to_graph_module", "trace", "undo",
]  # fmt: skip

__version__ = "0.1.0"
