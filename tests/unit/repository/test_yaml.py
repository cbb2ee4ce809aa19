"""config.yaml: the same schema, friendlier names, and every mistake with its line."""

import json
from typing import Any

import pytest
import yaml
from google.protobuf import json_format, text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from naiad.repository.jsonconf import to_json
from naiad.repository.mistakes import ConfigError
from naiad.repository.yamlconf import parse
from naiad_proto import model_config_pb2 as pb

relaxed = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))

CONFIG = """\
name: detector
backend: onnxruntime
max_batch_size: 8
input:
  - {name: image, data_type: fp32, dims: [3, -1, -1], format: nchw}
  - name: label
    data_type: BYTES
    dims: [1]
    optional: yes
output:
  - {name: score, data_type: TYPE_FP32, dims: [1]}
instance_group:
  - {kind: kind_cpu, count: 2}
dynamic_batching:
version_policy: {specific: {versions: [1, 0x3]}}
parameters:
  intra_op_thread_count: {string_value: 4}
  ratio: {string_value: 1.10}
"""
TEXT = """
name: "detector" backend: "onnxruntime" max_batch_size: 8
input { name: "image" data_type: TYPE_FP32 dims: [3, -1, -1] format: FORMAT_NCHW }
input { name: "label" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "score" data_type: TYPE_FP32 dims: 1 }
instance_group { kind: KIND_CPU count: 2 }
dynamic_batching { }
version_policy { specific { versions: [1, 3] } }
parameters { key: "intra_op_thread_count" value { string_value: "4" } }
parameters { key: "ratio" value { string_value: "1.10" } }
"""


def mistakes_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [f"{mistake.line}: {mistake}" for mistake in caught.value.mistakes]


def test_a_delay_that_the_server_chooses() -> None:
    message, _, _ = parse("dynamic_batching: {max_queue_delay_microseconds: auto}")
    assert message.HasField("dynamic_batching")
    assert message.dynamic_batching.max_queue_delay_microseconds == 0
    assert message.parameters["max_queue_delay_microseconds"].string_value == "auto"
    assert mistakes_of("dynamic_batching: {max_queue_delay_microseconds: soon}")
    assert mistakes_of("max_batch_size: auto")


def test_says_the_same_as_the_text_format() -> None:
    message, _, _ = parse(CONFIG)
    assert message == text_format.Parse(TEXT, pb.ModelConfig())


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", "{}"])
def test_empty_files_are_empty_configurations(text: str) -> None:
    assert parse(text) == (pb.ModelConfig(), {}, {})


@pytest.mark.parametrize("key", ["1", "'1'", '"1"'])
def test_a_numbers_quotes_do_not_matter_in_a_key(key: str) -> None:
    text = f"dynamic_batching: {{priority_queue_policy: {{{key}: {{max_queue_size: 4}}}}}}"
    policies = parse(text)[0].dynamic_batching.priority_queue_policy
    assert policies[1].max_queue_size == 4


@given(data=st.data(), flow=st.booleans())
@relaxed
def test_reads_what_the_server_prints(
    configs: SearchStrategy[pb.ModelConfig], data: st.DataObject, flow: bool
) -> None:
    message = data.draw(configs)
    text = yaml.safe_dump(to_json(message), default_flow_style=flow)
    assert parse(text)[0] == message


@given(data=st.data())
@relaxed
def test_mutated_texts_raise_nothing_but_our_error(data: st.DataObject) -> None:
    text = CONFIG
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        pieces = [*"{}[]:,-#\"'&*!|>%@`\\\n\t\0é", "", " ", "<<: ", "!!int ", "\ud800", "0b", "~"]
        text = text[:start] + data.draw(st.sampled_from(pieces)) + text[end:]
    check_any(text)


@given(text=st.text(max_size=100))
@relaxed
def test_any_text_raises_nothing_but_our_error(text: str) -> None:
    check_any(text)


