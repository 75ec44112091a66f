"""Apply published training guidelines to the vision model you already have.

import rewriter

plan = rewriter.plan(model)        # what would be done, where, and why
model = rewriter.rewrite(model)    # the same model, edited and verified
print(rewriter.report(model))
"""

import lazy_loader

from rewriter.libraries import missing_of_comparisons as _missing
from rewriter.renamed import install as _find_old_names
from rewriter.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
if _missing():  # using them raises an error that says so; `from rewriter import *` leaves them out
    __all__ = [name for name in __all__ if name not in ("Comparison", "Recipe", "compare", "comparison")]
_find_old_names()
