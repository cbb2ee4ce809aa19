"""config.pbtxt: accepted is what protobuf accepts; every mistake is told with its line."""

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from naiad.repository.mistakes import ConfigError, line_of
from naiad.repository.pbtxt import parse, scan
from naiad_backends.errors import Code, NaiadError
from naiad_proto import model_config_pb2 as pb

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))

TRITON_CONFIGS = [
    """
name: "add_sub"
backend: "python"
max_batch_size: 64
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
        { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
         { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
""",
    """
name: "silero_dyn"
backend: "python"
max_batch_size: 32
input [ { name: "INPUT" data_type: TYPE_FP32 dims: [ 576 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { }
""",
    """
# every form that people use
name : 'forms' ; max_batch_size: 0x10,
input < name: "a" "b" 'c' data_type: 11 dims: -1 dims: [3, 010] >
input: { name: "d\\x41\\101\\n\\"" data_type: TYPE_STRING dims: [] dims: 1 optional: t }
parameters { key: "k" value: { string_value: "v # no comment" } }
parameters [ { key: "a.b[0]" value < string_value: "x" > } ]
sequence_batching { direct { minimum_slot_utilization: 1.5e-1f } state: [] }
version_policy { specific: { versions: [1,2] } }
optimization { graph : { level : -1 } }
output [ ] # nothing
""",
    "",
    "# only a comment",
]


@pytest.mark.parametrize("text", TRITON_CONFIGS)
def test_real_configurations(text: str) -> None:
    assert scan(text).mistakes == []
    assert parse(text)[0] == text_format.Parse(text, pb.ModelConfig())


@given(data=st.data(), one_line=st.booleans(), utf8=st.booleans(), pointy=st.booleans())
@relaxed
def test_all_that_protobuf_prints_is_accepted(
    configs: SearchStrategy[pb.ModelConfig],
    data: st.DataObject,
    one_line: bool,
    utf8: bool,
    pointy: bool,
) -> None:
    message = data.draw(configs)
    text = text_format.MessageToString(
        message,
        as_one_line=one_line,
        as_utf8=utf8,
        pointy_brackets=pointy,
        use_short_repeated_primitives=utf8,
        force_colon=pointy,
    )
    assert scan(text).mistakes == []
    assert parse(text)[0] == message


