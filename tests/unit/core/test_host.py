"""Figures of the machine from files in the form of /proc."""

from pathlib import Path

import pytest

from naiad.core.host import Host, HostFigures

MEMORY = "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\nHugePages_Total:  0\n"


def write(proc: Path, *ticks: int) -> None:
    (proc / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 0 0\n")
    (proc / "meminfo").write_text(MEMORY)


def test_utilization_is_the_busy_share_since_the_look_before(tmp_path: Path) -> None:
    write(tmp_path, 10, 0, 0, 90, 0, 0, 0, 0, 0, 0)
    host = Host(0, tmp_path)
    write(tmp_path, 15, 1, 2, 160, 20, 1, 1, 0, 0, 0)
    assert host.figures() == HostFigures(0.1, 1_024_000, 614_400)
    write(tmp_path, 25, 1, 2, 160, 20, 1, 1, 0, 0, 0)
    assert host.figures() == HostFigures(1.0, 1_024_000, 614_400)


def test_counters_that_stand_still_or_step_back(tmp_path: Path) -> None:
    write(tmp_path, 10, 0, 0, 90, 0, 0, 0, 0)
    host = Host(0, tmp_path)
    for ticks in ((10, 0, 0, 90, 0, 0, 0, 0), (10, 0, 0, 80, 0, 0, 0, 0)):
        write(tmp_path, *ticks)
        figures = host.figures()
        assert figures is not None and figures.cpu_utilization == 0.0


def test_within_an_interval_nothing_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, 10, 0, 0, 90, 0, 0, 0, 0)
    host = Host(3600, tmp_path)
    first = host.figures()
    write(tmp_path, 99, 0, 0, 90, 0, 0, 0, 0)
    assert first is not None and host.figures() is first


@pytest.mark.parametrize("name", ["stat", "meminfo"])
def test_without_the_kernels_files_there_are_no_figures(tmp_path: Path, name: str) -> None:
    write(tmp_path, 10, 0, 0, 90, 0, 0, 0, 0)
    (tmp_path / name).unlink()
    assert Host(0, tmp_path).figures() is None


def test_this_machine() -> None:
    figures = Host(0).figures()
    assert figures is not None
    assert 0 <= figures.cpu_utilization <= 1
    assert 0 < figures.memory_used_bytes < figures.memory_total_bytes
