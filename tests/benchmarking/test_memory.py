"""What a process takes, and what of that are pages of a file that it reads."""

from __future__ import annotations

import mmap
from pathlib import Path

from mla_opt.benchmarking.memory import resident_of

MB = 1 << 20


def test_pages_of_a_mapped_file_count_once_they_are_read(tmp_path: Path) -> None:
    weights, other = tmp_path / "weights of a model.data", tmp_path / "other"
    for path in (weights, other):
        path.write_bytes(bytes(8 * MB))
    with weights.open("rb") as one, other.open("rb") as two:
        first = mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_READ)
        second = mmap.mmap(two.fileno(), 0, access=mmap.ACCESS_READ)
        assert resident_of([weights]) == 0
        # A byte of each page; neighbours may come along, but no more than there are.
        assert sum(first[at] for at in range(0, 4 * MB, mmap.PAGESIZE)) == 0
        assert 4 <= resident_of([weights]) <= 8
        assert sum(second[:]) == 0
        assert 4 <= resident_of([weights]) <= 8
        assert resident_of([weights, other]) >= 12
        first.close()
        second.close()
