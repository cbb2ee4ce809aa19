"""Bodies of any form: they are read, or refused with the place of the mistake."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.http.openai import chat, completions, embeddings
from naiad.http.openai.fields import Fields
from naiad_backends.errors import Code, NaiadError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["user", "text", "auto", "none"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage", "1"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)

NAMES = (
    "model n stream stream_options stop stop_token_ids logprob_token_ids bad_words logit_bias"
    " logprobs prompt_logprobs max_tokens priority cache_salt temperature top_p top_k seed echo"
    " return_token_ids truncate_prompt_tokens response_format suffix tools tool_choice top_logprobs"
    " max_completion_tokens chat_template_kwargs documents reasoning_effort add_generation_prompt"
    " continue_final_message encoding_format dimensions"
)

READERS: dict[str, tuple[Callable[[Fields], Any], dict[str, Any]]] = {
    "completions": (completions.read, {"prompt": "a"}),
    "chat": (chat.read, {"messages": [{"role": "user", "content": "a"}]}),
    "embeddings": (embeddings.read, {"input": "a"}),
}


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=200)
@given(data=st.data())
def test_anything_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    read, good = READERS[kind]
    names = st.sampled_from([*NAMES.split(), *good])
    document = good | data.draw(st.dictionaries(names, VALUES, max_size=3))
    try:
        wish = read(Fields(document))
    except NaiadError as error:
        assert error.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
        place = error.field.partition(".")[0].partition("[")[0]
        assert place in document
    else:
        if kind != "embeddings":
            # What goes to the model has a JSON form, infinities left out.
            json.dumps(wish.sampling, allow_nan=False)


@pytest.mark.parametrize("kind", READERS)
def test_null_counts_as_left_out(kind: str) -> None:
    read, good = READERS[kind]
    assert read(Fields(good | dict.fromkeys(NAMES.split()))) == read(Fields(good))
