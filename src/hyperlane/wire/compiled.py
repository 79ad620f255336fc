"""Whether what a token passes between two engines runs compiled, as in a wheel of `make wheel`, from this source."""

from __future__ import annotations

from hyperlane.wire import codec


def is_compiled() -> bool:
    """Whether the codec, and with it the modules that pyproject.toml names for mypyc, are extension modules here."""
    return not codec.__file__.endswith((".py", ".pyc"))
