"""Compare before and after: outputs, trained weights, training with paired seeds, and a verdict in words."""

from rewriter.errors import ComparisonError
from rewriter.libraries import missing_of_comparisons

if _missing := missing_of_comparisons():
    raise ComparisonError(f'comparisons need {", ".join(_missing)}; install with: pip install "rewriter[compare]"')
