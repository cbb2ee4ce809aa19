"""The expressions of `when`: what they mean, what they refuse, and that they do nothing else."""

import ast
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from naiad_backends.api import Parameter, Tensor
from naiad_backends.errors import Code, NaiadError
from naiad_ensembles.conditions import LONGEST, MOST_PARTS, Condition
from naiad_ensembles.operations import FUNCTIONS


def tensor(name: str, values: Any, dtype: Any, datatype: str | None = None) -> Tensor:
    return Tensor.from_numpy(name, np.asarray(values, dtype), datatype)


TENSORS = {
    "x": tensor("x", [0.25, 0.75], np.float32),
    "n": tensor("n", [3], np.int32),
    "empty": tensor("empty", np.zeros((0, 4)), np.float32),
    "grid": tensor("grid", [[0, 1, 2], [3, 4, 5]], np.uint8),
    "text": tensor("text", [b"cat", "größe".encode()], object),
    "word": tensor("word", [b"yes"], object),
    "flags": tensor("flags", [True, False], np.bool_),
    "bf": tensor("bf", [0x3FC0], np.uint16, "BF16"),
    "in.put-1": tensor("in.put-1", [7], np.int64),
    "nan": tensor("nan", [np.nan], np.float32),
}
KNOWN = (*TENSORS, "absent", "more")
PARAMETERS: dict[str, Parameter] = {"mode": "fast", "limit": 2, "on": True, "ratio": 0.5}


def holds(text: str) -> bool:
    condition = Condition(text, KNOWN)
    assert condition.faults == ()
    return condition.holds(TENSORS, PARAMETERS)


