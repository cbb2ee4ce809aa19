"""Restricted parts of the protocol: what the option takes, and which headers open what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.restriction import Api, Restricted, Restriction, restriction
from naiad_backends.errors import Code, NaiadError

OPTION = "--http-restricted-api"


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([""], "form"),
        (["health"], "form"),
        (["health:"], "form"),
        (["health:key"], "form"),
        (["health:key="], "form"),
        (["health:=value"], "form"),
        (["health=key:value"], "form"),
        (["health:a key=value"], "form"),
        (["health:key= value"], "form"),
        (["health:key=valu\u00e9"], "form"),
        (["health:key=value\n"], "form"),
        ([":key=value"], "no API ''"),
        (["heath:key=value"], "no API 'heath'.*health, metadata, inference, shared-memory"),
        (["health, metadata:key=value"], "no API ' metadata'"),
        (["health,:key=value"], "no API ''"),
        (["health,health:key=value"], "'health' twice"),
        (["health:key=value", "metadata,health:other=value"], "'health' twice"),
    ],
)
def test_mistakes_in_the_option(groups: list[str], text: str) -> None:
    with pytest.raises(NaiadError, match=text) as caught:
        Restriction(groups, OPTION)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == OPTION
    assert "value=" not in str(caught.value)


def test_mistakes_do_not_tell_the_secret() -> None:
    with pytest.raises(NaiadError) as caught:
        Restriction(["health:key=swordfish "], OPTION)
    assert "swordfish" not in str(caught.value)


def test_no_option_restricts_nothing() -> None:
    assert restriction((), OPTION) is None


def test_the_groups_ask_for_their_own_headers() -> None:
    both = Restriction(["health,metadata:One=a", "inference:two=Bearer b=:"], OPTION)
    assert [api for api in Api if both.restricts(api)] == [
        Api.HEALTH,
        Api.METADATA,
        Api.INFERENCE,
    ]
    both.require(Api.LOGGING, [])
    both.require(Api.HEALTH, [("x", "y"), ("ONE", "a")])
    both.require(Api.METADATA, [("one", b"a")])
    both.require(Api.INFERENCE, [("Two", "Bearer b=:")])
    with pytest.raises(Restricted, match=r"inference.*'two'") as caught:
        both.require(Api.INFERENCE, [("One", "a"), ("Two", "Bearer b")])
    assert "Bearer" not in str(caught.value)


def test_of_a_header_that_comes_twice_the_first_counts() -> None:
    one = Restriction(["health:key=a"], OPTION)
    one.require(Api.HEALTH, [("key", "a"), ("key", "b")])
    with pytest.raises(Restricted):
        one.require(Api.HEALTH, [("key", "b"), ("key", "a")])


def test_the_prefix_is_part_of_the_name() -> None:
    one = Restriction(["health:key=a"], OPTION, "pre-")
    one.require(Api.HEALTH, [("pre-key", "a")])
    with pytest.raises(Restricted, match="'pre-key'"):
        one.require(Api.HEALTH, [("key", "a")])


ANY = st.one_of(st.text(st.characters(codec="utf-8")), st.binary())


@given(ANY, st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_only_the_value_itself_opens(given_value: str | bytes, value: str) -> None:
    one = Restriction([f"trace:key={value}"], OPTION)
    one.require(Api.TRACE, [("key", value)])
    if given_value not in (value, value.encode()):
        with pytest.raises(Restricted):
            one.require(Api.TRACE, [("key", given_value)])
