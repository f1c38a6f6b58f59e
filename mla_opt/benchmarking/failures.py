"""What can go wrong in a process of ours, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mla_opt.benchmarking import memory
from mla_opt.benchmarking.participants import Variant
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.process import WorkerDiedError, WorkerError
from mla_opt.errors import InputError

#: What Linux kills a process with when memory runs out.
KILLED = -9
_NO_ROOM = ("MemoryError", "bad_alloc", "Failed to allocate", "failed to allocate", "out of memory")


@contextmanager
def as_bad_input(point: Point) -> Iterator[None]:
    """Turn what goes wrong in one of the models' processes into bad input at this point.

    Raises:
        InputError: a `WorkerError` was raised inside.
    """
    try:
        yield
    except WorkerError as error:
        raise InputError(f"{point}: {_why(error)}") from error


def check_memory(ours: Sequence[Variant], point: Point) -> None:
    """Refuse what cannot fit, before anything is started.

    Raises:
        InputError: the processes need more than the machine has left.
    """
    needed = sum(who.pair.least_bytes(who.side, point) for who in ours) / 2**20
    there = memory.available()
    if needed > there:
        raise InputError(
            f"{point}: needs at least {needed / 1024:.1f} GB of memory for {len(ours)} processes,"
            f" and {there / 1024:.1f} GB are available; use a shorter --context or a smaller"
            " --batch"
        )


def _why(error: WorkerError) -> str:
    killed = isinstance(error, WorkerDiedError) and error.code == KILLED
    if killed or error.kind == "MemoryError" or any(word in str(error) for word in _NO_ROOM):
        return f"memory ran out; use a shorter --context or a smaller --batch ({error})"
    return str(error)
