"""Folders as transformers writes them, and as people break them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.text import open_template, open_tokenizer

CORPUS = ["the quick brown fox", "jumps over the lazy dog", "héllo wörld 漢字 123"] * 3
TEXTS = ["", "the fox", "  héllo  漢字😀\n", "<s>the</s> [INST] dog", "<|user|>hi"]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's and Llama 3's kind."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return library


def sentencepiece() -> tokenizers.Tokenizer:
    """Llama 2's kind."""
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    return library


@pytest.fixture(params=[byte_level, sentencepiece])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that transformers has written."""
    from transformers import PreTrainedTokenizerFast

    build: Callable[[], tokenizers.Tokenizer] = request.param
    PreTrainedTokenizerFast(
        tokenizer_object=build(),
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=16,
        chat_template="{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
    ).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_read_as_transformers_reads_it(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = open_tokenizer(folder)
    template = open_template(tokenizer, folder)
    chat = [{"role": "user", "content": "hi"}]

    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert tokens == reference.encode(text)
        assert tokenizer.encode(text, False) == reference.encode(text, add_special_tokens=False)
        for skip in (True, False):
            assert tokenizer.decode(tokens, skip) == reference.decode(tokens, skip)
    assert tokenizer.specials == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.eos == {reference.eos_token_id}
    assert tokenizer.vocab_size == len(reference)
    assert template is not None
    assert template.render({"messages": chat}) == reference.apply_chat_template(
        chat, tokenize=False
    )


def test_texts_are_neither_cut_nor_padded(tmp_path: Path) -> None:
    library = byte_level()
    library.enable_truncation(3)
    library.enable_padding(length=8)
    library.save(str(tmp_path / "tokenizer.json"))

    assert len(open_tokenizer(tmp_path).encode("the lazy dog jumps over the fox")) > 8
    assert open_tokenizer(tmp_path).encode_batch(["", "the dog"])[0] == [0]


def test_names_of_special_tokens_have_several_forms(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "the", "pad_token": "<nowhere>"})
    )
    config = {"eos_token": {"content": "</s>", "special": True}, "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    tokenizer = open_tokenizer(tmp_path)

    assert tokenizer.specials == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<nowhere>"}
    assert tokenizer.eos == {1}
    assert tokenizer.library.token_to_id("<nowhere>") is None


def test_templates_lie_in_several_places(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    chat = {"messages": [{"role": "user", "content": "hi"}]}

    assert open_template(tokenizer, tmp_path) is None

    named = [{"name": "default", "template": "config"}, {"name": "rag", "template": "rag"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    from_config = open_template(tokenizer, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    from_files = open_template(tokenizer, tmp_path)
    (tmp_path / "mine").write_text("mine")
    chosen = open_template(tokenizer, tmp_path, file=str(tmp_path / "mine"))

    assert from_config is not None and from_files is not None and chosen is not None
    assert from_config.render(chat) == "config"
    assert from_config.render({**chat, "chat_template": "rag"}) == "rag"
    assert from_files.render(chat) == "file"
    assert from_files.render({**chat, "tools": [{"type": "function"}]}) == "tools"
    assert chosen.render(chat) == "mine"


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        ({}, Code.NOT_FOUND, "no tokenizer.json"),
        ({"tokenizer.model": "x"}, Code.UNSUPPORTED, "SentencePiece's format only"),
        ({"tokenizer.json": "{"}, Code.INVALID_ARG, "tokenizer.json: EOF while parsing"),
        ({"tokenizer.json": '{"model": 5}'}, Code.INVALID_ARG, "tokenizer.json: "),
        ({"tokenizer_config.json": "["}, Code.INVALID_ARG, "tokenizer_config.json: cannot be read"),
        ({"tokenizer_config.json": "[]"}, Code.INVALID_ARG, "is not a JSON object"),
        ({"special_tokens_map.json": "\x00"}, Code.INVALID_ARG, "special_tokens_map.json: cannot"),
        ({"tokenizer_config.json": '{"chat_template": 5}'}, Code.INVALID_ARG, "neither a template"),
        ({"tokenizer_config.json": '{"chat_template": [{}]}'}, Code.INVALID_ARG, "neither a templ"),
        ({"tokenizer_config.json": '{"chat_template": [5]}'}, Code.INVALID_ARG, "neither a templ"),
        ({"chat_template.jinja": "{% for %}"}, Code.INVALID_ARG, "line 1 of the chat template"),
    ],
)
def test_broken_folders_are_refused(
    tmp_path: Path, files: dict[str, Any], code: Code, said: str
) -> None:
    if files and "tokenizer.model" not in files:
        byte_level().save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    with pytest.raises(NaiadError) as caught:
        open_template(open_tokenizer(tmp_path), tmp_path)

    assert caught.value.code == code
    assert said in str(caught.value)
