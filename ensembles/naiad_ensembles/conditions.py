"""The expressions of `when`: read, checked and compiled once, when an ensemble is loaded.

The syntax is a part of Python's, read by Python's own parser; nothing of it is ever handed to
Python to run. What is not in the tables here is refused. Knows no steps and no graph.
"""

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from naiad_backends.api import Parameter, Tensor
from naiad_backends.errors import NaiadError
from naiad_ensembles import operations
from naiad_ensembles.operations import FUNCTIONS, Value

LONGEST = 1_000
"""Characters of an expression."""

MOST_PARTS = 200
"""Operators, operands and calls of an expression."""

GREATEST = 2**63 - 1

PARAMETERS = "parameters"
"""Where the request's parameters are, by their names."""

TENSOR = "tensor"
"""Where tensors are whose names are no identifiers."""

GIVEN = "given"
"""The function that tells whether there is a tensor or a parameter."""

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

_CALCULATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an expression.  column: counted from 1."""

    column: int
    message: str
    hint: str = ""


class _Absent(Exception):
    """There is no such tensor or parameter."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What an expression is evaluated over."""

    tensors: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter]


_Part = Callable[[_Scope], Value]
"""A compiled expression."""


class Condition:
    """An expression over tensors and parameters.

    tensors: those that it names.  faults: what is wrong with it; one with faults never holds.
    """

    def __init__(self, text: str, known: Collection[str]) -> None:
        """known: the names of all tensors that there are."""
        compiler = _Compiler(text, known)
        self.text = text
        self._value = compiler.compiled()
        self.tensors = tuple(compiler.tensors)
        self.faults = tuple(compiler.faults)

    def holds(self, tensors: Mapping[str, Tensor], parameters: Mapping[str, Parameter]) -> bool:
        """Whether it is true; not so as soon as it comes upon a tensor or a parameter that is not
        there, whatever stands around it.

        Raises INVALID_ARG where an operator cannot do its work, such as for an element that a
        tensor does not have.
        """
        try:
            return operations.truth(self._value(_Scope(tensors, parameters)))
        except _Absent:
            return False
        except NaiadError as error:
            raise NaiadError(
                error.code, f"condition '{self.text}': {error.message}", hint=error.hint
            ) from error


