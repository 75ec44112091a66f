"""Optional libraries: importing them, the error that says how to install them, their files and versions."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL_LIBRARIES = ("torch", "timm", "torchvision", "segmentation_models_pytorch", "transformers", "diffusers")
"""Libraries that provide models: findings about a model depend on their versions."""

_REQUIREMENTS = {
    "timm": "timm>=1.0.20", "segmentation_models_pytorch": "segmentation-models-pytorch>=0.5",
    "transformers": "transformers>=4.50", "diffusers": "diffusers>=0.30", "accelerate": "accelerate>=1.0",
    "lightning": "lightning>=2.4",
}  # fmt: skip
"""As in the extras of pyproject.toml."""


def install_command(name: str) -> str:
    """The command that installs a library, or the one that a module belongs to."""
    root = name.partition(".")[0]
    return f'pip install "{_REQUIREMENTS.get(root, root)}"'


def load(name: str, install: str, error: type[Exception], needed_by: str = "") -> Any:
    """Import a library, or one of its modules.

    Args:
        name: name of the module.
        install: the command that installs the library.
        error: the error to raise if it cannot be imported.
        needed_by: what needs it, for the message.

    Raises:
        error: it is not installed (the message names the command), or it is but cannot be imported.
    """
    with needed(name, error, needed_by, install):
        return importlib.import_module(name)


@contextmanager
def needed(name: str, error: type[Exception], needed_by: str = "", install: str = "") -> Iterator[None]:
    """Context manager around imports of a library: raises the error that :func:`load` raises if it is missing.

    Raises:
        error: it is not installed (the message names the command), or it is but cannot be imported.
    """
    try:
        yield
    except ImportError as reason:
        root = name.partition(".")[0]
        if reason.name is not None and reason.name.partition(".")[0] != root:  # installed, but broken: say how
            raise error(f"{_whose(needed_by)}{root} cannot be imported: {reason}") from reason
        raise missing(root, install or install_command(root), error, needed_by) from reason


def missing(name: str, install: str, error: type[Exception], needed_by: str = "") -> Exception:
    """The error for a library that is not installed; the arguments are those of :func:`load`."""
    return error(f"{_whose(needed_by)}{name} is not installed; install it with: {install}")


def is_installed(name: str) -> bool:
    """Whether a module of this name exists; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a spec
        return False


def folder(package: str) -> Path | None:
    """The folder of an installed package, found without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(locations))) if locations else None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the libraries ``names`` that are installed, by name."""
    import importlib.metadata  # of the code that imports this module, only --version needs it

    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def not_installed(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are not installed."""
    return [name for name in names if not is_installed(name)]


def missing_of_comparisons() -> list[str]:
    """The libraries of the extra ``compare`` that are not installed."""
    return not_installed(_OF_COMPARISONS)


_OF_COMPARISONS = (
    "accelerate", "matplotlib", "pandas", "pydantic", "rich", "scipy", "tabulate", "timm", "torchmetrics",
)  # fmt: skip


def _whose(needed_by: str) -> str:
    return f"{needed_by}: " if needed_by else ""
