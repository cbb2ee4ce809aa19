"""Templates that loop, grow or break out: each ends soon, with a clear error."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.text.sandbox import Meter, compiled, render

LONG, LARGE, WIDTH = "takes too long", "makes too much text", "such a width"
BIG = "{% set x = 'a' * 1000000 %}"
MESSAGES = [{"role": "user", "content": "hi"}]


def run(source: str, seconds: float = 0.05, **variables: Any) -> str:
    """What a template makes in a little time."""
    return render(compiled(source), {"messages": MESSAGES, **variables}, Meter(seconds=seconds))


def grow(expression: str, start: str = "'ab'") -> str:
    """A template that applies an expression to its own result, 99 times."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(99) %}}"
        f"{{% set ns.x = {expression} %}}{{% endfor %}}{{{{ ns.x }}}}"
    )


LOOP = "{% for a in range(99999) %}"
LOOPS = {
    "nested loops": f"{LOOP * 3}{'{% endfor %}' * 3}",
    "a loop that skips": f"{LOOP}{LOOP[:-3]} if false %}}{'{% endfor %}' * 2}",
    "a loop of heavy calls": f"{BIG}{LOOP}{{% set y = x.count('ab') %}}{{% endfor %}}",
    "loops by filters": "{% set l = range(99999) | list %}{{ l | select('in', l[::-1]) | list }}",
    "macros": (
        "{% macro m(d) %}{% if d %}{{ m(d - 1) }}{{ m(d - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "blocks": (
        "{% set n = namespace(d=0) %}{% block a %}{% set n.d = n.d + 1 %}{% if n.d < 9**6 %}"
        "{{ self.b() }}{{ self.b() }}{% endif %}{% endblock %}"
        f"{{% if false %}}{{% block b %}}{LOOP}{{% endfor %}}{{% endblock %}}{{% endif %}}"
    ),
    "callers": (
        f"{{% macro m() %}}{LOOP}{{{{ caller() }}}}{{% endfor %}}{{% endmacro %}}"
        f"{{% call m() %}}{LOOP}{{% endfor %}}{{% endcall %}}"
    ),
    "lists in lists": grow("[ns.x, ns.x]"),
    "tuples in tuples": grow("(ns.x, ns.x)"),
    "dictionaries in dictionaries": grow("{'a': ns.x, 'b': ns.x}"),
    "dictionaries by calls": grow("dict(a=ns.x, b=ns.x)"),
    "cycles": grow("cycler(ns.x, ns.x).items"),
    "arguments": (
        "{% macro m(d) %}{% if d %}{{ m(d - 1, varargs, varargs) }}{% else %}{{ varargs }}"
        "{% endif %}{% endmacro %}{{ m(60, 1, 2) }}"
    ),
}

SIZES = {
    "sums of texts": grow("ns.x + ns.x"),
    "joined texts": grow("ns.x ~ ns.x"),
    "sums of lists": grow("ns.x + ns.x", "['ab']"),
    "blocks of text": grow("ns.x").replace(
        "{% set ns.x = ns.x %}", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"
    ),
    "a product": "{{ 'a' * 10 ** 12 }}",
    "a product of lists": "{{ 10 ** 12 * ['a'] }}",
    "a replacement": f"{BIG}{{{{ x.replace('a', x) }}}}",
    "a replacement by a filter": f"{BIG}{{{{ x | replace('', x) }}}}",
    "a joined text": f"{BIG}{{{{ x.join(x) }}}}",
    "a list joined by a filter": f"{BIG}{{{{ ([x] * 999) | join }}}}",
    "lists joined": f"{BIG}{{{{ [[x] * 999] | map('join') | list }}}}",
    "an indentation": "{{ ('\n' * 1000000) | indent(1000) }}",
    "an indentation by text": f"{BIG}{{{{ x.replace('a', '\n') | indent(x) }}}}",
    "output": f"{BIG}{LOOP}{{{{ x }}}}{{% endfor %}}",
    "the output of a macro": (
        f"{{% macro m(x) %}}{LOOP}{{{{ x }}}}{{% endfor %}}{{% endmacro %}}{BIG}"
        "{% set y = m(x) %}"
    ),
    "a list that is kept": f"{BIG}{grow('ns.x + [x ~ i]', '[]')}",
}

