"""Jinja for templates that nobody vouches for: no Python objects, and bounds on time, text and memory.

Knows no message and no model. Jinja's own sandbox keeps a template from code and files; it does not keep it from
looping for ever or from doubling a string forty times. Here every loop iteration, call, operator and filter spends
from a budget in proportion to what it touches, and whatever could make something large is checked before it does.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Template, Undefined, pass_context, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.ext import LoopControlExtension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace

from hyperlane.models.template_instrument import CHARACTERS_PER_STEP, Generation, Instrument

MAX_SOURCE = 1 << 18
"""Characters of a template; the longest published ones have some 30,000."""

MAX_TEXT = 1 << 22
"""Characters of any one string, the rendered text included."""

MAX_ITEMS = 50_000
"""Items of any one list or mapping, counting those inside items."""

ITEMS_PER_STEP = 8
"""New items of a list that count as much as one operation: each may be an object of its own."""

MAX_DEPTH = 64
MAX_BITS = 4096
MAX_INDENT = 8
MAX_STEPS = 500_000
MAX_SECONDS = 5.0

_PLAIN_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length"),
    *("list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort"),
    *("title", "trim", "unique", "upper"),
)
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        {
            *("strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition", "startswith"),
            *("endswith", "removeprefix", "removesuffix", "lower", "upper", "title", "capitalize", "casefold"),
            *("swapcase", "find", "rfind", "index", "rindex", "count", "replace", "join", "isalnum", "isalpha"),
            *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "isupper"),
        }
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
    **{kind: frozenset() for kind in (int, float, bytes, set, frozenset)},
}
_PLAIN_FIELD = re.compile(r"\{\{|\{\w*\}")
_LONG_FORMAT = re.compile(r"\d{4,}|\*")


class BoundedTemplate:
    """A template whose rendering ends, whatever is in it. Thread-safe."""

    def __init__(self, source: str, functions: Mapping[str, Callable[..., object]]) -> None:
        """Compile the template; `functions` are its globals beside `range`, `namespace` and `dict`.

        Raises:
            SecurityError: the template is too long.
            Exception: as Jinja's parser and Python's compiler raise for what they cannot take.

        """
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"the template has {len(source)} characters, at most {MAX_SOURCE} are allowed")
        environment = _Environment(functions)
        tree = Instrument().visit(environment.parse(source))
        self._template = Template.from_code(environment, environment.compile(tree), environment.make_globals(None))

    def render(self, variables: Mapping[str, object]) -> str:
        """The template's text.

        Raises:
            SecurityError: the template reached for something it must not have, or exceeded a bound.
            Exception: whatever the template's own mistakes raise, as ZeroDivisionError or RecursionError.

        """
        before = _budget.set(_Budget())
        try:
            pieces, length = [], 0
            for piece in self._template.generate(variables):
                pieces.append(piece)
                length += len(piece)
                _check_length(length)
            return "".join(pieces)
        finally:
            _budget.reset(before)


# --- the budget ----------------------------------------------------------------------------------------------


class _Budget:
    __slots__ = ("deadline", "steps")

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.deadline = time.monotonic() + MAX_SECONDS


_budget: ContextVar[_Budget] = ContextVar("_budget")


def _spend(steps: int) -> None:
    budget = _budget.get()
    budget.steps -= steps
    if budget.steps < 0 or time.monotonic() > budget.deadline:
        raise SecurityError("the template does too much work")


def _spend_on(*touched: object) -> None:
    sized = (len(value) for value in touched if isinstance(value, str | list | tuple | dict))
    _spend(1 + sum(size // CHARACTERS_PER_STEP for size in sized))


def _check_length(characters: int) -> None:
    if characters > MAX_TEXT:
        raise SecurityError(f"the template makes a text of more than {MAX_TEXT} characters")


def _checked(value: object) -> object:
    """The value, if its size is bearable, and paid for, as a template may keep it. Lists: with all that is in them."""
    if isinstance(value, str):
        _check_length(len(value))
        _spend(len(value) // CHARACTERS_PER_STEP)
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise SecurityError(f"the template makes a number of more than {MAX_BITS} bits")
    elif isinstance(value, list | tuple | dict):
        _measure(value)
    return value


def _measure(value: object) -> None:
    items, waiting = 0, [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        inside = _inside(value)
        items += len(inside)
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise SecurityError(f"the template makes a list of more than {MAX_ITEMS} items or {MAX_DEPTH} levels")
        waiting += [(item, depth + 1) for item in inside if isinstance(item, list | tuple | dict)]
    _spend(items // ITEMS_PER_STEP)


def _inside(value: object) -> Sequence[object]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list | tuple) else ()


def _check_printable(value: object) -> None:
    """Lists and mappings are as long as all that is in them, however often; other objects show what they are."""
    _checked(value)
    characters, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
            _check_length(characters)
        elif not isinstance(value, int | float | Undefined | None | list | tuple | dict):
            raise SecurityError(f"the template prints a {type(value).__name__}")
        waiting += _inside(value)
    _spend(characters // CHARACTERS_PER_STEP)


def _text(value: object) -> str:
    """What printing a value gives."""
    if not isinstance(value, str):
        _check_printable(value)
    return str(value)


# --- what a template may call ----------------------------------------------------------------------------------


def _bounded(function: Callable[..., object]) -> Callable[..., object]:
    """A filter or test that spends for what it is given; keeps Jinja's marks on the function."""

    @wraps(function)
    def call(*arguments: object, **named: object) -> object:
        _spend_on(*arguments, *named.values())
        return _checked(function(*arguments, **named))

    return call


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_ITEMS:
        raise SecurityError(f"the template asks for a range of more than {MAX_ITEMS} numbers")
    return numbers


