"""Everything that a pass needs to import.

    from rewriter.authoring import Change, Contract, Kind, Pass, Place, Refused, register_layer

A pass is a frozen dataclass with two methods: ``candidates(trace)`` yields the places where it may apply, and
``decide(place)`` edits one of them with ``place.edit`` and says what it did and why, or raises ``Refused``. See
``docs/writing-a-pass.md``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub("rewriter", __file__)