NUMBERS = {
    "{{ 9 ** 9 ** 9 ** 9 ** 9 }}": "a number gets too large",
    grow("ns.x * ns.x", "9"): "a number gets too large",
    "{{ 'a' | center(10 ** 9) }}": "too large a number",
    "{{ 'a'.ljust(10 ** 9) }}": "too large a number",
    "{{ '1'.zfill(width=10 ** 9) }}": "takes no keyword arguments|too large a number",
    "{{ [1] | slice(10 ** 9) | list }}": "too large a number",
    "{{ [1] | batch(10 ** 9, 'x') | list }}": "too large a number",
    "{{ messages | tojson(indent=10 ** 9) }}": "too large a number",
    "{{ messages | tojson(indent='a' * 1000) }}": "up to 100 characters",
    "{{ '%1000000000d' % 1 }}": WIDTH,
    "{{ '%*d' % (1000000000, 1) }}": WIDTH,
    "{{ '%(a)-1000000000d' | format(a=1) }}": WIDTH,
    "{{ '{:1000000000}'.format(1) }}": WIDTH,
    "{{ '{:{}}'.format(1, 9) }}": WIDTH,
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 9}) }}": WIDTH,
    "{{ [[1]] | sum(start=[]) }}": "only numbers",
    "{{ '\t'.expandtabs(9) }}": "unsafe",
    "{{ (1).to_bytes(1000000000, 'big') }}": "unsafe",
}

ESCAPES = {
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{{ namespace.__init__(1) }}": "unsafe",
    "{% include 'x' %}": "no loader",
    "{{ raise_exception('no, thanks') }}": "says: no, thanks",
    "{{ 1 / 0 }}": "failed: ZeroDivisionError: division by zero",
    "{{ messages[0].a.b }}": "has no attribute 'a'",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ strftime_now(5) }}": "failed: TypeError",
}


@pytest.mark.parametrize("what", LOOPS)
def test_what_loops_ends(what: str) -> None:
    with pytest.raises(NaiadError, match=f"{LONG}|{LARGE}") as caught:
        run(LOOPS[what])

    assert caught.value.code == Code.INVALID_ARG


@pytest.mark.parametrize("what", SIZES)
def test_what_grows_is_refused(what: str) -> None:
    with pytest.raises(NaiadError, match=LARGE):
        run(SIZES[what], seconds=2)


@pytest.mark.parametrize(("source", "said"), [*NUMBERS.items(), *ESCAPES.items()])
def test_what_is_too_wide_or_reaches_out_is_refused(source: str, said: str) -> None:
    with pytest.raises(NaiadError, match=said) as caught:
        run(source)

    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "messages")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for %}", "line 1 of the chat template: Expected an expression"),
        ("\n{{ 'x' | wordwrap }}", "line 2 of the chat template: No filter named 'wordwrap'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% if 1 %}" * 300 + "{% endif %}" * 300, "nested too deeply"),
        ("{% for a in [1] %}" * 60 + "{% endfor %}" * 60, "nested too deeply"),
        ("x" * (1 << 17), "has over"),
    ],
)
def test_what_is_no_template_is_refused(source: str, said: str) -> None:
    with pytest.raises(NaiadError, match=said) as caught:
        compiled(source)

    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "chat_template")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for i in [1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "2"),
        ("{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}", "a1"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}", "12"),
        ("{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}", "1"),
        ("{{ 'a-b' | replace('-', '+', 1) }} {{ ['a', 1] | join(', ') }}", "a+b a, 1"),
        ("{{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }}", "3"),
        ("{{ messages | map(attribute='role') | join }}", "user"),
        ("{{ [{'a': 'x'}] | join('', attribute='a') }}", "x"),
        ("{{ '%s is %d%%' % ('x', 5) }} {{ '{} {a:>3}'.format(1, a=2) }}", "x is 5% 1   2"),
        ("{{ '%05.1f' | format(3.14159) }}", "003.1"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ {'b': '<é>', 'a': [1]} | tojson }}", '{"b": "<é>", "a": [1]}'),
        ("{{ {'a': 1} | tojson(indent=1, separators=(',', ':')) }}", '{\n "a":1\n}'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true) }}",
         '{"a": "\\u00e9", "b": 1}'),
        ("{{ ', '.join(['a', 'b']) }}", "a, b"),
        ("{% set passes = 1 %}{% set context = 2 %}{% for i in [1] %}{{ i }}{% endfor %}", "1"),
        ("{{ strftime_now('%%') }}{{ dict(a=1)['a'] }}", "%1"),
        ("{{ 2 ** 10 + 3 * 4 % 5 }} {{ [1] + [2] }} {{ 'ab' * 2 }}", "1026 [1, 2] abab"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
    ],
)  # fmt: skip
def test_what_templates_are_written_in(source: str, expected: str) -> None:
    assert run(source) == expected


def test_long_chats_have_time_and_room() -> None:
    source = "{% for m in messages %}{{ '<' ~ m.role ~ '>' + m.content | trim + '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 2000}] * 1000

    text = render(compiled(source), {"messages": messages}, Meter())

    assert len(text) > 9_000_000


def test_renderings_side_by_side_have_limits_of_their_own() -> None:
    source = f"{LOOP}{{% endfor %}}{{{{ messages | tojson }}}}"

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: run(source, seconds=30), range(4)))

    assert texts == [json.dumps(MESSAGES)] * 4
