"""``[tool.rewriter]`` in ``pyproject.toml``: the options of ``rewriter check``, under the names of the long options."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewriter.errors import ConfigurationError
from rewriter.guideline.registry import suggest

_LISTS = ("select", "ignore", "only", "skip", "pass", "model-kwargs")
_TEXTS = ("subject", "input-size", "training", "checkpoint")
_IGNORES = "per-path-ignores"


@dataclass(frozen=True)
class Configuration:
    """What a project has set.

    Attributes:
        values: by the name of the long option; texts, and lists of texts.
        ignored: by a selector of module paths, the codes that are left out there.
        file: where it was read; None if there is none.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    file: Path | None = None

    def get(self, option: str, given: Any) -> Any:
        """What was given on the command line, or else what the project has set."""
        return self.values.get(option) if given is None else given

    def path(self, option: str, given: Path | None) -> Path | None:
        """As :meth:`get`, of a file; one in the configuration is looked up beside it."""
        if given is not None or option not in self.values:
            return given
        assert self.file is not None
        return self.file.parent / str(self.values[option])


def read_configuration(file: Path | None) -> Configuration:
    """The settings in ``file``, or in the ``pyproject.toml`` of the current directory or the nearest one above.

    Raises:
        ConfigurationError: the file is missing or no TOML, or a key or value is none of the known ones.
    """
    found = file if file is not None else _nearest()
    if found is None:
        return Configuration()
    try:
        table = tomllib.loads(found.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{found}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{found} is no TOML: {error}") from error
    tool = table.get("tool", {})
    own = tool.get("rewriter") if isinstance(tool, dict) else None
    if own is None:
        if file is not None:
            raise ConfigurationError(f"{found} has no table [tool.rewriter]")
        return Configuration()
    if not isinstance(own, dict):
        raise ConfigurationError(f"{found}: [tool.rewriter]: expected a table, found {own!r}")
    values = {key: _value(key, value, found) for key, value in own.items() if key != _IGNORES}
    return Configuration(values, _ignored(own.get(_IGNORES, {}), found), found)


def _nearest() -> Path | None:
    here = Path.cwd()
    return next((file for folder in (here, *here.parents) if (file := folder / "pyproject.toml").is_file()), None)


def _value(key: str, value: Any, file: Path) -> str | list[str]:
    if key in _LISTS:
        return _texts(value, f"{file}: [tool.rewriter] {key}")
    if key not in _TEXTS:
        known = sorted((*_LISTS, *_TEXTS, _IGNORES))
        raise ConfigurationError(f"{file}: [tool.rewriter] has no key {key!r}; {suggest(key, known)}")
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise ConfigurationError(f"{file}: [tool.rewriter] {key}: expected a text, found {value!r}")


def _texts(value: Any, where: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ConfigurationError(f"{where}: expected a list of texts, found {value!r}")


def _ignored(value: Any, file: Path) -> dict[str, tuple[str, ...]]:
    where = f"{file}: [tool.rewriter.{_IGNORES}]"
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: expected a table of module paths and codes, found {value!r}")
    return {path: tuple(_texts(codes, f"{where} {path}")) for path, codes in value.items()}


def joined(texts: Sequence[str] | None) -> str | None:
    """Codes as :func:`rewriter.check` takes them."""
    return ",".join(texts) if texts is not None else None