@pass_environment
def _join(environment: _Environment, value: Iterable[object], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return _joined(d, [_text(item) for item in value])


def _joined(separator: str, parts: list[str]) -> str:
    _check_length(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _replace(text: object, old: str, new: str, count: int = -1) -> str:
    text = _text(text)
    _check_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _format(text: str, *values: object, **named: object) -> str:
    if "{" in _PLAIN_FIELD.sub("", text):
        raise SecurityError("the template formats with more than plain fields, as {} or {name}")
    shown = [_text(value) for value in values]
    shown_by_name = {name: _text(value) for name, value in named.items()}
    longest = max(map(len, (*shown, *shown_by_name.values())), default=0)
    _check_length(len(text) + text.count("{") * longest)
    return text.format(*shown, **shown_by_name)


def _format_map(text: str, named: Mapping[str, object]) -> str:
    return _format(text, **named)


def _join_method(separator: str, parts: Iterable[str]) -> str:
    return _joined(separator, list(parts))


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, MAX_TEXT)
    lines = _text(text).splitlines(keepends=True)
    _check_length(sum(map(len, lines)) + len(margin) * len(lines))
    return "".join(
        margin + line if (index or first) and (blank or line.strip()) else line for index, line in enumerate(lines)
    )


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > MAX_DEPTH:
        raise SecurityError(f"the template rounds to {precision} digits")
    rounded = FILTERS["round"](value, precision, method)
    return float(rounded)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: not escaped for HTML, characters as they are."""
    _check_printable(value)
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise SecurityError(f"the template indents JSON by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_TEXT_METHODS: Mapping[str, Callable[..., str]] = {
    "format": _format,
    "format_map": _format_map,
    "join": _join_method,
    "replace": _replace,
}
"""Methods of a text whose result can be much larger than what they are given."""


class _Environment(ImmutableSandboxedEnvironment):
    """Filters, methods and operators are those that chat templates use, each with its bound; the rest is refused."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, functions: Mapping[str, Callable[..., object]]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimiser would compute constants while there is no budget yet
            extensions=[LoopControlExtension, Generation],
            finalize=_printed,
        )
        own: dict[str, Callable[..., object]] = {
            "indent": _indent,
            "join": _join,
            "replace": _replace,
            "round": _round,
            "safe": _text,
            "string": _text,
            "tojson": _to_json,
        }
        self.filters = {name: _bounded(FILTERS[name]) for name in _PLAIN_FILTERS}
        self.filters |= {name: _bounded(function) for name, function in own.items()}
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: _bounded(test) for name, test in tests.items()}
        self.globals = {"range": _range, "namespace": Namespace, "dict": dict, **functions}

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Whether a template may have an attribute: of built-in types the harmless methods alone."""
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return (allowed is None or attr in allowed) and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the base)
        """Every call in a template: of a macro, a method, a global, or one that `Instrument` put there."""
        if getattr(obj, "__self__", None) is self:
            return obj(*args)
        _spend_on(*args, *kwargs.values())
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            _spend_on(owner)
            own = _TEXT_METHODS.get(obj.__name__)
            if own is not None:
                named = {name: kwargs[name] for name in kwargs if not name.startswith("_")}
                return _checked(own(owner, *args, **named))
        return _checked(SandboxedEnvironment.call(self, context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 (as the base)
        """The operators whose result can be much larger than what they are given."""
        _spend_on(left, right)
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_old_format(left, right)
        return _checked(super().call_binop(context, operator, left, right))

    # What `Instrument` writes into a template:

    def spend(self, steps: int) -> bool:
        """A loop iteration, or the body of a macro."""
        _spend(steps)
        return True

    def concatenated(self, *values: object) -> str:
        """The operator `~`."""
        _spend_on(*values)
        return _joined("", [_text(value) for value in values])

    def checked(self, value: object) -> object:
        """A list or mapping that is written out."""
        return _checked(value)

    def touched(self, value: object) -> object:
        """An operand of a comparison or a slice."""
        _spend_on(value)
        return value


@pass_context
def _printed(_context: Context, value: object) -> str:
    # Asking for the context keeps Jinja from printing constants while it compiles.
    text = _text(value)
    _spend_on(text)
    return text


def _check_product(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise SecurityError(f"the template makes a number of more than {MAX_BITS} bits")
        return
    repeated, times = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(repeated, str | list | tuple) and isinstance(times, int):
        limit = MAX_TEXT if isinstance(repeated, str) else MAX_ITEMS
        if len(repeated) * times > limit:
            raise SecurityError(f"the template repeats a text or list {times} times")


def _check_old_format(layout: str, values: object) -> None:
    """`layout % values`: as long as the longest value at every place, at the widest that three digits say."""
    if _LONG_FORMAT.search(layout):
        raise SecurityError("the template formats with a width of four digits or more")
    shown = _inside(values) if isinstance(values, tuple | dict) else [values]
    longest = max((len(_text(value)) for value in shown), default=0)
    _check_length(len(layout) + layout.count("%") * max(longest, 1000))


def _check_power(base: object, exponent: object) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        raise SecurityError(f"the template makes a number of more than {MAX_BITS} bits")
