# The public names; each is loaded when it is first used.
from . import testing
from .api import original_state_dict, plan, report, rewrite, to_graph_module, trace, undo
from .comparison.compare import compare
from .comparison.recipe import Recipe
from .comparison.result import Comparison
from .constants.calibration import calibrate
from .constants.folding import fold
from .errors import (
    CalibrationError,
    ComparisonError,
    ConfigurationError,
    ContractError,
    DataError,
    FoldError,
    InputError,
    InstallationError,
    MeasurementError,
    ModelError,
    OptimizerError,
    PassError,
    PlaceLeftAlone,
    PlanError,
    PlanMismatchError,
    ReportError,
    RewriterError,
    RewriterWarning,
    SelectorError,
    SourceError,
    StorageError,
    SubjectError,
    SweepError,
    TraceError,
    UndoError,
)
from .guideline.base import Advice, Contract, Pass, Site, Skipped
from .lint.check import check
from .lint.findings import Finding, Findings
from .measurement.measure import measure
from .measurement.result import Measurement
from .optimizer.check import check_optimizer
from .optimizer.grouped_parameters import ParamGroups
from .optimizer.groups import param_groups
from .planning.plan import Plan
from .planning.report import Report
from .reasons import Reason
from .storage.directory import load, save
from .storage.pretrained import from_pretrained, save_pretrained
from .tracing.trace import Trace

__all__ = [
    "Advice",
    "CalibrationError",
    "Comparison",
    "ComparisonError",
    "ConfigurationError",
    "Contract",
    "ContractError",
    "DataError",
    "Finding",
    "Findings",
    "FoldError",
    "InputError",
    "InstallationError",
    "Measurement",
    "MeasurementError",
    "ModelError",
    "OptimizerError",
    "ParamGroups",
    "Pass",
    "PassError",
    "PlaceLeftAlone",
    "Plan",
    "PlanError",
    "PlanMismatchError",
    "Reason",
    "Recipe",
    "Report",
    "ReportError",
    "RewriterError",
    "RewriterWarning",
    "SelectorError",
    "Site",
    "Skipped",
    "SourceError",
    "StorageError",
    "SubjectError",
    "SweepError",
    "Trace",
    "TraceError",
    "UndoError",
    "calibrate",
    "check",
    "check_optimizer",
    "compare",
    "fold",
    "from_pretrained",
    "load",
    "measure",
    "original_state_dict",
    "param_groups",
    "plan",
    "report",
    "rewrite",
    "save",
    "save_pretrained",
    "testing",
    "to_graph_module",
    "trace",
    "undo",
]
