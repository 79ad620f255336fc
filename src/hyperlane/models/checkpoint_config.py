"""The JSON files beside a checkpoint's weights, read with every value checked for its type and range.

Knows no architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperlane.errors import MalformedModel, UnsupportedModel

Json = Mapping[str, object]


def parse_object(text: str, label: str) -> Json:
    """A JSON object.

    Raises:
        MalformedModel: the text is something else.

    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{label} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise MalformedModel(f"{label} is no JSON object")
    return found


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """Values of one JSON object. A key that is absent, or null, takes the default; without a default it must be there.

    Every reader raises MalformedModel, which names the file and the key.
    """

    values: Json
    label: str

    def has(self, key: str) -> bool:
        """Whether the key says anything."""
        return self.values.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer within low … high."""
        return int(self._number(key, low, high, default, (int,)))

    def floating(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number within low … high."""
        return float(self._number(key, low, high, default, (int, float)))

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        found = self.values.get(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise MalformedModel(f"{self.label}: '{key}' is neither true nor false")
        return found

    def string(self, key: str, default: str) -> str:
        """A string."""
        found = self.values.get(key)
        if found is None:
            return default
        if not isinstance(found, str):
            raise MalformedModel(f"{self.label}: '{key}' is no string")
        return found

    def strings(self, key: str) -> Sequence[str]:
        """A list of strings; empty when there is none."""
        found = self.values.get(key)
        if found is None:
            return ()
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise MalformedModel(f"{self.label}: '{key}' is no list of strings")
        return found

    def integers(self, key: str) -> Sequence[int]:
        """An integer or a list of them; empty when there is none."""
        found = self.values.get(key)
        several = found if isinstance(found, list) else [] if found is None else [found]
        numbers = [one for one in several if type(one) is int]
        if len(numbers) < len(several):
            raise MalformedModel(f"{self.label}: '{key}' is neither an integer nor a list of them")
        return numbers

    def inner(self, key: str) -> ConfigKeys | None:
        """The object under a key; None when there is none."""
        found = self.values.get(key)
        if found is None:
            return None
        if not isinstance(found, dict):
            raise MalformedModel(f"{self.label}: '{key}' is no object")
        return ConfigKeys(found, f"{self.label}: {key}")

    def unsupported(self, what: str) -> UnsupportedModel:
        """The error that says what of this model Hyperlane does not run."""
        return UnsupportedModel(f"{self.label}: {what}, which Hyperlane does not run")

    def _number(self, key: str, low: float, high: float, default: float | None, kinds: tuple[type, ...]) -> float:
        found = self.values.get(key)
        if found is None:
            if default is None:
                raise MalformedModel(f"{self.label}: '{key}' is missing")
            return default
        if isinstance(found, bool) or not isinstance(found, kinds):
            raise MalformedModel(f"{self.label}: '{key}' is no {'integer' if kinds == (int,) else 'number'}")
        assert isinstance(found, int | float)
        if not low <= found <= high:  # also refuses what is not a number
            raise MalformedModel(f"{self.label}: '{key}' is {found}, outside {low} to {high}")
        return found
