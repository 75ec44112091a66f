"""The guidelines, one folder or file each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if __name__ != "rewriter.passes":  # in a checkout, `import passes` gives the installed `rewriter.passes`
    import sys
    from importlib import import_module

    sys.modules[__name__] = import_module("rewriter.passes")
