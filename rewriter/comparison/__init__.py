"""Before against after: outputs, trained weights, training with paired seeds, and a verdict in words."""

import importlib.util

from rewriter.errors import ComparisonError

_LIBRARIES = ("accelerate", "matplotlib", "pandas", "pydantic", "rich", "scipy", "tabulate", "timm", "torchmetrics")

if _missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
    raise ComparisonError(f'comparisons need {", ".join(_missing)}; install with: pip install "rewriter[compare]"')
