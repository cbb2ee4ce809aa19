"""Jinja as chat templates expect it, in a sandbox that ends: bounded time, bounded memory.

The language is that of Hugging Face's templates: trimmed blocks, `break` and `continue`,
`{% generation %}`, `raise_exception`, `strftime_now`, and a `tojson` that does not escape HTML.
Knows nothing of chats.

How a template is held to its limits: each pass of a loop, call, filter and test is a step, after
some of which the time is looked at; whatever makes text or lists asks for room before. What would
nest lists in lists beyond that room is refused when it is built, so no value is larger than what
one operation on it may cost.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from naiad_backends.errors import invalid

SECONDS = 2.0
"""Of computing that one rendering may take."""
ROOM = 1 << 27
"""Characters that one rendering may make."""

_ENTRY = 256
"""Characters that an entry of a list counts for."""

_NUMBER = 100_000
"""The largest number that may say how wide something gets."""
_BITS = 4096
"""Of the largest whole number."""
_TOLD = 1_000
"""Characters of what it says went wrong."""
_LENGTH = 1 << 16
"""Characters of a template."""


class LimitError(jinja2.TemplateError):
    """The template takes too long or makes too much."""


class Meter:
    """What one rendering has left."""

    def __init__(self, seconds: float = SECONDS, room: int = ROOM) -> None:
        self._end = time.thread_time() + seconds
        self._steps = 0
        self.room = room

    def step(self) -> None:
        """Something was done that may be done again and again."""
        self._steps += 1
        if self._steps % 16 == 0 and time.thread_time() > self._end:
            raise LimitError("the chat template takes too long; does it loop?")

    def make(self, size: int) -> None:
        """Something of this size is about to be made."""
        self.fits(size)
        self.room -= size

    def fits(self, size: int) -> None:
        """Whether there is room for something."""
        if size > self.room:
            raise LimitError("the chat template makes too much text; does it loop?")

    def weigh(self, *values: object) -> int:
        """The size of what may have parts, each counted as often as it stands there."""
        size, rest = 0, list(values)
        while rest:
            self.step()
            value = rest.pop()
            size += len(value) if isinstance(value, str) else _ENTRY
            if isinstance(value, list | tuple):
                rest += value
            elif isinstance(value, Mapping):
                rest += value.keys()
                rest += value.values()
            self.fits(size)
        return size


_METER: ContextVar[Meter] = ContextVar("meter")


def render(template: jinja2.Template, variables: Mapping[str, Any], meter: Meter) -> str:
    """The text of a template. Whatever goes wrong in it is an INVALID_ARG that says what."""
    token = _METER.set(meter)
    try:
        return template.environment.concat(
            template.root_render_func(template.new_context(dict(variables)))
        )
    except jinja2.TemplateError as error:
        said = str(error.message)[:_TOLD]
        raise invalid(f"the chat template says: {said}", field="messages") from error
    except Exception as error:
        # A template is foreign code: it may do anything that Python code can do wrong.
        raise invalid(
            f"the chat template failed: {type(error).__name__}: {error!s:.{_TOLD}}",
            field="messages",
        ) from error
    finally:
        _METER.reset(token)


@lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """A template, ready to be rendered. INVALID_ARG for one that is none."""
    if len(source) > _LENGTH:
        raise invalid(f"the chat template has over {_LENGTH} characters", field="chat_template")
    try:
        return _Environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise invalid(
            f"line {error.lineno} of the chat template: {error.message}", field="chat_template"
        ) from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        # Nested deeper than Jinja's parser or Python's can go.
        raise invalid("the chat template is nested too deeply", field="chat_template") from error


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # Nothing may be computed while the template is compiled: `optimized` would.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, loopcontrols],
        )
        filters: Mapping[str, Any] = {**self.filters, **_FILTERS}
        tests: Mapping[str, Any] = self.tests
        self.filters = {
            name: _metered(function)
            for name, function in filters.items()
            if name not in _MISSING_FILTERS
        }
        self.tests = {name: _metered(function) for name, function in tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
            "dict": _dict,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _MISSING_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        args = _checked(meter, __obj, args, kwargs)
        return _made(meter, super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.step()
        _check_operator(meter, operator, left, right)
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Where Jinja puts output together: of the whole, of macros and of blocks."""
        meter = _METER.get()
        size, known = 0, []
        for part in parts:
            size += len(part)
            meter.fits(size)
            known.append(part)
        meter.make(size)
        return "".join(known)

    @property
    def passes(self) -> None:
        """Stands in each loop: to look it up is a step."""
        _METER.get().step()

    @staticmethod
    def joined(*values: Any) -> str:
        """Stands for `~`."""
        return _Environment.concat(str(value) for value in values)

    @staticmethod
    def weighed(value: Any) -> Any:
        """Stands around each list and dictionary that is written in a template."""
        _METER.get().weigh(value)
        return value


