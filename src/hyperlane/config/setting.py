"""One setting of a role: a dataclass field with its reader, meaning and default. Knows no role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any

from hyperlane.errors import ConfigError


def setting(default: Any, read: Callable[[object], object], meaning: str) -> Any:  # noqa: ANN401 (as dataclasses.field)
    """A field with its reader and meaning; None as a default means 'unset' and is never read."""
    return field(default=default, metadata={"read": read, "meaning": meaning})


class Checked:
    """A role whose values are checked however it is made: ConfigError when one is out of its range."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check every value."""
        _check(self)


def known_of(role: type[Any]) -> dict[str, Field[Any]]:
    """The settings of a role by name."""
    return {f.name: f for f in fields(role) if "read" in f.metadata}


def read_one(setting: Field[Any], value: object, place: str) -> object:
    """The value that a text or a file's entry means; ConfigError, with the place that said it, when it means none."""
    try:
        return setting.metadata["read"](value)
    except ValueError as error:
        raise ConfigError(f"{place}: {value!r}: {error} ({setting.metadata['meaning']})") from None


def _check(config: Any) -> None:  # noqa: ANN401 (any role)
    for setting in fields(config):
        value = getattr(config, setting.name)
        if "read" in setting.metadata and value is not None:
            object.__setattr__(config, setting.name, read_one(setting, value, setting.name))