@given(data=st.data())
@relaxed
def test_mutated_texts_raise_nothing_but_our_error(
    configs: SearchStrategy[pb.ModelConfig], data: st.DataObject
) -> None:
    text = text_format.MessageToString(data.draw(configs))
    text = data.draw(st.sampled_from([text, *TRITON_CONFIGS]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        piece = data.draw(st.sampled_from([*"{}[]<>:,;#\"'\\-+.\n\0é", "", "name", " 1 "]))
        text = text[:start] + piece + text[end:]
    check_any(text)


@given(text=st.text(max_size=200))
@relaxed
def test_any_text_raises_nothing_but_our_error(text: str) -> None:
    check_any(text)


def check_any(text: str) -> None:
    """The scanner's verdict is protobuf's, and the error names a line that exists."""
    found = scan(text)
    try:
        message, _ = parse(text)
    except ConfigError as error:
        assert error.code is Code.INVALID_ARG
        assert all(0 <= m.line <= text.count("\n") + 1 for m in error.mistakes)
    else:
        assert found.mistakes == []
        assert message == text_format.Parse(text, pb.ModelConfig())


def mistakes_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [f"{mistake.line}: {mistake}" for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batchsize: 1", "1: max_batchsize: unknown field (did you mean 'max_batch_size'?)"),
        ("\ninput { shape: [1] }", "2: input[0].shape: unknown field (did you mean 'dims'?)"),
        (
            "input { name: 'a'\nmax_batch_size: 1\n}",
            "2: input[0].max_batch_size: unknown field ('max_batch_size' belongs further out: move"
            " it, or close what is open before it)",
        ),
        (
            "input { data_type: TYPE_FP33 }",
            "1: input[0].data_type: unknown value 'TYPE_FP33' (did you mean 'TYPE_FP32'?)",
        ),
        (
            'input { data_type: "TYPE_FP32" }',
            '1: input[0].data_type: unknown value "TYPE_FP32" (write it without quotes)',
        ),
        (
            "input { data_type: FP32 }",
            "1: input[0].data_type: unknown value 'FP32' (did you mean 'TYPE_FP32'?)",
        ),
        ("max_batch_size: four", "1: max_batch_size: expected an integer, found 'four'"),
        ("max_batch_size: 1.5", "1: max_batch_size: expected an integer, found '1.5'"),
        (
            'max_batch_size: "4"',
            '1: max_batch_size: expected an integer, found "4" (write it without quotes)',
        ),
        (
            "max_batch_size: 4000000000",
            "1: max_batch_size: 4000000000 is not in the range -2147483648 to 2147483647",
        ),
        ("name: silero", "1: name: expected a string, found 'silero' (write \"silero\")"),
        ("input { optional: yes }", "1: input[0].optional: expected true or false, found 'yes'"),
        ("name: 'a'\n\nname: 'b'", "3: name: given twice (first in line 1) (keep one of them)"),
        (
            "version_policy { all {} latest {} }",
            "1: version_policy.latest: cannot be given together with 'all' (keep 'all' or"
            " 'latest')",
        ),
        ("dynamic_batching {\n\n", "1: dynamic_batching: '{' is never closed (add '}')"),
        ("input [\n{ dims: 1 }\n", "1: input: '[' is never closed (add ']')"),
        ("input { dims: [ 1, 2 }", "1: input[0].dims: '[' is never closed (add ']')"),
        ("input [ { dims: 1 ]", "1: input[0]: '{' is never closed (add '}')"),
        ("dynamic_batching <\n}", "2: dynamic_batching: '<' is closed by '}' (use '>')"),
        ("name: 'a' }\n", "1: '}' closes nothing (remove it)"),
        (
            "name: 'a\nmax_batch_size: 1",
            "1: name: the string 'a is never closed (end it with ')",
        ),
        (
            'name: "a\\d"',
            "1: name: unknown escape '\\d' in \"a\\d\" (write '\\\\' for a backslash)",
        ),
        ('name: "\\xff"', '1: name: "\\xff" is not UTF-8 text'),
        ("max_batch_size 4", "1: max_batch_size: ':' is missing after 'max_batch_size'"),
        ("max_batch_size:\nname: 'a'", "1: max_batch_size: the value is missing"),
        ("input { dims: [1 2] }", "1: input[0].dims: ',' is missing before '2'"),
        (
            "input { dims: [1, 2,] }",
            "1: input[0].dims: no value follows the last ',' (remove that ',')",
        ),
        ("name: ['a']", "1: name: takes one value, not a list (remove the brackets)"),
        ("dynamic_batching: true", "1: dynamic_batching: expected '{', found 'true'"),
        ("max_batch_size: { a: 1 }", "1: max_batch_size: expected an integer, found '{'"),
        ("= 4", "1: expected a field's name, found '='"),
        ("[x.y]: { a: 1 }", "1: expected a field's name, found '['"),
        (
            "parameters { key: 'k' value { text: 'v' } }",
            "1: parameters[0].value.text: unknown field (the fields here are string_value)",
        ),
    ],
)
def test_a_mistake_is_told_first_and_with_its_line(text: str, expected: str) -> None:
    assert mistakes_of(text)[0].startswith(expected)


def test_every_mistake_is_told_at_once() -> None:
    text = """
name: "a"
max_batchsize: 8
input [
  { name: "x" data_type: TYPE_FP33 dims [ 1 ] },
  { name: "y data_type: TYPE_FP32 },
  { dims: [ -1, "3" ] }
]
instance_group { count: two }
unknown_one: [ { a: 1 }, { b: "}" } ]
unknown_two < c: [ 1 ] >
max_batch_size: 4
max_batch_size: 8
"""
    lines = [line.split(":")[0] for line in mistakes_of(text)]
    assert lines == ["3", "5", "5", "6", "7", "9", "10", "11", "13"]


def test_the_error_names_the_file_the_line_and_the_path() -> None:
    with pytest.raises(NaiadError) as caught:
        parse('name: "a"\ninput { dims: "3" }', "configs/cpu.pbtxt")
    assert caught.value.field == "configs/cpu.pbtxt:2"
    assert caught.value.message.startswith("input[0].dims[0]: expected an integer")


def test_lines_of_fields() -> None:
    _, lines = parse(
        """name: "a"
input [
  { name: "x"
    dims: [
      1,
      2 ] },
  {
    name: "y" }
]
parameters {
  key: "thread.count[0]"
  value {
    string_value: "4" } }
"""
    )
    assert lines["input"] == 2
    assert lines["input[0]"] == 3
    assert lines["input[0].dims"] == 4
    assert lines["input[0].dims[1]"] == 6
    assert lines["input[1].name"] == 8
    assert lines['parameters["thread.count[0]"]'] == 10
    assert lines['parameters["thread.count[0]"].string_value'] == 13


def test_a_field_that_is_not_in_the_file_gets_the_line_around_it() -> None:
    _, lines = parse('name: "a"\ninput {\n  name: "x"\n}\n')
    assert line_of("input[0].reshape.shape[2]", lines) == 2
    assert line_of('parameters["x"].string_value', lines) == 0
    assert line_of("", lines) == 0


def test_a_default_given_before_the_value_is_not_twice() -> None:
    assert parse("max_batch_size: 0 max_batch_size: 4")[0].max_batch_size == 4


def test_deep_nesting_is_only_a_mistake() -> None:
    assert mistakes_of("x: " + "{ a " * 50_000)[0].startswith("1: x: unknown field")


def test_long_numbers_are_only_a_mistake() -> None:
    assert "max_batch_size" in mistakes_of("max_batch_size: " + "9" * 10_000)[0]
    assert "not in the range" in mistakes_of("max_batch_size: " + "9" * 1000)[0]
