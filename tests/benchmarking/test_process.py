"""Talking to a process: answers, failures, and what is said of one that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from mla_opt.benchmarking.process import WorkerDiedError, WorkerError, WorkerProcess

ROOT = Path(__file__).parents[2]


def echo(word: str) -> WorkerProcess:
    return WorkerProcess("the echo", "tests.benchmarking.echo", [word], ROOT)


def test_answers_whatever_libraries_print() -> None:
    with echo("ab") as worker:
        assert worker.ask("say", times=2) == {"said": "abab"}


def test_a_failure_is_told_and_survived() -> None:
    with echo("ab") as worker:
        with pytest.raises(WorkerError, match="the echo: 'missing'") as caught:
            worker.ask("fail")
        assert caught.value.kind == "KeyError"
        assert worker.ask("say", times=1) == {"said": "ab"}


def test_one_that_ends_leaves_its_last_words() -> None:
    with (
        echo("ab") as worker,
        pytest.raises(WorkerDiedError, match="of the echo ended with exit status 7: last words"),
    ):
        worker.ask("end")


def test_one_that_does_not_start() -> None:
    with pytest.raises(WorkerError, match="not this word"):
        echo("refuse")
