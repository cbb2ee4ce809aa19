"""The machine's processors and memory, as Linux tells of them in /proc. Knows nothing of models."""

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostFigures:
    """One look at the machine. cpu_utilization: share of all cores' time, 0 to 1."""

    cpu_utilization: float
    memory_total_bytes: int
    memory_used_bytes: int


class Host:
    """Looks at the machine when asked, but not more often than once an interval.

    So nothing runs while nobody asks, and the utilization is the mean since the look before.
    """

    def __init__(self, interval_seconds: float, proc: Path = Path("/proc")) -> None:
        """proc: where the kernel's files are."""
        self._interval = interval_seconds
        self._proc = proc
        self._looked = time.monotonic()
        self._ticks = self._read_ticks()
        self._figures: HostFigures | None = None

    def figures(self) -> HostFigures | None:
        """The latest figures; None where there is no /proc."""
        now = time.monotonic()
        if self._figures is None or now - self._looked >= self._interval:
            self._looked = now
            self._figures = self._look()
        return self._figures

    def _look(self) -> HostFigures | None:
        before, self._ticks = self._ticks, self._read_ticks()
        memory = self._read_memory()
        if before is None or self._ticks is None or memory is None:
            return None
        busy, total = (now - then for now, then in zip(self._ticks, before, strict=True))
        # The kernel's counters of idle time may step back a little.
        utilization = min(max(busy / total, 0.0), 1.0) if total > 0 else 0.0
        return HostFigures(utilization, memory[0], memory[0] - memory[1])

    def _read_ticks(self) -> tuple[int, int] | None:
        """Busy time and all time of all cores since the start of the machine."""
        try:
            first = (self._proc / "stat").read_text("ascii").partition("\n")[0]
        except OSError:
            return None
        # user nice system idle iowait irq softirq steal; guests are in user already
        ticks = [int(word) for word in first.split()[1:9]]
        return sum(ticks) - sum(ticks[3:5]), sum(ticks)

    def _read_memory(self) -> tuple[int, int] | None:
        """Bytes in all and bytes available."""
        try:
            lines = (self._proc / "meminfo").read_text("ascii").splitlines()
        except OSError:
            return None
        kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        return kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
