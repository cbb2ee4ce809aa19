"""Tokenizers from the metadata of GGUF files.

Knows llama.cpp's keys and what they mean for the `tokenizers` library. Metadata that contradicts
itself is INVALID_ARG, naming the key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from naiad_backends.errors import NaiadError, invalid, unsupported
from naiad_backends.llm.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from naiad_backends.llm.text.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Types of tokens."""

_SPECIALS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # So it is spelt in the files.
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
"""Templates' names for special tokens, and what their keys are called."""

_MARK = "▁"
"""How vocabularies of SentencePiece's kind spell a space."""


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file describes."""
    if not _strings(metadata, "tokens"):
        raise invalid("the vocabulary is empty", field="tokenizer.ggml.tokens")
    specials = {
        name: token
        for name, role in _SPECIALS.items()
        if (token := _special(metadata, role)) is not None
    }
    whole = metadata.get("tokenizer.huggingface.json")
    library = _whole(whole) if whole is not None else _built(Vocabulary.of(metadata))
    ends = {_id(metadata, role) for role in ("eos", "eot", "eom")} - {None}
    eos = frozenset(token for token in ends if token is not None)
    return Tokenizer(library, specials, eos)


def gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates in a file by name; that without a name is `default`."""
    prefix = "tokenizer.chat_template."
    templates = {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix) and isinstance(value, str)
    }
    main = metadata.get("tokenizer.chat_template")
    return templates | ({"default": main} if isinstance(main, str) else {})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the keys say, checked. types, scores: one for each token; no scores if there are none.

    merges: pairs of tokens, the first to merge first; None if the file has none.
    """

    metadata: Mapping[str, Any]
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]] | None

    @staticmethod
    def of(metadata: Mapping[str, Any]) -> "Vocabulary":
        """The vocabulary of a file."""
        tokens = _strings(metadata, "tokens")
        types = [int(value) for value in _numbers(metadata, "token_type", len(tokens))]
        merges = _strings(metadata, "merges") if "tokenizer.ggml.merges" in metadata else None
        return Vocabulary(
            metadata,
            tokens,
            types or [1] * len(tokens),
            [float(value) for value in _numbers(metadata, "scores", len(tokens))],
            None if merges is None else _pairs(merges),
        )

    def ids(self) -> dict[str, int]:
        """Each token's number. Of tokens with one spelling the last has it, as in llama.cpp."""
        ids = {token: number for number, token in enumerate(self.tokens)}
        ids.pop("", None)
        return ids

    def flag(self, name: str, default: bool) -> bool:
        """What a key says about whether to do something."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise invalid(f"{value!r} is not a boolean", field=f"tokenizer.ggml.{name}")
        return value

    def special(self, role: str) -> str | None:
        """The token that has a role."""
        return _special(self.metadata, role)


def _built(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The library's tokenizer for a vocabulary of any kind."""
    kind = vocabulary.metadata.get("tokenizer.ggml.model")
    build = _KINDS.get(kind) if isinstance(kind, str) else None
    if build is None:
        raise unsupported(
            f"tokenizers of the kind {kind!r} are not supported",
            field="tokenizer.ggml.model",
            hint=f"use one of {', '.join(_KINDS)}, or give a folder with a tokenizer.json",
        )
    try:
        library = build(vocabulary)
    except NaiadError:
        raise
    except Exception as error:
        # The library has no error of its own: a part of a merge is no token, and the like.
        raise invalid(str(error), field="tokenizer.ggml") from error
    _add_specials(library, vocabulary)
    return library


def _byte_level(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """GPT-2's kind: characters stand for bytes, words are cut by an expression."""
    way = _way(vocabulary)
    library = tokenizers.Tokenizer(_bpe(vocabulary, ignore_merges=way.ignore_merges))
    library.normalizer = way.normalizer()
    library.pre_tokenizer = way.steps()
    library.decoder = decoders.ByteLevel()
    _frame(library, vocabulary, bos=way.add_bos, eos=False)
    return library


def _way(vocabulary: Vocabulary) -> PreTokenizer:
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    way = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if way is None:
        raise unsupported(
            f"the pre-tokenizer {name!r} is not known",
            field="tokenizer.ggml.pre",
            hint="give a folder with the model's tokenizer.json",
        )
    return way


def _sentencepiece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Llama's kind: characters, a mark for each space, and tokens for bytes that have no other."""
    prefix = vocabulary.flag("add_space_prefix", True)
    library = tokenizers.Tokenizer(
        _bpe(
            vocabulary,
            byte_fallback=True,
            fuse_unk=True,
            unk_token=vocabulary.special("unknown"),
        )
    )
    marks = normalizers.Replace(" ", _MARK)
    library.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_MARK), marks]) if prefix else marks
    )
    steps = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    _frame(library, vocabulary, bos=True, eos=False)
    return library


def _wordpiece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """BERT's kind. The files mark the first piece of a word, the library the others."""
    unknown = vocabulary.special("unknown") or "[UNK]"
    ids = {
        _wordpiece_token(token, kind): number
        for number, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.types, strict=True)
        )
    }
    if unknown not in ids:
        raise invalid(
            f"the token for unknown words, {unknown!r}, is not in the vocabulary",
            field="tokenizer.ggml.tokens",
        )
    library = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=unknown))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    _frame(library, vocabulary, bos=True, eos=True, first="cls", last="seperator")
    return library


