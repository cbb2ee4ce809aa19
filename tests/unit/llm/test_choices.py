"""One text from the tokens that an engine gives: where it ends, and what is news."""

from collections.abc import Sequence

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models

from naiad_backends.llm.choices import Choice, Piece
from naiad_backends.llm.messages import Output, Scored, Token
from naiad_backends.llm.parameters import Wishes
from naiad_backends.llm.sampling import Sampling
from naiad_backends.llm.text.tokenizer import Tokenizer

WORDS = ["a", "b", "c", "Ã", "¼", "stop", "<end>", "<other>"]
A, B, C, HALF, REST, STOP, END, OTHER = range(len(WORDS))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    library = tokenizers.Tokenizer(models.WordLevel(dict(zip(WORDS, range(8), strict=True)), "a"))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<end>", special=True)])
    return Tokenizer(library, {}, frozenset({END}))


def choice(tokenizer: Tokenizer, least: int = 0, **wishes: object) -> Choice:
    return Choice(1, tokenizer, [A], Wishes(Sampling(), **wishes), least)  # type: ignore[arg-type]


def output(tokens: Sequence[int], finish: str = "", stop: int | None = None) -> Output:
    return Output(7, list(tokens), finish, stop)


def whole(one: Choice, *outputs: Output) -> Piece:
    for each in outputs:
        one.take(each, False)
    return one.read()


def test_text_comes_by_character(tokenizer: Tokenizer) -> None:
    one = choice(tokenizer)
    assert one.take(output([A]), False)
    assert one.read().text == "a"
    assert not one.take(output([HALF]), False)
    assert one.take(output([REST]), False)
    piece = one.read()
    assert (piece.text, piece.tokens, piece.count, piece.finish) == ("ü", [HALF, REST], 3, "")


def test_tokens_are_news_where_they_are_asked_for(tokenizer: Tokenizer) -> None:
    one = choice(tokenizer)
    assert one.take(output([HALF]), True)
    assert one.read().tokens == [HALF]


def test_the_end_of_the_model_has_no_reason(tokenizer: Tokenizer) -> None:
    piece = whole(choice(tokenizer), output([A]), output([END], "stop", END))
    assert (piece.text, piece.finish, piece.stop, piece.count) == ("a", "stop", None, 2)


def test_a_stop_token_is_not_in_the_text_unless_wanted(tokenizer: Tokenizer) -> None:
    piece = whole(choice(tokenizer), output([A, STOP], "stop", STOP))
    assert (piece.text, piece.stop) == ("a", STOP)
    piece = whole(choice(tokenizer, include_stop=True), output([A, STOP], "stop", STOP))
    assert (piece.text, piece.tokens) == ("astop", [A, STOP])


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "abc")])
def test_a_stop_string_over_tokens(tokenizer: Tokenizer, include: bool, text: str) -> None:
    one = choice(tokenizer, stop=("bc",), include_stop=include)
    assert not one.take(output([A, B]), False) or one.read().text == "a"
    one = choice(tokenizer, stop=("bc",), include_stop=include)
    piece = whole(one, output([A]), output([B]), output([C, A, A]))
    assert (piece.text, piece.finish, piece.stop) == (text, "stop", "bc")
    assert (piece.tokens, piece.count) == ([A, B, C], 3)


def test_a_stop_string_that_does_not_come_true(tokenizer: Tokenizer) -> None:
    one = choice(tokenizer, stop=("bc",))
    assert not one.take(output([B]), False)
    assert one.take(output([], "length"), False)
    piece = one.read()
    assert (piece.text, piece.finish, piece.stop) == ("b", "length", None)


def test_a_stop_string_wins_over_the_length(tokenizer: Tokenizer) -> None:
    piece = whole(choice(tokenizer, stop=("c",)), output([A, C], "length"))
    assert (piece.text, piece.finish, piece.stop) == ("a", "stop", "c")


def test_stop_strings_before_the_least_number_of_tokens(tokenizer: Tokenizer) -> None:
    piece = whole(choice(tokenizer, least=2, stop=("b",)), output([B, B, A, B]))
    assert (piece.text, piece.finish, piece.count) == ("bba", "stop", 4)


def test_an_unfinished_character_at_the_end(tokenizer: Tokenizer) -> None:
    piece = whole(choice(tokenizer), output([A, HALF], "length"))
    assert (piece.text, piece.finish) == ("a\ufffd", "length")


def test_scores_end_with_the_stop_string(tokenizer: Tokenizer) -> None:
    scored = [Scored(Token(token, -1.0, 1), []) for token in (A, B, C)]
    piece = whole(choice(tokenizer, stop=("b",)), Output(7, [A, B, C], scored=scored))
    assert (piece.scored, piece.cumulative) == (scored[:2], -2)


def test_no_tokens_at_all(tokenizer: Tokenizer) -> None:
    one = choice(tokenizer, max_tokens=0)
    one.precede("prompt")
    piece = whole(one, output([A], "length"))
    assert (piece.text, piece.count, piece.finish) == ("prompt", 0, "length")


def test_special_tokens_in_the_text(tokenizer: Tokenizer) -> None:
    assert whole(choice(tokenizer), output([A, END, B])).text == "ab"
    assert whole(choice(tokenizer, skip_special_tokens=False), output([A, END])).text == "a<end>"


def test_time_is_up(tokenizer: Tokenizer) -> None:
    piece = whole(choice(tokenizer), output([A]), output([], "timeout"))
    assert (piece.text, piece.finish) == ("a", "abort")
