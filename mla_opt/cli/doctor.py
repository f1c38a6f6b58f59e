"""``mla-opt doctor``: what is installed, which kernels run, and which targets are ready here."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what is installed, which kernels are used, and which targets are ready on this machine.

    For a target that is not ready it names what is missing and the command that brings it. That
    something is missing is no failure: the exit code is 0.
    """
    with exit_on_error(verbose=verbose):
        from mla_opt.doctor import examine

        report = examine()
        if json:
            sys.stdout.write(report.to_json())
            return
        screen = Screen(quiet=quiet, verbose=verbose)
        for line in report.lines():
            screen.say(line)
