"""The guidelines, one folder or file each."""

from passes.dropout import Dropout as Dropout

__all__ = ["Dropout"]
