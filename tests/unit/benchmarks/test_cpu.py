"""CPU time of a process and all that belongs to it."""

import os
import subprocess
import sys

from benchmarks.cpu import ProcessTimes, family, parse_stat, spent

STAT = "41 (a (b) c) S 7 41 5 0 -1 4194304 97 0 0 0 11 22 33 44 20 0 1 0 97197 3133440 382"


def test_stat_with_brackets_in_the_command() -> None:
    assert parse_stat(STAT) == ProcessTimes(pid=41, parent=7, session=5, ticks=110)


def test_family_follows_children_and_the_session() -> None:
    processes = [
        ProcessTimes(10, 1, 10, 0),  # the server
        ProcessTimes(11, 10, 10, 0),  # its child
        ProcessTimes(12, 11, 12, 0),  # a grandchild in a session of its own
        ProcessTimes(13, 1, 10, 0),  # a grandchild whose parent died
        ProcessTimes(20, 1, 20, 0),  # a stranger
    ]
    assert [p.pid for p in family(10, processes)] == [10, 11, 12, 13]


def test_a_childs_time_counts_after_its_death() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    before = spent(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    used = spent(os.getpid()) - before
    assert used.family >= 0.19  # less than 0.2 by one tick at most
