"""The command line: ``mla-opt optimize | inspect | verify | bench | export | doctor | ...``.

One file per command.

Modules here import only what ``--help`` needs; everything heavy is imported when a command runs.
"""

from __future__ import annotations

from mla_opt.cli._app import main

__all__ = ["main"]
