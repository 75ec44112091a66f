from .analysis.dropouts import drop_rate as drop_rate
from .analysis.dropouts import is_stochastic_depth as is_stochastic_depth
from .analysis.heads import find_heads as find_heads
from .analysis.interference import Interference as Interference
from .analysis.layout import channel_dimension as channel_dimension
from .analysis.naming import name_of as name_of
from .analysis.naming import path_of as path_of
from .analysis.residual import Branch as Branch
from .analysis.residual import find_branches as find_branches
from .analysis.weights import has_weight as has_weight
from .edit.editor import Editor as Editor
from .guideline.base import Change as Change
from .guideline.base import Contract as Contract
from .guideline.base import Outcome as Outcome
from .guideline.base import Pass as Pass
from .guideline.base import Rate as Rate
from .guideline.base import Recommendation as Recommendation
from .guideline.lint import Lint as Lint
from .guideline.place import Place as Place
from .layers.added import AddedLayer as AddedLayer
from .layers.registry import register_layer as register_layer
from .reasons import Reason as Reason
from .reasons import Refused as Refused
from .tracing.dataflow import Dataflow as Dataflow
from .tracing.kinds import Kind as Kind
from .tracing.trace import Trace as Trace

__all__ = [
    "AddedLayer",
    "Branch",
    "Change",
    "Contract",
    "Dataflow",
    "Editor",
    "Interference",
    "Kind",
    "Lint",
    "Outcome",
    "Pass",
    "Place",
    "Rate",
    "Reason",
    "Recommendation",
    "Refused",
    "Trace",
    "channel_dimension",
    "drop_rate",
    "find_branches",
    "find_heads",
    "has_weight",
    "is_stochastic_depth",
    "name_of",
    "path_of",
    "register_layer",
]
