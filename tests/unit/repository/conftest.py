"""What the tests of the repository share: model folders on disk and random configurations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from naiad.repository import schema
from naiad.repository.layout import ModelFolder
from naiad_proto import model_config_pb2 as pb

MakeModel = Callable[..., ModelFolder]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a model folder into tmp_path: make_model(name, {relative path: text})."""

    def make(name: str, files: dict[str, str], repository: Path = tmp_path) -> ModelFolder:
        for relative, text in files.items():
            path = repository / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return ModelFolder.at(repository / name)

    return make


@pytest.fixture(scope="session")
def configs() -> SearchStrategy[pb.ModelConfig]:
    """Random ModelConfig messages: any field, any text, any number that fits."""
    return _configs()


@st.composite
def _configs(draw: st.DrawFn) -> pb.ModelConfig:
    config = pb.ModelConfig()
    _fill(draw, config, 6)
    return config


def _fill(draw: st.DrawFn, message: Message, most: int = 3) -> None:
    """Set some fields of a message, at most that many."""
    fields = {field.name: field for field in schema.descriptor(message).fields}
    if not fields:
        return
    for name in draw(st.sets(st.sampled_from(sorted(fields)), max_size=most)):
        field, value = fields[name], getattr(message, name)
        if schema.is_map(field):
            entry = schema.inner(field).fields_by_name
            for key in draw(st.sets(_SCALARS[entry["key"].type], max_size=2)):
                if schema.is_message(entry["value"]):
                    _fill(draw, value[key])
                else:
                    value[key] = draw(_scalar(entry["value"]))
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                if schema.is_message(field):
                    _fill(draw, value.add())
                else:
                    value.append(draw(_scalar(field)))
        elif schema.is_message(field):
            value.SetInParent()
            _fill(draw, value)
        else:
            setattr(message, name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from(sorted(field.enum_type.values_by_number))
    return _SCALARS[field.type]


_FLOATS = st.floats(allow_nan=False, width=32)
_SCALARS: dict[int, SearchStrategy[Any]] = {
    **{kind: st.integers(*limits) for kind, limits in schema.INTEGER_RANGES.items()},
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
    FieldDescriptor.TYPE_FLOAT: _FLOATS,
    FieldDescriptor.TYPE_DOUBLE: _FLOATS,
}