def _is_literal(node: ast.expr) -> bool:
    """A constant, or one with a minus sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant)


def _is_named(node: ast.expr | None) -> TypeGuard[ast.Subscript]:
    """`parameters[...]` or `tensor[...]`."""
    named = node.value if isinstance(node, ast.Subscript) else None
    return isinstance(named, ast.Name) and named.id in (PARAMETERS, TENSOR)


def _never(scope: _Scope) -> Value:
    return False


class _Compiler:
    """Turns the parts of a syntax tree into functions, and notes what it may not contain."""

    def __init__(self, text: str, known: Collection[str]) -> None:
        # Line breaks are but spaces, as YAML folds long lines.
        self._text = "".join(" " if letter.isspace() else letter for letter in text)
        self._known = known
        self.tensors: dict[str, None] = {}
        self.faults: list[Fault] = []

    def compiled(self) -> _Part:
        tree = self._parsed()
        if tree is not None:
            parts = sum(isinstance(node, ast.expr) for node in ast.walk(tree))
            if parts <= MOST_PARTS:
                value = self._part(tree.body)
                return _never if self.faults else value
            self._fault(None, f"has {parts} parts, more than {MOST_PARTS}", "use a model instead")
        return _never

    def _parsed(self) -> ast.Expression | None:
        if len(self._text) > LONGEST:
            self._fault(None, f"is longer than {LONGEST} characters", "use a model instead")
            return None
        try:
            return ast.parse(self._text.lstrip(), mode="eval")
        except SyntaxError as error:
            # Python counts the end as place 0.
            end = len(self._text.lstrip()) + 1
            column = 1 if error.offset is None else error.offset or end
            self.faults.append(Fault(len(self._text) + 1 - end + column, error.msg))
        except (ValueError, RecursionError, MemoryError):
            self._fault(None, "cannot be read", "make it simpler")
        return None

    def _fault(self, node: ast.expr | None, message: str, hint: str = "") -> _Part:
        column = 1
        if node is not None:
            text = self._text.lstrip()
            before = text.encode()[: node.col_offset].decode("utf-8", "ignore")
            column += len(self._text) - len(text) + len(before)
        self.faults.append(Fault(column, message, hint))
        return _never

    def _part(self, node: ast.expr) -> _Part:
        compiler = self._COMPILERS.get(type(node))
        if compiler is None:
            return self._fault(
                node, f"{type(node).__name__} is not allowed", "see docs/ensembles.md"
            )
        return compiler(self, node)

    # -- operands

    def _constant(self, node: ast.Constant) -> _Part:
        value = node.value
        if not isinstance(value, bool | int | float | str):
            return self._fault(node, f"{value!r} is no number, string, True or False")
        if type(value) is int and value > GREATEST:
            return self._fault(node, f"the number is greater than {GREATEST}")
        constant: Value = value
        return lambda scope: constant

    def _list(self, node: ast.Tuple | ast.List) -> _Part:
        parts = [self._part(element) for element in node.elts]
        if not all(map(_is_literal, node.elts)):
            return self._fault(node, "a list may hold numbers and strings only")
        return lambda scope: tuple(part(scope) for part in parts)

    def _name(self, node: ast.Name) -> _Part:
        if node.id in self._known and node.id not in (PARAMETERS, TENSOR):
            return self._tensor(node.id)
        hint = f"there are {', '.join(sorted(self._known)) or 'none'}"
        if node.id in FUNCTIONS or node.id == GIVEN:
            hint = f"call it: {node.id}(...)"
        elif node.id in (PARAMETERS, TENSOR):
            hint = f'write {node.id}["name"]'
        return self._fault(node, f"there is no tensor '{node.id}'", hint)

    def _tensor(self, name: str) -> _Part:
        self.tensors[name] = None

        def value(scope: _Scope) -> Value:
            tensor = scope.tensors.get(name)
            if tensor is None:
                raise _Absent
            return tensor

        return value

    def _subscript(self, node: ast.Subscript) -> _Part:
        if _is_named(node):
            return self._named(node)
        value, index = self._part(node.value), self._part(node.slice)
        return lambda scope: operations.element(value(scope), index(scope))

    def _named(self, node: ast.Subscript) -> _Part:
        kind = node.value.id if isinstance(node.value, ast.Name) else ""
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if not isinstance(key, str):
            return self._fault(node, f"{kind} needs a name", f'write {kind}["name"]')
        if kind == TENSOR:
            if key not in self._known:
                return self._fault(node, f"there is no tensor '{key}'")
            return self._tensor(key)
        name = key

        def value(scope: _Scope) -> Value:
            if name not in scope.parameters:
                raise _Absent
            return scope.parameters[name]

        return value

    # -- operators

    def _bool_op(self, node: ast.BoolOp) -> _Part:
        parts = [self._part(value) for value in node.values]
        joined = all if isinstance(node.op, ast.And) else any
        return lambda scope: joined(operations.truth(part(scope)) for part in parts)

    def _unary_op(self, node: ast.UnaryOp) -> _Part:
        part = self._part(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda scope: not operations.truth(part(scope))
        if isinstance(node.op, ast.USub):
            return lambda scope: operations.negative(part(scope))
        return self._fault(node, f"{type(node.op).__name__} is not allowed")

    def _bin_op(self, node: ast.BinOp) -> _Part:
        left, right = self._part(node.left), self._part(node.right)
        calculated = _CALCULATIONS.get(type(node.op))
        if calculated is None:
            return self._fault(node, f"{type(node.op).__name__} is not allowed", "use + - * / // %")
        return lambda scope: operations.calculate(calculated, left(scope), right(scope))

    def _compare(self, node: ast.Compare) -> _Part:
        operands = [self._part(operand) for operand in (node.left, *node.comparators)]
        links = [
            self._link(node, kind, left, right)
            for kind, left, right in zip(node.ops, operands, operands[1:], strict=False)
        ]
        if len(links) == 1:
            return links[0]
        return lambda scope: all(operations.truth(link(scope)) for link in links)

    def _link(self, node: ast.Compare, kind: ast.cmpop, left: _Part, right: _Part) -> _Part:
        if isinstance(kind, ast.In):
            return lambda scope: operations.contains(right(scope), left(scope))
        if isinstance(kind, ast.NotIn):
            return lambda scope: not operations.contains(right(scope), left(scope))
        compared = _COMPARISONS.get(type(kind))
        if compared is None:
            return self._fault(node, f"{type(kind).__name__} is not allowed", "use == or !=")
        return lambda scope: operations.compare(compared, left(scope), right(scope))

    # -- calls

    def _call(self, node: ast.Call) -> _Part:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == GIVEN:
            return self._given(node)
        function = FUNCTIONS.get(name)
        if function is None:
            known = ", ".join(sorted((*FUNCTIONS, GIVEN)))
            return self._fault(node, "there is no such function", f"use one of {known}")
        if node.keywords or not function.least <= len(node.args) <= function.most:
            wanted = "1" if function.most == 1 else f"{function.least} to {function.most}"
            return self._fault(node, f"{name} takes {wanted} without names")
        parts = [self._part(argument) for argument in node.args]
        call = function.call
        return lambda scope: call(*(part(scope) for part in parts))

    def _given(self, node: ast.Call) -> _Part:
        argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if not (isinstance(argument, ast.Name) or _is_named(argument)):
            return self._fault(node, "given takes a tensor or a parameter", "such as given(image)")
        part = self._part(argument)

        def value(scope: _Scope) -> Value:
            try:
                part(scope)
            except _Absent:
                return False
            return True

        return value

    _COMPILERS: Mapping[type[ast.expr], Callable[["_Compiler", Any], _Part]] = {
        ast.Constant: _constant,
        ast.Tuple: _list,
        ast.List: _list,
        ast.Name: _name,
        ast.Subscript: _subscript,
        ast.BoolOp: _bool_op,
        ast.UnaryOp: _unary_op,
        ast.BinOp: _bin_op,
        ast.Compare: _compare,
        ast.Call: _call,
    }