def check_any(text: str) -> None:
    try:
        message, _, _ = parse(text)
    except ConfigError as error:
        assert all(0 <= m.line <= len(text.splitlines()) + 1 for m in error.mistakes)
    else:
        assert isinstance(message, pb.ModelConfig)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nmax_batchsize: 1", "2: max_batchsize: unknown field (did you mean"),
        ("name: a\nname: b", "2: name: given twice (first in line 1)"),
        ("max_batch_size: four", "1: max_batch_size: expected an integer, found 'four'"),
        ("max_batch_size: 1.5", "1: max_batch_size: expected an integer, found '1.5'"),
        ("max_batch_size: '4'", "1: max_batch_size: expected an integer, found '4'"),
        ("max_batch_size: [4]", "1: max_batch_size: expected an integer, found a list"),
        ("max_batch_size: 0b_", "1: max_batch_size: expected an integer, found '0b_'"),
        ("max_batch_size: 5000000000", "1: max_batch_size: 5000000000 is not in the range"),
        ("max_batch_size:", "1: max_batch_size: the value is missing"),
        ("name: [a]", "1: name: expected a string, found a list"),
        ("name: !!binary aGk=", "1: name: expected a string"),
        ('name: "\\ud800"', "1: name: expected a string, found '?'"),
        ('"\\ud800": 1', "1: a key must be a word, found '?'"),
        ("? [a]\n: 1", "1: a key must be a word, found a list"),
        ("input: {name: a}", "1: input: expected a list, found fields (write [ … ])"),
        ("input:\n  - name: a\n    dims: 3", "3: input[0].dims: expected a list, found '3'"),
        ("input:\n- dims: [1,\n    x]", "3: input[0].dims[1]: expected an integer"),
        ("input:\n- data_type: FP33", "2: input[0].data_type: unknown value 'FP33'"),
        ("input:\n- optional: maybe", "2: input[0].optional: expected true or false"),
        ("dynamic_batching: true", "1: dynamic_batching: expected fields, found 'true'"),
        ("parameters: [a]", "1: parameters: expected keys and values, found a list"),
        ("parameters: {k: v}", "1: parameters[\"k\"]: expected fields, found 'v'"),
        ("version_policy:\n  all:\n  latest:", "3: version_policy.latest: cannot be given"),
        ("input:\n- max_batch_size: 1", "2: input[0].max_batch_size: unknown field ("),
        ("<<: {name: a}", "1: <<: unknown field"),
        ("- a\n- b", "1: expected fields, found a list"),
        ("name: 'a\n", "2: is no YAML: while scanning a quoted scalar found unexpected end"),
        ("a: 1\n---\nb: 2", "2: is no YAML: expected a single document in the stream"),
        ("name: a\n\x01", "2: is no YAML: character '\\x01' is not allowed"),
        ("[" * 5000, "is nested too deeply"),
    ],
)
def test_a_mistake_is_told_first_and_with_its_line(text: str, expected: str) -> None:
    assert mistakes_of(text)[0].removeprefix("0: ").startswith(expected)


def test_every_mistake_is_told_at_once() -> None:
    text = """\
max_batchsize: 4
input:
  - {name: a, data_type: nothing, dims: [x]}
output:
  - {shape: [1]}
"""
    assert [line.split(":")[0] for line in mistakes_of(text)] == ["1", "3", "3", "5"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("1e-1", 0.1), ("1", 1.0), (".inf", float("inf")), ("-.inf", float("-inf"))],
)
def test_floats(text: str, value: float) -> None:
    message, _, _ = parse(f"sequence_batching: {{direct: {{minimum_slot_utilization: {text}}}}}")
    assert message.sequence_batching.direct.minimum_slot_utilization == pytest.approx(value)


def test_a_map_with_numbers_as_keys() -> None:
    message, lines, _ = parse(
        "dynamic_batching:\n  priority_queue_policy:\n    1: {timeout_action: delay}\n"
    )
    policy = message.dynamic_batching.priority_queue_policy[1]
    assert policy.timeout_action == pb.ModelQueuePolicy.DELAY
    assert lines['dynamic_batching.priority_queue_policy["1"].timeout_action'] == 3


def test_lines_of_fields() -> None:
    _, lines, _ = parse(CONFIG)
    assert lines["input[1]"] == 6
    assert lines["input[1].dims[0]"] == 8
    assert lines['parameters["ratio"].string_value'] == 18


@given(data=st.data())
@relaxed
def test_printed_json_is_protobufs_but_for_the_integers(
    configs: SearchStrategy[pb.ModelConfig], data: st.DataObject
) -> None:
    message = data.draw(configs)
    printed = to_json(message)
    theirs = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert _without_quotes(theirs, printed) == printed
    assert json_format.Parse(json.dumps(printed), pb.ModelConfig()) == message


def _without_quotes(theirs: Any, ours: Any) -> Any:
    """Their tree with quoted integers as numbers, where ours has numbers."""
    if isinstance(theirs, dict):
        return {key: _without_quotes(value, ours[key]) for key, value in theirs.items()}
    if isinstance(theirs, list):
        return [_without_quotes(a, b) for a, b in zip(theirs, ours, strict=True)]
    return int(theirs) if isinstance(ours, int) and isinstance(theirs, str) else theirs
