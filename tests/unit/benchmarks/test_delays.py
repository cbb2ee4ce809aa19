"""The tables of queue delays."""

from benchmarks.delays import tables
from benchmarks.load import Load


def _load(rate: float, mean: float) -> Load:
    return Load(int(rate), 1.0, mean, mean, 2 * mean, 0.1, "wrk")


FIGURES = {
    "closed": {
        "0": [_load(100, 8), _load(200, 4)],
        "500": [_load(300, 2), _load(100, 6)],
        "auto": [_load(150, 6), _load(150, 3)],
    }
}


def test_medians_and_the_best_of_each_column() -> None:
    rows = tables(FIGURES).splitlines()
    assert "## closed" in rows
    assert "| 0 | 150.00 | 6.00 | 12.00 |" in rows
    # Rate and latency are best at 500: 150/300 and 150/100, 6/2 and 3/6.
    assert rows[-1] == "| auto / best other | 1.00 | 1.75 | 1.75 |"
