"""How much of the machine others used meanwhile: what makes figures worth less."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
#: Columns of the first line: time that was nobody's.
_IDLE, _WAITING = 3, 4


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds since some moment: by the clock, of all cores' work, of this program's own."""

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Reading:
        """Read the counters; work of a child counts once it has ended."""
        ticks = [int(word) for word in _STAT.read_text().splitlines()[0].split()[1:9]]
        idle = ticks[_IDLE] + ticks[_WAITING]
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            own += usage.ru_utime + usage.ru_stime
        return cls(time.monotonic(), (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), own)

    def others(self, since: Reading) -> float:
        """Cores that other processes kept busy on average, from ``since`` to this reading."""
        clock = max(self.clock - since.clock, 1e-9)
        return max(self.busy - since.busy - (self.own - since.own), 0.0) / clock
