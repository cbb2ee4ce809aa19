"""CPU time of a server with everything that it started, read from /proc.

Knows nothing of load. Linux only; resolution is one tick, 10 ms on common kernels, per process.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessTimes:
    """One line of /proc/PID/stat, as far as it is needed."""

    pid: int
    parent: int
    session: int
    ticks: int
    """User and system time of the process and of its dead children that were waited for."""


def parse_stat(line: str) -> ProcessTimes:
    """Reads a line of /proc/PID/stat (see proc(5)); the command may hold spaces and brackets."""
    pid, rest = line.split(" (", 1)
    fields = rest.rpartition(")")[2].split()  # fields[0] is the state, the third of proc(5)
    return ProcessTimes(
        pid=int(pid),
        parent=int(fields[1]),
        session=int(fields[3]),
        ticks=sum(int(field) for field in fields[11:15]),
    )


def family(root: int, processes: list[ProcessTimes]) -> list[ProcessTimes]:
    """`root`, its descendants, and what else lives in the session that `root` leads.

    The session catches a child whose own parent has died.
    """
    members = {p.pid for p in processes if p.pid == root or p.session == root}
    while grown := {p.pid for p in processes if p.parent in members} - members:
        members |= grown
    return [p for p in processes if p.pid in members]


@dataclass(frozen=True)
class Spent:
    """CPU seconds, user and system, of a process and of all its family, itself among them."""

    root: float
    family: float

    def __sub__(self, earlier: "Spent") -> "Spent":
        return Spent(self.root - earlier.root, self.family - earlier.family)


def spent(root: int) -> Spent:
    """What the process `root` has used so far."""
    members = family(root, _all_processes())
    own = sum(p.ticks for p in members if p.pid == root)
    return Spent(own / _TICKS_PER_SECOND, sum(p.ticks for p in members) / _TICKS_PER_SECOND)


def _all_processes() -> list[ProcessTimes]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append(parse_stat((folder / "stat").read_text()))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between listing and reading
    return found