@pytest.mark.parametrize(
    "text",
    [
        "True",
        "1",
        "'a'",
        "n",
        "n == 3",
        "3 == n",
        "n[0] == 3 and not n[0] != 3",
        "2 < n < 4",
        "max(x) > 0.5",
        "min(x) == 0.25",
        "max(1, n, 7.5) == 7.5",
        "min(n, 2) == 2",
        "sum(x) == 1 and mean(x) == 0.5",
        "any(x > 0.5) and not all(x > 0.5)",
        "all(x == x)",
        "x[0] < x[-1]",
        "x[1] - x[0] == 0.5",
        "shape(grid) == (2, 3) and shape(grid) == [2, 3]",
        "shape(grid)[1] == 3",
        "len(grid) == 2 and size(grid) == 6 and len('abc') == 3",
        "len(grid[1]) == 3",
        "grid[1, 2] == 5 and sum(grid[0]) == 3",
        "sum(grid + 255) == 15 + 6 * 255",
        "all(-grid <= 0) and -n == -3 and -1 < 0",
        "abs(-2) == 2 and all(abs(-grid) == grid)",
        "7 // 2 == 3 and 7 % 2 == 1 and 7 / 2 == 3.5",
        "size(empty) == 0 or max(empty) > 1",
        "sum(empty) == 0",
        "not any(empty) and all(empty)",
        "text[0] == 'cat' and text[1] == 'größe'",
        "any(text == 'cat') and 'cat' in text and 'dog' not in text",
        "word == 'yes' and 'es' in word[0]",
        "word in ('yes', 'no') and n in [1, 2, 3] and 2 in (1, 2)",
        "flags[0] and not flags[1] and any(flags) and sum(flags) == 1",
        "bf == 1.5",
        "tensor['in.put-1'] == 7",
        "parameters['mode'] == 'fast' and parameters['on']",
        "size(x) >= parameters['limit'] and parameters[\"ratio\"] * 2 == 1",
        "given(x) and not given(absent)",
        "given(parameters['mode']) and not given(parameters['other'])",
        "given(tensor['in.put-1'])",
        "not given(absent) or absent > 1",
        "nan != nan",
        "n / 0 > 1000",
        "\n  n == 3\n  and True\n",
        "-1 in (-1, 1)",
    ],
)
def test_it_holds(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "''",
        "n != 3",
        "absent",
        "not absent",
        "absent > 1 or True",
        "parameters['other'] == 1",
        "not (parameters['other'] == 1)",
        "nan > 0",
        "given(absent) and absent > 1",
        "shape(grid) == (3, 2)",
    ],
)
def test_it_does_not_hold(text: str) -> None:
    assert not holds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "2 elements are neither true nor false"),
        ("x > 0.5", "2 elements are neither true nor false"),
        ("empty", "0 elements"),
        ("x[2] > 1", r"there is no element \[2\] where the size is \[2\]"),
        ("x[0, 0] > 1", r"there is no element \[0, 0\] where the size is \[2\]"),
        ("shape(x)[4] > 1", r"there is no element \[4\] where the size is 1"),
        ("'abc'[1, 1] == 'a'", r"no element \[1, 1\]"),
        ("n[0][0] > 1", "has no element"),
        ("x[0.5] > 1", "has no element at 0.5"),
        ("x[n] > 1", "use whole numbers"),
        ("max(empty) > 1", "max of no elements"),
        ("1 / 0 > 1", "division by zero"),
        ("'a' + 'b' == 'ab'", "a string is no number"),
        ("'a' * 9999999999 == 'ab'", "a string is no number"),
        ("(1, 2) * 9999999 == 1", "a list is no number"),
        ("text + 1 == 1", "tensor 'text' is no number"),
        ("any(text)", "tensor 'text' is no number"),
        ("x == 'a'", r"a tensor of shape \[2\] and a string cannot be compared"),
        ("text == 1", r"cannot be compared"),
        ("text == x", r"cannot be compared"),
        ("x == (1, 2)", "cannot be compared"),
        ("1 < 'a'", "1 and a string cannot be compared"),
        ("all(x == grid)", r"shapes \[2\] and \[2, 3\] differ"),
        ("all(x[0] + grid[0] == x)", r"shapes \[3\] and \[2\] differ"),
        ("x in (1, 2)", "cannot be looked for"),
        ("1 in 2", "1 cannot be looked for in 2"),
        ("shape(1) == 1", "1 has no shape"),
        ("len(x[0]) == 1", "has no shape"),
        ("max((1, 'a')) == 1", "a string is no number"),
    ],
)
def test_what_cannot_be_worked_out_is_an_error(text: str, message: str) -> None:
    condition = Condition(text, KNOWN)
    assert condition.faults == ()
    with pytest.raises(NaiadError, match=message) as caught:
        condition.holds(TENSORS, PARAMETERS)

    assert caught.value.code is Code.INVALID_ARG and text in caught.value.message


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("boxes > 1", 1, "there is no tensor 'boxes'"),
        ("  x > 1 and boxes > 1", 13, "there is no tensor 'boxes'"),
        ("'größe' == boxes", 12, "there is no tensor 'boxes'"),
        ("tensor['boxes'] > 1", 1, "there is no tensor 'boxes'"),
        ("size > 1", 1, "there is no tensor 'size'"),
        ("parameters > 1", 1, "there is no tensor 'parameters'"),
        ("parameters[n] > 1", 1, "parameters needs a name"),
        ("parameters[1] > 1", 1, "parameters needs a name"),
        ("x.shape == 1", 1, "Attribute is not allowed"),
        ("x ** 2 == 1", 1, "Pow is not allowed"),
        ("x << 2 == 1", 1, "LShift is not allowed"),
        ("x is 1", 1, "Is is not allowed"),
        ("~x", 1, "Invert is not allowed"),
        ("+x", 1, "UAdd is not allowed"),
        ("[y for y in x]", 1, "ListComp is not allowed"),
        ("(lambda: 1)()", 1, "there is no such function"),
        ("open('x')", 1, "there is no such function"),
        ("__import__('os').system('ls')", 1, "there is no such function"),
        ("x.__class__()", 1, "there is no such function"),
        ("f'{x}'", 1, "JoinedStr is not allowed"),
        ("x[0:1] == 1", 3, "Slice is not allowed"),
        ("1 if x else 2", 1, "IfExp is not allowed"),
        ("{1: 2}", 1, "Dict is not allowed"),
        ("(y := 1)", 2, "NamedExpr is not allowed"),
        ("[x, 1] == 1", 1, "a list may hold numbers and strings only"),
        ("[-x] == 1", 1, "a list may hold numbers and strings only"),
        ("size(*x)", 6, "Starred is not allowed"),
        ("size(x, x) > 1", 1, "size takes 1 without names"),
        ("size(value=x) > 1", 1, "size takes 1 without names"),
        ("max() > 1", 1, "max takes 1 to 8 without names"),
        ("given(1)", 1, "given takes a tensor or a parameter"),
        ("given(x[0])", 1, "given takes a tensor or a parameter"),
        ("None == x", 1, "None is no number, string, True or False"),
        ("1j == x", 1, "1j is no number, string, True or False"),
        ("b'a' == x", 1, "b'a' is no number, string, True or False"),
        ("99999999999999999999 == x", 1, "the number is greater than 9223372036854775807"),
        ("x" * (LONGEST + 1), 1, f"is longer than {LONGEST} characters"),
        ("n" + "+n" * 100, 1, f"has 201 parts, more than {MOST_PARTS}"),
    ],
)
def test_what_is_not_an_expression_is_a_fault(text: str, column: int, message: str) -> None:
    condition = Condition(text, KNOWN)

    assert [(fault.column, fault.message) for fault in condition.faults] == [(column, message)]
    assert not condition.holds(TENSORS, PARAMETERS)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", [1]),
        ("x >", [3, 4]),
        ("  x > 1 2", [9, 11]),
        ("x > 1; y", [6]),
        ("x = 1", [1, 3]),
        ("'größe' == (1", [12]),
        ("\0", [1]),
        ("(" * 300 + "1" + ")" * 300, [201]),
    ],
)
def test_what_python_cannot_read_is_a_fault(text: str, columns: list[int]) -> None:
    """Its parsers differ in what they say and in where they see the mistake."""
    (fault,) = Condition(text, KNOWN).faults

    assert fault.column in columns and fault.message