class _Metering(NodeTransformer):
    """Puts the calls into a template that Jinja has no hooks for."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.EnvironmentAttribute("passes", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", [node], node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        # `{% set a, b = ... %}` has one on its left, too.
        return self.visit_List(node) if node.ctx == "load" else node


def _call(name: str, arguments: list[nodes.Expr], near: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name)
    return nodes.Call(function, arguments, [], None, None, lineno=near.lineno)


class _Generation(Extension):
    """`{% generation %}`, which marks what a model wrote; it matters for training only."""

    tags = {"generation"}  # noqa: RUF012  # As Jinja declares it.

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """One whose text is not that of what is in it, which may be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    widths = [indent if isinstance(indent, int) else len(indent or ""), *map(len, separators or ())]
    if max(widths) > 100:
        raise LimitError("tojson: indent and separators have up to 100 characters")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=None if separators is None else (separators[0], separators[1]),
        sort_keys=sort_keys,
    )


def _sum(values: Iterable[Any], attribute: str | int | None = None, start: int = 0) -> Any:
    """Of numbers; lists would be copied again and again."""
    total = start
    for value in values:
        total += value if attribute is None else value[attribute]
        if not isinstance(total, int | float):
            raise LimitError("sum: only numbers can be added")
    return total


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment,
    values: Iterable[Any],
    d: str = "",
    attribute: str | int | None = None,
) -> str:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    parts = []
    for value in values:
        parts.append(str(value))
        if not isinstance(value, str):
            _METER.get().make(len(parts[-1]))
    return _joined(d, parts)


def _joined(between: str, parts: Sequence[str]) -> str:
    _METER.get().make(sum(map(len, parts)) + len(parts) * len(between))
    return between.join(parts)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(value), str(old), str(new)
    _METER.get().make(len(text) + (text.count(old) * len(new)))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    wide = width if isinstance(width, int) else len(width)
    _METER.get().make(len(text) + (text.count("\n") + 1) * wide)
    return do_indent(text, width, first, blank)


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_percent(str(value))
    return do_format(value, *args, **kwargs)


_FILTERS: dict[str, Callable[..., Any]] = {
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "sum": _sum,
    "tojson": _tojson,
}
_MISSING_FILTERS = {"pprint", "urlize", "wordwrap", "xmlattr"}
"""No chat template needs them, and they would have to be bounded too."""
_OWN_ARGUMENTS = {"_loop_vars", "_block_vars"}
_MISSING_METHODS = {"encode", "expandtabs", "to_bytes", "translate", "maketrans"}
"""The same for methods of strings and numbers."""


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is a step, with what it makes accounted for."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        # The first is what the filter is applied to; the others may say how wide it gets.
        _check_numbers(args[skipped + 1 :], kwargs)
        return _made(meter, function(*args, **kwargs))

    return metered


def _made(meter: Meter, result: Any) -> Any:
    """Account for what a function has made."""
    if isinstance(result, str):
        meter.make(len(result))
    elif isinstance(result, list | tuple | dict):
        meter.weigh(result)
        meter.make(len(result) * _ENTRY)
    return result


def _checked(
    meter: Meter, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a call, once what it would make is known to be bounded."""
    # The sandbox wraps str.format.
    method = getattr(function, "__wrapped__", function)
    owner = getattr(method, "__self__", None)
    if isinstance(owner, str | int | float):
        _check_numbers(args, kwargs)
        match method.__name__:
            case "format" | "format_map":
                _check_format(str(owner))
            case "replace" if len(args) >= 2:
                _replace(owner, *args)
            case "join" if args:
                args = (list(args[0]),)
                _joined(str(owner), args[0])
    elif isinstance(function, type) or (
        isinstance(function, Macro) and (function.catch_varargs or function.catch_kwargs)
    ):
        # They put what they are given into a list or a dictionary. Jinja adds arguments of its own.
        own = {key: value for key, value in kwargs.items() if key not in _OWN_ARGUMENTS}
        meter.weigh(args, own)
    return args


def _check_numbers(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _NUMBER:
            raise LimitError(f"{value} is too large a number for a filter or method")


def _check_format(form: str) -> None:
    """Of str.format: no widths that are huge, or come from arguments."""
    if re.search(r"\{[^{}]*(?:\{|\d{6})", form):
        raise LimitError("a format may not have such a width")


def _check_percent(form: str) -> None:
    """The same for `%`."""
    if re.search(r"%(?:\([^)]*\))?[-+ #0-9.]*(?:\*|\d{6})", form):
        raise LimitError("a format may not have such a width")


def _check_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Look at what an operator would make."""
    match operator, left, right:
        case "%", str(), _:
            _check_percent(left)
        case "**", int(), int() if right > 0 and left.bit_length() * right > _BITS:
            raise LimitError("a number gets too large")
        case "*", int(), int() if left.bit_length() + right.bit_length() > _BITS:
            raise LimitError("a number gets too large")
        case "*", str() | list() | tuple(), int():
            meter.make(meter.weigh(left) * max(right, 0))
        case "*", int(), str() | list() | tuple():
            meter.make(meter.weigh(right) * max(left, 0))
        case "+", str(), str():
            meter.make(len(left) + len(right))
        case "+", list() | tuple(), list() | tuple():
            meter.weigh(left, right)
            meter.make((len(left) + len(right)) * _ENTRY)
