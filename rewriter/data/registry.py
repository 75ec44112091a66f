"""What is said about a source without opening it, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rewriter.data.source import Source, Task


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
    """

    name: str
    local: str
    root: Path | None
    download: bool


@dataclass(frozen=True)
class Registered:
    """A source by its description and what opens it."""

    description: Description
    open: Callable[[Request], Source]
