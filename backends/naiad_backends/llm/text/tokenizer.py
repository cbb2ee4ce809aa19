"""A model's tokenizer: text to tokens and back.

Wraps the `tokenizers` library. Knows nothing of files; `open_tokenizer` makes one.
"""

from collections.abc import Mapping, Sequence

import tokenizers

from naiad_backends.errors import NaiadError, invalid
from naiad_backends.generation import TEXT_INPUT
from naiad_backends.llm.text.cutting import Cut, Cutter
from naiad_backends.llm.text.glance import glance_of
from naiad_backends.llm.text.spelling import Spelling

_TOLD = 200
"""Characters of what the library says."""


class Tokenizer:
    """The tokenizer of one model.

    specials: the texts of `bos_token`, `eos_token` and the like, for chat templates.
    eos: the tokens that end a text, as far as the tokenizer knows.
    vocab_size: one more than the largest token.
    exceeds: whether a text has too many tokens for sure, which costs next to nothing.
    frame: how many special tokens are added in front of a text, and behind it.
    Concurrency: any thread may call it.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, specials: Mapping[str, str], eos: frozenset[int]
    ) -> None:
        library.no_truncation()
        library.no_padding()
        self.library = library
        self.specials = specials
        self.eos = eos
        added = library.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, what in added.items() if what.special)
        # Numbers may be left out: of tokens with one spelling only one is found.
        vocabulary = library.get_vocab()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.exceeds = glance_of(library, vocabulary)
        self.frame = _frame(library)
        self._cutter = Cutter(library, vocabulary)
        self.spelling = Spelling.of(library)
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text. What spells a special token in it becomes that token."""
        try:
            return self.library.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            raise _failed(error, text) from error

    def encode_cut(self, text: str, cut: Cut, add_special_tokens: bool = True) -> Sequence[int]:
        """The first or the last of these tokens, and the special ones that are added. Of a long
        text not all tokens are made; INVALID_ARG for a very long one where that cannot be."""
        tokens = self.encode(self.part(text, cut), add_special_tokens)
        return cut.of(tokens, *(self.frame if add_special_tokens else ()))

    def part(self, text: str, cut: Cut) -> str:
        """All of a text that those tokens come from, and not much more."""
        try:
            return self._cutter.part(text, cut)
        except NaiadError:
            raise
        except BaseException as error:
            raise _failed(error, text) from error

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The tokens of each text, on several cores."""
        try:
            encodings = self.library.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        except BaseException as error:
            raise _failed(error, *texts) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens. INVALID_ARG for one that the vocabulary does not have."""
        self.check(tokens)
        return self.library.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def check(self, tokens: Sequence[int]) -> None:
        """INVALID_ARG for a token that the vocabulary does not have."""
        for token in tokens:
            if not 0 <= token < 1 << 32 or self.library.id_to_token(token) is None:
                raise invalid(
                    f"token {token} is not in the vocabulary of {self.vocab_size} tokens",
                    field="tokens",
                )

    def token(self, token: int) -> str:
        """The token as the vocabulary spells it; empty for one that it does not have."""
        return self.library.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to a text, exactly; nothing for one that the vocabulary does not
        have. It may be a part of a character."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self.spelling.bytes_of(self.token(token))
        return found

    def token_text(self, token: int) -> str:
        """The same as text, with U+FFFD for parts of characters."""
        return self.token_bytes(token).decode("utf-8", "replace")


def _frame(library: tokenizers.Tokenizer) -> tuple[int, int]:
    try:
        mask = library.encode("a", add_special_tokens=True).special_tokens_mask
    except BaseException as error:
        if isinstance(error, Exception):
            # It has no token for what it does not know.
            return 0, 0
        raise _failed(error, "a") from error
    before = next((place for place, special in enumerate(mask) if not special), len(mask))
    rest = mask[before:]
    return before, next((place for place, one in enumerate(rest[::-1]) if not one), 0)


def _failed(error: BaseException, *texts: object) -> BaseException:
    """What a failure of the library tells who has sent the texts. A panic of its is no Exception,
    and those that are have no class of their own."""
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        return error
    if isinstance(error, TypeError):
        return _not_text(*texts)
    said = str(error)[:_TOLD]
    return invalid(f"the tokenizer cannot read the text: {said}", field=TEXT_INPUT)


def _not_text(*texts: object) -> NaiadError:
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        return invalid(f"a text must be a string, not {type(wrong).__name__}")
    return invalid("the text has half a surrogate pair, which no encoding of Unicode has")
