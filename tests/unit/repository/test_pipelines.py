"""What steps of an ensemble say in config.yaml beyond Triton's fields."""

import pytest

from naiad.repository.mistakes import ConfigError
from naiad.repository.pipelines import StepExtras, StepMap
from naiad.repository.yamlconf import parse

HEAD = "platform: ensemble\nensemble_scheduling:\n  step:\n    - model_name: m\n"
PATH = "ensemble_scheduling.step[0]"


def extras(text: str) -> StepExtras:
    return parse(HEAD + text)[2][PATH]


def test_all_fields() -> None:
    text = """      when: any(x > 0.5)
      map: { over: [crops, sizes], as_batch: true, pad: -1, max_items: 10 }
      retries: 2
      fallback: [other, null]
"""
    assert extras(text) == StepExtras(
        "any(x > 0.5)", StepMap(("crops", "sizes"), True, -1, 10), 2, ("other", None)
    )


def test_a_step_without_any_has_none() -> None:
    assert parse(HEAD)[2] == {}


def test_the_rest_of_the_step_is_read_as_ever() -> None:
    message, lines, _ = parse(HEAD + "      when: x\n      model_version: 3\n")
    assert message.ensemble_scheduling.step[0].model_version == 3
    assert lines[f"{PATH}.when"] == 5


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("when: [1]", "when"),
        ("when:", "when"),
        ("when: 3", "when"),
        ("retries: -1", "retries"),
        ("retries: 11", "retries"),
        ("retries: true", "retries"),
        ("retries: soon", "retries"),
        ("fallback: other", "fallback"),
        ("fallback: [null, other]", "fallback"),
        ("fallback: ['']", "fallback"),
        ("map: crops", "map"),
        ("map: {}", "map.over"),
        ("map: { over: crops }", "map.over"),
        ("map: { over: [] }", "map.over"),
        ("map: { over: [1] }", "map.over"),
        ("map: { over: [x], as_batch: 1 }", "map.as_batch"),
        ("map: { over: [x], pad: many }", "map.pad"),
        ("map: { over: [x], max_items: 0 }", "map.max_items"),
        ("map: { over: [x], max_items: 65537 }", "map.max_items"),
        ("map: { over: [x], along: 1 }", "map.along"),
    ],
)
def test_mistakes(text: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + f"      {text}\n")
    (mistake,) = caught.value.mistakes
    assert (mistake.path, mistake.line) == (f"{PATH}.{field}", 5)


def test_other_messages_do_not_have_them() -> None:
    with pytest.raises(ConfigError):
        parse("when: x")
