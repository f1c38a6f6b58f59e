"""How a command ends: the exit codes, and every error as one line on standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from enum import IntEnum

import typer

from mla_opt.errors import InputError, NothingMatchedError, VerificationError, one_line
from mla_opt.files.room import require_limit

DEBUG_VARIABLE = "MLA_OPT_DEBUG"

_LONGEST, _END = 2000, 500
"""Letters of a message, and of its end, which says what to do: names in a file may be longer."""


class Stopped(BaseException):
    """The system asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the process as an error would: what is half-written is removed.

    A signal that the caller has chosen to ignore, as nohup does, stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # one is enough; the next would disturb the clearing up
    raise Stopped(number)


class ExitCode(IntEnum):
    """What the process tells its caller."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    NOTHING_MATCHED = 3
    VERIFICATION_FAILED = 4
    INTERRUPTED = 130


SIGNALLED = 128
"""A process that a signal ends exits with this and the signal's number."""

EXIT_CODE_HELP = (
    "Exit codes: 0 done; 1 unexpected error; 2 bad usage or bad input; 3 nothing matched, or the "
    "cache that was asked for was refused; 4 verification failed (and nothing written); "
    "130 interrupted, 129 and 143 stopped by SIGHUP and SIGTERM."
)

_EXPECTED: tuple[tuple[type[Exception], ExitCode], ...] = (
    (InputError, ExitCode.BAD_INPUT),
    (NothingMatchedError, ExitCode.NOTHING_MATCHED),
    (VerificationError, ExitCode.VERIFICATION_FAILED),
)


@contextlib.contextmanager
def exit_on_error(*, verbose: bool) -> Iterator[None]:
    """Turn what goes wrong inside into one line on standard error and an exit code.

    Errors raised on purpose are told as they are; so is a lack of memory, of which no model is to
    blame. Any other comes with how to get its traceback, or with the traceback itself if
    ``verbose`` or the debug variable asks for it.
    """
    try:
        require_limit()
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        raise fail("interrupted", ExitCode.INTERRUPTED) from None
    except Stopped as stopped:
        raise fail(str(stopped), SIGNALLED + stopped.number) from None
    except MemoryError as error:
        told = f"out of memory: {one_line(error)}; give the process more, or a smaller model"
        raise fail(told, ExitCode.BAD_INPUT) from None
    except Exception as error:
        for kind, code in _EXPECTED:
            if isinstance(error, kind):
                raise fail(str(error), code) from None
        raise _unexpected(error, verbose) from None


def fail(message: str, code: int) -> typer.Exit:
    """Print ``message`` as one line on standard error; raise what is returned to leave."""
    prefix = typer.style("error:", fg=typer.colors.RED, bold=True)
    line = _shown(message)
    # echo drops the colour where standard error is no terminal.
    typer.echo(f"{prefix} {line}", err=True)
    return typer.Exit(int(code))


def _shown(message: str) -> str:
    """One line that a terminal shows and does not obey; the middle of a long one is left out."""
    line = " ".join(message.split())
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST - _END]} ... {line[-_END:]}"


def _unexpected(error: Exception, verbose: bool) -> typer.Exit:
    told = one_line(error)
    if verbose or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
        return fail(told, ExitCode.UNEXPECTED)
    hint = f"(--verbose or {DEBUG_VARIABLE}=1 shows the traceback)"
    return fail(f"{told} {hint}", ExitCode.UNEXPECTED)