def test_all_faults_are_told_at_once() -> None:
    faults = Condition("boxes > 1 and x.y or open(3)", KNOWN).faults

    assert [fault.column for fault in faults] == [1, 15, 22]


def test_the_tensors_of_an_expression_are_known() -> None:
    text = "size(grid) > n and tensor['in.put-1'] or given(absent)"

    assert Condition(text, KNOWN).tensors == ("grid", "n", "in.put-1", "absent")


@pytest.mark.parametrize("text", ["shape(big) == (1, 2)", "size(big) == 2", "given(big)"])
def test_a_shape_needs_no_data(text: str) -> None:
    class Sealed(Tensor):
        def numpy(self) -> Any:
            raise AssertionError

    big = Sealed("big", "FP32", (1, 2), None, b"")

    assert Condition(text, ["big"]).holds({"big": big}, {})


# -- whatever is written

ATOMS = ["0", "1", "-2", "2.5", "'a'", "True", "x", "n", "grid", "text", "flags", "absent", "empty"]
ATOMS += ["word", "bf", "nan", "parameters['mode']", "parameters['none']", "(1, 'a')", "[]"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "in", "not in"]


def expressions() -> st.SearchStrategy[str]:
    def larger(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(smaller, st.sampled_from([*OPERATORS, "and", "or"]), smaller).map(
                lambda parts: f"({' '.join(parts)})"
            ),
            smaller.map(lambda part: f"(not {part})"),
            smaller.map(lambda part: f"(-{part})"),
            st.tuples(smaller, smaller).map(lambda parts: f"{parts[0]}[{parts[1]}]"),
            st.tuples(st.sampled_from(sorted(FUNCTIONS)), smaller).map(
                lambda parts: f"{parts[0]}({parts[1]})"
            ),
        )

    return st.recursive(st.sampled_from(ATOMS), larger, max_leaves=12)


@given(expressions())
@example("mean((" + " * ".join(["9223372036854775807"] * 60) + ", 1)) > 1")
@example("x[" + " * ".join(["9223372036854775807"] * 3) + "] > 1")
def test_an_expression_is_true_or_false_or_an_error(text: str) -> None:
    condition = Condition(text, KNOWN)
    try:
        assert condition.holds(TENSORS, PARAMETERS) in (True, False)
    except NaiadError as error:
        assert error.code is Code.INVALID_ARG and condition.faults == ()


NUMBERS = ["0", "1", "2", "7", "2.5", "x[0]", "x[1]", "n[0]", "grid[1, 2]", "size(grid)"]


def arithmetic() -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "//", "%", "==", "<", ">="])
    return st.recursive(
        st.sampled_from(NUMBERS),
        lambda smaller: st.tuples(smaller, operators, smaller).map(
            lambda parts: f"({' '.join(parts)})"
        ),
        max_leaves=10,
    )


@given(arithmetic())
def test_arithmetic_is_that_of_python(text: str) -> None:
    names: dict[str, Any] = {"x": [0.25, 0.75], "n": [3], "grid": {(1, 2): 5}, "size": lambda _: 6}
    try:
        expected = bool(eval(text, {"__builtins__": {}}, names))
    except ZeroDivisionError:
        with pytest.raises(NaiadError, match="division by zero"):
            holds(text)
        return

    assert holds(text) == expected


@given(st.text(alphabet="xn01.'\"()[]{}:=<>!+-*/%,_ abefilmorst\\@#\n", max_size=40))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_text_is_taken_or_refused(text: str) -> None:
    condition = Condition(text, KNOWN)
    for fault in condition.faults:
        assert 1 <= fault.column <= len(text) + 2
    try:
        condition.holds(TENSORS, PARAMETERS)
    except NaiadError:
        assert condition.faults == ()


SNIPPETS = [
    "print(open('x'))",
    "x.__class__.__mro__[1].__subclasses__()",
    "(lambda f: f(f))(lambda f: f(f))",
    "[x for x in x if x]",
    "{**x}",
    "max(x, key=len)",
    "x if n else (yield)",
    "f'{x!r:>{n}}'",
    "(await x)",
    "exec('1')",
    "9 ** 9 ** 9",
    "x @ x",
    "1 << 999999",
    "x[::1]",
    "globals()['x']",
]


def kinds() -> list[str]:
    return sorted({type(n).__name__ for text in SNIPPETS for n in ast.walk(ast.parse(text))})


@pytest.mark.parametrize("text", SNIPPETS)
def test_what_would_do_more_than_compute_is_refused(text: str) -> None:
    assert Condition(text, KNOWN).faults


@given(st.integers(0, 10_000))
def test_mixed_up_snippets_do_nothing(seed: int) -> None:
    chance = random.Random(seed)
    pieces = [
        piece for text in chance.sample(SNIPPETS, 3) for piece in (text, chance.choice(ATOMS))
    ]
    text = f" {chance.choice(OPERATORS)} ".join(pieces)

    assert Condition(text, KNOWN).faults
