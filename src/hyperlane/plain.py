"""Frozen records as plain data that JSON can hold, and back. Pure; knows no record in particular."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, TypeVar

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
"""What JSON can hold."""

Record = TypeVar("Record")


def plain(value: object) -> Plain:
    """Frozen data as JSON can hold it: records by field name, byte strings in hex, enumerations by value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def revive(record: type[Record], data: object) -> Record:
    """The record that `plain` made the data of. Fields that the record does not know are left out.

    Raises:
        ValueError: the data is not that of such a record.

    """
    revived: Record = _revive(record, data)
    return revived


def _revive(kind: Any, data: Any) -> Any:  # noqa: ANN401 (any annotation of a record's field, any JSON)
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if data is None else _revive(next(a for a in arguments if a is not types.NoneType), data)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _revive_record(kind, data)
    if typing.get_origin(kind) is tuple:
        return tuple(_revive(arguments[0], item) for item in _checked(list, data))
    if kind is float:
        return float(_checked(int | float, data))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    return _checked(kind, data)


def _revive_record(kind: type[Any], data: object) -> object:
    known = _checked(dict, data)
    hints = typing.get_type_hints(kind)
    given = {f.name: _revive(hints[f.name], known[f.name]) for f in dataclasses.fields(kind) if f.name in known}
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"this is no {kind.__name__}: {error}") from None


def _checked(kind: Any, data: Any) -> Any:  # noqa: ANN401 (passes what it checked)
    if not isinstance(data, kind):
        raise ValueError(f"{data!r} stands where {kind} belongs")
    return data