def _wordpiece_token(token: str, kind: int) -> str:
    if kind == _CONTROL:
        return token
    return token.removeprefix(_MARK) if token.startswith(_MARK) else f"##{token}"


def _unigram(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """T5's and XLM-RoBERTa's kind: the likeliest way to cut a text, by scores."""
    if not vocabulary.scores:
        raise invalid("a unigram vocabulary needs scores", field="tokenizer.ggml.scores")
    library = tokenizers.Tokenizer(
        models.Unigram(
            list(zip(vocabulary.tokens, vocabulary.scores, strict=True)),
            unk_id=_id(vocabulary.metadata, "unknown"),
        )
    )
    steps: list[normalizers.Normalizer] = []
    charsmap = vocabulary.metadata.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        steps.append(normalizers.Precompiled(bytes(charsmap)))
    if vocabulary.flag("remove_extra_whitespaces", True):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    library.normalizer = normalizers.Sequence(steps)
    scheme = "always" if vocabulary.flag("add_space_prefix", True) else "never"
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _frame(library, vocabulary, bos=False, eos=True)
    return library


_KINDS: Mapping[str, Callable[[Vocabulary], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "gemma4": _sentencepiece,
    "bert": _wordpiece,
    "t5": _unigram,
}


def _bpe(vocabulary: Vocabulary, **options: Any) -> models.BPE:
    """The merges of the file, or those that its scores imply."""
    ids = vocabulary.ids()
    merges = vocabulary.merges
    if merges is None:
        merges = _implied_merges(vocabulary, ids)
    return models.BPE(ids, merges, **options)


def _implied_merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the tokens with the best scores first."""
    if not vocabulary.scores:
        raise invalid("there are neither merges nor scores", field="tokenizer.ggml.merges")
    merges = []
    order = sorted(ids.items(), key=lambda item: (-vocabulary.scores[item[1]], item[1]))
    for token, _ in order:
        for at in range(1, len(token)):
            if token[:at] in ids and token[at:] in ids:
                merges.append((token[:at], token[at:]))
    return merges


def _frame(
    library: tokenizers.Tokenizer,
    vocabulary: Vocabulary,
    *,
    bos: bool,
    eos: bool,
    first: str = "bos",
    last: str = "eos",
) -> None:
    """Say which tokens stand around a text. bos, eos: unless the file says otherwise."""
    parts, special = ["$A"], []
    for flag, default, role in (("add_bos_token", bos, first), ("add_eos_token", eos, last)):
        token = vocabulary.special(role)
        if not vocabulary.flag(flag, default) or token is None:
            continue
        ids = [_id(vocabulary.metadata, role)]
        special.append({"id": role, "ids": ids, "tokens": [token]})
        parts = [role, *parts] if role == first else [*parts, role]
    library.post_processor = TemplateProcessing(single=parts, special_tokens=special)


def _add_specials(library: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Let the library find tokens that are never built from parts."""
    named = {vocabulary.special(role) for role in _SPECIALS.values()}
    special, others = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if not token:
            continue
        if kind in (_CONTROL, _UNKNOWN) or token in named:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            others.append(AddedToken(token, special=False, normalized=False))
    library.add_special_tokens(special)
    library.add_tokens(others)


def _whole(text: object) -> tokenizers.Tokenizer:
    """A tokenizer.json inside of the file."""
    try:
        return tokenizers.Tokenizer.from_str(text)  # type: ignore[arg-type]  # Checked by it.
    except Exception as error:
        # The library raises bare exceptions for text that it cannot read.
        raise invalid(str(error), field="tokenizer.huggingface.json") from error


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    key = f"tokenizer.ggml.{name}"
    values = metadata.get(key)
    if not isinstance(values, list) or not {*map(type, values)} <= {str}:
        raise invalid("is missing or not a list of strings", field=key)
    return values


def _numbers(metadata: Mapping[str, Any], name: str, count: int) -> Sequence[Any]:
    """One number for each token; none if the key is missing."""
    key = f"tokenizer.ggml.{name}"
    values = metadata.get(key)
    if values is None:
        return []
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise invalid("is not a list of numbers", field=key)
    if len(values) != count:
        raise invalid(f"has {len(values)} entries for {count} tokens", field=key)
    plain = values.tolist() if hasattr(values, "tolist") else list(values)
    if not {*map(type, plain)} <= {int, float}:
        raise invalid("is not a list of numbers", field=key)
    return plain


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    for at, (left, right) in enumerate(pairs):
        if not left or not right:
            raise invalid(
                f"merge {at}, {merges[at]!r}, is not two tokens", field="tokenizer.ggml.merges"
            )
    return pairs


def _id(metadata: Mapping[str, Any], role: str) -> int | None:
    """The number of the token that has a role."""
    key = f"tokenizer.ggml.{role}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    tokens = metadata["tokenizer.ggml.tokens"]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(tokens):
        raise invalid(f"{value!r} is not one of {len(tokens)} tokens", field=key)
    return value


def _special(metadata: Mapping[str, Any], role: str) -> str | None:
    number = _id(metadata, role)
    return None if number is None else str(metadata["tokenizer.ggml.tokens"][number])
