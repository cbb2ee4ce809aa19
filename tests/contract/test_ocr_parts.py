"""The example ocr_read without a server: its regions, boxes and texts, against slower ways."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tests.rules.documents import ROOT


def load(name: str) -> ModuleType:
    path = ROOT / "model_repository" / "ocr_read" / "1" / f"{name}.py"
    spec = spec_from_file_location(f"ocr_read_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


boxes, lines = load("boxes"), load("lines")

Pixels = set[tuple[int, int]]

MASKS = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=12
    )
)


def flooded(mask: Any) -> set[frozenset[tuple[int, int]]]:
    """The regions of a mask as sets of pixels, each filled from one of its pixels."""
    left: Pixels = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = set()
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.add(frozenset(region))
    return found


@given(MASKS)
def test_regions_are_those_of_a_flood(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    runs = boxes.find_runs(mask)

    found = {
        frozenset((y, x) for y, begin, end in runs[members].tolist() for x in range(begin, end))
        for members in boxes.regions(runs)
    }

    assert found == flooded(mask)


POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


@given(POINTS)
def test_no_turned_rectangle_is_smaller(pixels: list[tuple[int, int]]) -> None:
    """Of 180 rectangles around the same pixels, each turned by half a degree more."""
    corners = np.array([(x + dx, y + dy) for x, y in pixels for dx in (0, 1) for dy in (0, 1)])

    axes, low, high = boxes.smallest_rectangle(boxes.hull(corners))

    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    placed = corners @ axes.T
    assert (placed > low - 1e-6).all()
    assert (placed < high + 1e-6).all()
    angles = np.radians(np.arange(0, 90, 0.5))
    turned = np.stack((np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)), axis=1)
    spans = np.ptp(corners @ turned.reshape(-1, 2, 2).transpose(0, 2, 1), axis=1)
    assert np.prod(high - low) <= np.prod(spans, axis=1).min() + 1e-6


@pytest.mark.parametrize("angle", [-40, -10, 0, 3, 25, 44])
def test_a_box_is_the_region_grown(angle: float) -> None:
    """By a distance of 1.6 times its area over its circumference on each side."""
    width, height = 80, 12
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[c, s], [-s, c]])
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    drawn = np.array((80, 80)) + signs * (width / 2, height / 2) @ turn
    mask = Image.new("L", (160, 160))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in drawn.tolist()], fill=1)
    distance = 1.6 * width * height / (2 * (width + height))

    (found,) = boxes.find(np.asarray(mask, np.float32) * 0.9)

    grown = np.array((80, 80)) + signs * (width / 2 + distance, height / 2 + distance) @ turn
    assert np.abs(found - grown).max() < 4  # The region has steps instead of slanted sides.


def test_pale_and_tiny_regions_are_left_out() -> None:
    page = np.zeros((64, 64), np.float32)
    page[10:20, 5:60] = 0.4
    page[40:42, 5:60] = 0.9
    assert boxes.find(page).shape == (0, 4, 2)


def test_the_order_is_that_of_reading() -> None:
    page = np.zeros((200, 400), np.float32)
    places = [(10, 20), (14, 220), (80, 200), (82, 10), (150, 60)]
    for top, left in places:
        page[top : top + 20, left : left + 120] = 0.9
    tops_and_lefts = [(box[:, 1].min(), box[:, 0].min()) for box in boxes.find(page)]
    expected = [places[n] for n in (0, 1, 3, 2, 4)]
    np.testing.assert_allclose(tops_and_lefts, np.array(expected) - 13.7, atol=0.1)


def test_noise_has_no_more_boxes_than_allowed() -> None:
    page = np.zeros((400, 400), np.float32)
    for top in range(0, 400, 8):
        for left in range(0, 400, 8):
            page[top : top + 4, left : left + 4] = 0.9
    assert len(boxes.find(page)) == boxes.MOST_REGIONS < 50 * 50


@given(st.lists(st.integers(0, 3), max_size=12))
def test_repeated_characters_count_once(best: list[int]) -> None:
    probabilities = np.full((len(best), 4), 0.1, np.float32)
    probabilities[np.arange(len(best)), best] = 0.7

    text, score = lines.decode(probabilities, "abc")

    assert text == "".join("abc"[n - 1] for n, _ in groupby(best) if n)
    assert score == pytest.approx(0.7 if text else 0.0)
