"""How texts are cut into words: as transformers does, and as the models' own tokenizers do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from naiad_backends.llm.text.pretokenizers import PRE_TOKENIZERS

SAMPLES = "abZéßǄʰª漢ひ한ก\u0301😀\u200d012½Ⅷ٣ \t\r\n\xa0\u3000'sSlLdD!./-_$^`~|<"
TEXTS = st.text(st.sampled_from(SAMPLES), max_size=20) | st.text(max_size=20)


def words(cutter: pre_tokenizers.PreTokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words of a text, and where they are."""
    found: list[tuple[str, tuple[int, int]]] = cutter.pre_tokenize_str(text)
    return found


Pair = tuple[pre_tokenizers.PreTokenizer, pre_tokenizers.PreTokenizer]


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """Ours and that of transformers, for each name that it knows."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = {
        name: pre_tokenizers.Split(Regex(expression), "isolated")
        for name, expression in GGUF_PRE_TOKENIZER_SPLITS.items()
    }
    return {
        name: (PRE_TOKENIZERS[name].steps(), pre_tokenizers.Sequence([split, spell]))
        for name, split in splits.items()
    }


@given(text=TEXTS)
def test_words_are_those_of_transformers(pairs: dict[str, Pair], text: str) -> None:
    for name, (ours, theirs) in pairs.items():
        assert words(ours, text) == words(theirs, text), name


@given(text=TEXTS)
def test_words_are_those_of_the_library_where_it_knows_the_way(text: str) -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)

    assert words(PRE_TOKENIZERS["gpt-2"].steps(), text) == words(gpt2, text)
    smollm = pre_tokenizers.Sequence([digits, gpt2])
    assert words(PRE_TOKENIZERS["smollm"].steps(), text) == words(smollm, text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", ["It", "'", "s", "Ġ", "123", "4", "Ġkm", "!!", "Ċ", "Ġok"]),
        ("gpt-2", ["It", "'s", "Ġ1234", "Ġkm", "!!", "Ċ", "Ġok"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġkm", "!!", "Ċ", "Ġok"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "4", "Ġkm", "!!Ċ", "Ġok"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġkm", "!!Ċ", "Ġok"]),
        ("tekken", ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġkm", "!!Ċ", "Ġok"]),
        ("gpt-4o", ["It's", "Ġ", "123", "4", "Ġkm", "!!Ċ", "Ġok"]),
        ("deepseek-llm", ["It", "'", "s", "Ġ", "1234", "Ġkm", "!!", "Ċ", "Ġok"]),
        ("deepseek-coder", ["It", "'", "s", "Ġ", "1", "2", "3", "4", "Ġkm", "!!", "Ċ", "Ġok"]),
        ("deepseek-v3", ["It", "'s", "Ġ", "123", "4", "Ġkm", "!!Ċ", "Ġok"]),
        ("falcon", ["It", "'", "s", "Ġ", "123", "4", "Ġkm", "!!", "Ċ", "Ġok"]),
    ],
)
def test_each_family_has_its_own_way(name: str, expected: list[str]) -> None:
    assert [w for w, _ in words(PRE_TOKENIZERS[name].steps(), "It's 1234 km!!\n ok")] == expected


def test_every_way_loses_nothing() -> None:
    text = "It's 1234 km!!\n\n  漢字 é\u0301 \U0001f600"
    for name, way in PRE_TOKENIZERS.items():
        spans = [span for _, span in words(way.steps(), text)]
        assert "".join(text[start:end] for start, end in spans) == text, name
