"""Restricted APIs over HTTP, on both ways: every route has a door, and there is no way around."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.http.live import Live, Reply, chunked, get, json_body, post, serving
from tests.unit.http.test_routes import PATHS

from naiad.core.restriction import Api, Restriction
from naiad.http.routes import ROUTES

OPTION = "--http-restricted-api"
KEY = "X-Key: open sesame"
OVER = ("X-A: 1", "X-A: 2")
"""A header that is given twice: harmless, and reason enough to hand over to aiohttp."""

WAYS = pytest.mark.parametrize("extra", [(), OVER], ids=["lean", "full"])


@pytest.fixture
async def closed(models: Path) -> AsyncIterator[Live]:
    """A server whose APIs all need a header."""
    async with serving(models, Restriction([f"{','.join(Api)}:x-key=open sesame"], OPTION)) as live:
        yield live


def sent(method: str, path: str, *lines: str) -> bytes:
    return get(path, *lines) if method == "GET" else post(path, b"", *lines)


def refused(reply: Reply) -> bool:
    """Whether it is the answer to a call without the header, and a good one."""
    if reply.status != 403:
        return False
    assert reply.headers["content-type"] == "application/json"
    if isinstance(reply.json()["error"], dict):
        # OpenAI's form.
        assert reply.json()["error"]["type"] == "permission_error"
        return True
    assert reply.json()["code"] == "UNAVAILABLE"
    assert "'x-key'" in reply.json()["hint"]
    return True


def test_the_paths_cover_every_route() -> None:
    assert {handler for _, _, handler, _ in PATHS} == {handler for _, _, handler, _ in ROUTES}


@WAYS
async def test_every_route_is_closed(closed: Live, extra: tuple[str, ...]) -> None:
    for method, path, _, _ in PATHS:
        for lines in [(), ("X-Key: open",), ("X-Key:",), ("X-Key: open sesame.",), ("Key: x",)]:
            assert refused(await closed.ask(sent(method, path, *lines, *extra))), path
        assert not refused(await closed.ask(sent(method, path, KEY, *extra))), path


@WAYS
async def test_the_restriction_comes_before_the_method(
    closed: Live, extra: tuple[str, ...]
) -> None:
    infer = "/v2/models/echo/infer"
    assert refused(await closed.ask(get(infer, *extra)))
    assert (await closed.ask(get(infer, KEY, *extra))).status == 405


SPELLINGS = [
    "/v2/models/echo/versions/1/infer",
    "/v2/models/echo/versions/001/infer",
    "/v2/models/%65cho/infer",
    "/v2/models/echo/infer?x=1",
    "/v2/models/echo/infer?/v2/health/live",
    "http://else.where/v2/models/echo/infer",
]
NO_WAYS = [
    "//v2/models/echo/infer",
    "/v2//models/echo/infer",
    "/v2/models/echo//infer",
    "/v2/models/echo/infer/",
    "/v2/models/echo/%69nfer",
    "/%762/models/echo/infer",
    "/v2/models/../models/echo/infer",
    "/v2/health/../models/echo/infer",
    "/v2/./models/echo/infer",
    "/V2/models/echo/infer",
    "/v2/models/echo/infer;x",
    "/v2/models/echo/infer#x",
    "http://else.where//v2/models/echo/infer",
    "*",
]


@WAYS
async def test_no_spelling_leads_around_it(models: Path, extra: tuple[str, ...]) -> None:
    async with serving(models, Restriction(["inference:x-key=open sesame"], OPTION)) as live:
        for path in SPELLINGS:
            assert refused(await live.ask(post(path, json_body([1]), *extra))), path
            assert (await live.ask(post(path, json_body([1]), KEY, *extra))).status == 200, path
        for path in NO_WAYS:
            reply = await live.ask(post(path, json_body([1]), *extra))
            assert reply.status in (400, 403, 404, 405), path
        assert (await live.ask(get("/v2/health/live", *extra))).status == 200


async def test_a_connection_is_asked_with_every_request(closed: Live) -> None:
    wire = await closed.connect()
    path = "/v2/models/echo/infer"
    assert (await wire.ask(post(path, json_body([1]), KEY))).status == 200
    assert refused(await wire.ask(post(path, json_body([1]))))
    assert (await wire.ask(post(path, json_body([1]), "x-KEY:   open sesame "))).status == 200
    assert refused(await wire.ask(chunked(path, json_body([1]))))
    assert (await wire.ask(post(path, json_body([1]), KEY))).status == 200


@WAYS
async def test_of_two_headers_the_first_counts(closed: Live, extra: tuple[str, ...]) -> None:
    live = "/v2/health/live"
    assert (await closed.ask(get(live, KEY, "X-Key: no", *extra))).status == 200
    assert refused(await closed.ask(get(live, "X-Key: no", KEY, *extra)))
