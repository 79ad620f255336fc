"""What variables and a configuration file say, as they say it: by section and key, each with the place that said it.

Knows no role: which sections and keys there are it is told.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hyperlane.errors import ConfigError

Known = Mapping[str, Collection[str]]
"""The keys of each section."""

Said = dict[tuple[str, str], tuple[object, str]]
"""By section and key: the value, and the place that said it."""

_PREFIX = "HYPERLANE_"
_PLAIN_VARIABLES = ("HYPERLANE_HOME", "HYPERLANE_CONFIG")
_TESTS_PREFIX = "HYPERLANE_TEST_"


def refuse_unknown(name: str, known: Iterable[str], what: str) -> None:
    """Raise ConfigError unless a name is known; the message has the nearest that is, or all."""
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    raise ConfigError(f"{what} '{name}' is unknown; {hint}")


def said_by_variables(environ: Mapping[str, str], known: Known) -> Said:
    """What environment variables say. Raises ConfigError for one that bears our prefix and is unknown."""
    keys = {f"{_PREFIX}{section}_{name}".upper(): (section, name) for section in known for name in known[section]}
    said: Said = {}
    for variable, value in environ.items():
        if not variable.startswith(_PREFIX) or variable.startswith(_TESTS_PREFIX) or variable in _PLAIN_VARIABLES:
            continue
        refuse_unknown(variable, (*keys, *_PLAIN_VARIABLES), "environment variable")
        if value:
            said[keys[variable]] = (value, variable)
    return said


def said_by_file(path: Path, known: Known, *, must_exist: bool) -> Said:
    """What a TOML file says.

    Raises:
        ConfigError: it cannot be read, or names something unknown; or it must be there and is not.

    """
    if not must_exist and not path.exists():
        return {}
    said: Said = {}
    for section, entries in said_by_toml(path).items():
        refuse_unknown(section, known, f"{path}: section")
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: '{section}' must be a section: [{section}]")
        for name, value in entries.items():
            refuse_unknown(name, known[section], f"{path}: key of [{section}]")
            said[section, name] = (value, f"{path}: [{section}] {name}")
    return said


def said_by_toml(path: Path, what: str = "configuration file") -> dict[str, object]:
    """The sections of any TOML file that a user wrote.

    Raises:
        ConfigError: it is not there, or cannot be read.

    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the {what} {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error}") from error
