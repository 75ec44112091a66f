"""Installed packages as sources of files, and the errors for those that are missing."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from rewriter.errors import DataError


def require(library: str, source: str, install: str) -> Any:
    """Import a library that the source called ``source`` needs.

    Raises:
        DataError: it is not installed, or cannot be imported; with the command that installs it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        root = library.split(".")[0]
        if error.name is not None and error.name.split(".")[0] != root:
            raise DataError(f"{source} needs {root}, which cannot be imported: {error}") from error
        raise DataError(f"{source} needs {root}, which is not installed; install it with: {install}") from error


def package_path(package: str, relative: str, source: str, install: str) -> Path:
    """A file or folder within an installed package, which is not imported: only its files are of use here.

    Raises:
        DataError: the package is not installed, or this version of it does not hold the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{source} needs the files of {package}, which is not installed; install it with: {install}")
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.exists():
        raise DataError(f"{source}: expected {path} in the installed {package}; install it again with: {install}")
    return path
