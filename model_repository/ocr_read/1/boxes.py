"""Finds lines of text in a map of probabilities: rotated boxes around its bright regions.

The method is that of Differentiable Binarization (Liao et al., 2019). The map marks only the core
of a line, so boxes grow by a distance that depends on their size. Knows nothing of pictures and
characters.
"""

from heapq import nlargest

import numpy as np

THRESHOLD = 0.3
"""Pixels above it belong to text."""
LEAST_MEAN = 0.5
"""Of the probabilities of a region; others are left out."""
GROWTH = 1.6
"""Distance by which a box grows, as part of its area over its circumference."""
LEAST_SIDE = 3
"""Pixels; smaller regions are noise."""
MOST_REGIONS = 1000
"""The largest count, so that no picture takes for ever."""


def find(probabilities):
    """FP32 [height, width] -> corners x, y [n, 4, 2], clockwise from the upper left, in reading
    order. The text of a line is taken to run to the right rather than up or down."""
    runs = find_runs(probabilities > THRESHOLD)
    # The sum over a run is a difference of two sums from the beginning.
    sums = np.concatenate(([0], np.cumsum(probabilities, dtype=np.float64)))
    starts = runs[:, 0] * probabilities.shape[1]
    weights = sums[starts + runs[:, 2]] - sums[starts + runs[:, 1]]
    sizes = runs[:, 2] - runs[:, 1]
    boxes = []
    for members in nlargest(MOST_REGIONS, regions(runs), lambda members: sizes[members].sum()):
        mean = weights[members].sum() / sizes[members].sum()
        axes, low, high = smallest_rectangle(hull(corners(runs[members])))
        width, height = high - low
        if mean >= LEAST_MEAN and min(width, height) >= LEAST_SIDE:
            distance = GROWTH * width * height / (2 * (width + height))
            boxes.append(as_box(axes, low - distance, high + distance))
    return np.array(in_reading_order(boxes), np.float32).reshape(-1, 4, 2)


def find_runs(mask):
    """Stretches of True in the rows of a mask: [n, 3] with row, begin and end, in order."""
    steps = np.diff(mask.astype(np.int8), axis=1, prepend=0, append=0)
    rows, begins = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return np.stack((rows, begins, ends), axis=1)


def regions(runs):
    """Runs that touch, also at corners, belong together: a list of index arrays into runs."""
    parents = list(range(len(runs)))

    def root(n):
        while parents[n] != n:
            parents[n] = parents[parents[n]]
            n = parents[n]
        return n

    listed = runs.tolist()
    first = 0  # Of the row above, that this run or a later one of its row may touch.
    for here, (row, begin, end) in enumerate(listed):
        while (listed[first][0], listed[first][2]) < (row - 1, begin):
            first += 1
        above = first
        while listed[above][0] == row - 1 and listed[above][1] <= end:
            parents[root(above)] = root(here)
            above += 1
    roots = np.array([root(n) for n in range(len(runs))], np.int64)
    order = np.argsort(roots, kind="stable")
    ends = np.nonzero(np.diff(roots[order]))[0] + 1
    return [part for part in np.split(order, ends) if len(part)]


def corners(runs):
    """The outer corners of a region in each of its rows: [4 n, 2] with x and y. runs: its own."""
    rows, first = np.unique(runs[:, 0], return_index=True)
    last = np.append(first[1:], len(runs)) - 1
    return np.concatenate(
        [
            np.stack((x, y), axis=1)
            for x in (runs[first, 1], runs[last, 2])
            for y in (rows, rows + 1)
        ]
    )


def hull(points):
    """The convex hull of points [n, 2], its corners in order (Andrew's monotone chain)."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def half(points):
        chain = []
        for x, y in points:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]), np.float64)


def smallest_rectangle(polygon):
    """Around a convex polygon [n, 2]; a side of it lies on a side of the polygon.

    Its axes as rows [2, 2], the first one to the right and the second one down, and its lowest and
    highest coordinates [2] along them.
    """
    sides = np.roll(polygon, -1, axis=0) - polygon
    sides /= np.linalg.norm(sides, axis=1, keepdims=True)
    # Of the four directions of a rectangle, one is within 45 degrees of the right.
    x, y = sides.T
    steep = np.abs(y) > np.abs(x)
    x, y = np.where(steep, y, x), np.where(steep, -x, y)
    right = np.stack((x, y), axis=1) * np.where(x < 0, -1, 1)[:, None]
    down = np.stack((-right[:, 1], right[:, 0]), axis=1)
    axes = np.stack((right, down), axis=1)
    placed = axes @ polygon.T
    low, high = placed.min(axis=2), placed.max(axis=2)
    best = np.prod(high - low, axis=1).argmin()
    return axes[best], low[best], high[best]


def as_box(axes, low, high):
    """Corners [4, 2] of a rectangle, clockwise from the upper left."""
    (left, top), (right, bottom) = low, high
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)]) @ axes


def in_reading_order(boxes):
    """From top to bottom; boxes beside one another from left to right."""
    rows = []
    for box in sorted(boxes, key=lambda box: box[:, 1].mean()):
        middle = box[:, 1].mean()
        if rows:
            other = rows[-1][0]
            if middle - other[:, 1].mean() < np.linalg.norm(other[3] - other[0]) / 2:
                rows[-1].append(box)
                continue
        rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box[:, 0].mean())]
