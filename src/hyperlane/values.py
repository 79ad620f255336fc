"""Readers of configured values: from what a variable, a file entry or a flag may look like to the value meant.

Pure. Every reader raises ValueError with words that complete "the value …"; it knows no field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hyperlane.core import Address, WeightForm

DEVICES = ("auto", "cpu", "cuda", "webgpu", "directml", "coreml", "openvino", "migraphx")
"""What `device` may say; which of them can be used depends on the installed runtime and is the worker's to find out."""

MAX_NAME = 64
"""Characters of a node's name: what adverts and certificates' lists hold."""

PREFIX_CACHES = ("all", "prompts", "off")
"""What `prefix_cache` may say; `head.prefixes.Reuse` has the meanings."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", re.IGNORECASE)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def whole(low: int, high: int) -> Callable[[object], int]:
    """A whole number within low … high."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("a whole number is wanted")
        try:
            number = int(value)
        except ValueError:
            raise ValueError("a whole number is wanted") from None
        if not low <= number <= high:
            raise ValueError(f"must lie within {low} … {high}")
        return number

    return read


def seconds(value: object) -> float:
    """A duration in seconds, more than 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number of seconds is wanted")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number of seconds is wanted") from None
    if not 0 < number < float("inf"):
        raise ValueError("must be more than 0 and finite")
    return number


def text(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty is wanted")
    return value


def yes_or_no(value: object) -> bool:
    """A truth value, or a word for one."""
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in _TRUE + _FALSE:
        raise ValueError("yes or no is wanted")
    return word in _TRUE


def path(value: object) -> Path:
    """A path; `~` is the user's home."""
    return value if isinstance(value, Path) else Path(text(value)).expanduser()


def address(value: object) -> Address:
    """HOST:PORT."""
    return value if isinstance(value, Address) else Address.parse(text(value))


def _items(value: object) -> Iterable[object]:
    """A list as it is, or a text's parts between commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("a list is wanted")
    return value


def addresses(value: object) -> tuple[Address, ...]:
    """A list of HOST:PORT, or a text of them between commas."""
    return tuple(address(item) for item in _items(value))


def texts(value: object) -> tuple[str, ...]:
    """A list of texts, or a text of them between commas."""
    return tuple(text(item) for item in _items(value))


def some_texts(value: object) -> tuple[str, ...]:
    """As `texts`, one at least: so that a variable that is empty by mistake does not switch something off."""
    found = texts(value)
    if not found:
        raise ValueError("one text at least is wanted")
    return found


def device(value: object) -> str:
    """A device's name, and behind a colon which of them: cuda:1."""
    name, colon, index = text(value).lower().partition(":")
    if colon and (name in {"auto", "cpu"} or not index.isdecimal()):
        raise ValueError("must be a device's name, or NAME:INDEX of an accelerator, as in cuda:1")
    return _one_of(DEVICES, name) + colon + index


def devices(value: object) -> tuple[str, ...]:
    """`all`, or devices by name or by number alone, in a list or a text between commas."""
    words = [str(item).lower() for item in _items([value] if isinstance(value, int) else value)]
    found = tuple(one if one == "all" or one.isdecimal() else device(one) for one in words)
    if "auto" in found:
        raise ValueError("'auto' is one device: write all, numbers of GPUs, or names")
    return found


def node_name(value: object) -> str:
    """What a node is called: printable, without what commands read as an end or a list."""
    word = text(value)
    if len(word) > MAX_NAME or not word.isascii() or not word.isprintable() or set(word) & set(" ,="):
        raise ValueError(f"must be at most {MAX_NAME} printable ASCII characters without space, comma and '='")
    return word


def prefix_cache(value: object) -> str:
    """What prompts may go on from."""
    return _one_of(PREFIX_CACHES, value)


def _one_of(words: Iterable[str], value: object) -> str:
    word = text(value).lower()
    if word not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return word


def one_of(*words: str) -> Callable[[object], str]:
    """One of these words."""

    def read(value: object) -> str:
        word = text(value).lower()
        if word not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return word

    return read


def size(value: object) -> int:
    """Bytes of `4GiB`, `512M`, `1.5 g` or a plain number; K, M, G and T are powers of 1,024.

    Raises:
        ValueError: the text is not a size, or the size is 0.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError("a size is wanted, for instance 4GiB or 512M")
        count = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if count <= 0:
        raise ValueError("must be more than 0 bytes")
    return count


def weights(value: object) -> WeightForm:
    """What weights become: fp16, int8 or int4."""
    try:
        return WeightForm(text(value).lower())
    except ValueError:
        raise ValueError(f"must be one of {', '.join(WeightForm)}") from None
