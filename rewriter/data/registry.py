"""What is said about a source without opening it, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewriter import libraries
from rewriter.data.source import Source, Task
from rewriter.errors import DataError


@dataclass(frozen=True)
class Description:
    """What is known of a source before it is opened.

    Attributes:
        name: what :func:`rewriter.data.open_source` takes; upper case stands for what the user fills in.
        task: what its targets are; None if that depends on what is filled in.
        content: what the images show, and how many there are.
        disk: the size of the installed files.
        licence: of the data.
        install: the command that installs it.
    """

    name: str
    task: Task | None
    content: str
    disk: str
    licence: str
    install: str


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        name: the whole name.
        local: what follows the colon; empty if there is none.
        root: the folder that holds the data, for sources that do not come in a package.
        download: whether a library may download it.
        description: of the source.
    """

    name: str
    local: str
    root: Path | None
    download: bool
    description: Description

    def library(self, name: str) -> Any:
        """A library that the source needs, or a module of it.

        Raises:
            DataError: it is not installed, or cannot be imported; with the command that installs it.
        """
        return libraries.load(name, self.description.install, DataError, self.name)

    def path(self, package: str, relative: str) -> Path:
        """A file or folder within an installed package, which is not imported: only its files are of use here.

        Raises:
            DataError: the package is not installed, or this version of it does not hold the file.
        """
        install = self.description.install
        folder = libraries.folder(package)
        if folder is None:
            raise libraries.missing(package, install, DataError, self.name)
        if not (folder / relative).exists():
            raise DataError(f"{self.name}: expected {relative} in {folder}; install {package} again with: {install}")
        return folder / relative

    def source(self, **found: Any) -> Source:
        """The source, with what its description says unless ``found`` says otherwise."""
        return Source(
            **{"name": self.name, "task": self.description.task, "licence": self.description.licence, **found}
        )


@dataclass(frozen=True)
class Registered:
    """A source by its description and what opens it."""

    description: Description
    open: Callable[[Request], Source]


def described(
    name: str, task: Task | None, *, content: str, disk: str, licence: str, install: str
) -> Callable[[Callable[[Request], Source]], Registered]:
    """Registers the function that opens a source; the arguments are those of :class:`Description`."""
    return lambda function: Registered(Description(name, task, content, disk, licence, install), function)
