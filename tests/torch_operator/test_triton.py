"""The Triton kernels without a GPU: their numbers in the interpreter, and compiled for devices."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mla_opt.kernels.triton.tiles import MOST_SPLITS, splits_for

ROOT = Path(__file__).parent.parent.parent
CAPABILITIES = (80, 86, 89, 90, 100, 120)
# Shared memory that a program may have, in bytes.
SHARED = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}
# Query rows of a sequence: those of a tile of 16, and more.
ROWS = (16, 128)
FULLEST = ("boolean", 8)
WIDTHS = ((512, 64), (256, 32), (512, 0))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is released for Linux")


def run(module: str, *words: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.torch_operator.{module}", *words],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.long
def test_every_case_in_the_interpreter():
    outcomes = json.loads(run("triton_cases", TRITON_INTERPRET="1"))
    assert len(outcomes) > 100
    assert {key: said for key, said in outcomes.items() if said} == {}


def check_needs(variants, folder, spilt=0):
    words = [str(word) for variant in variants for word in variant]
    results = json.loads(run("triton_ahead", *words, TRITON_CACHE_DIR=str(folder)))
    for variant, result in zip(variants, results, strict=True):
        for kernel, needs in result.items():
            assert needs["spilt"] <= spilt, (variant, kernel, needs)
            assert needs["registers"] <= 255, (variant, kernel, needs)
            assert needs["shared"] <= SHARED[variant[0]], (variant, kernel, needs)


def test_compiled_ahead_without_spilling(tmp_path):
    """What takes the most registers: causal, ragged, a mask, and parts; the rest is swept."""
    check_needs([(86, 512, 64, 128, *FULLEST), (90, 512, 64, 16, *FULLEST)], tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_variant_compiled_ahead(capability, tmp_path):
    biases = ("none", "additive", "boolean")
    variants = itertools.product([capability], WIDTHS, ROWS, biases, (1, 8))
    flat = [(c, *widths, rows, bias, parts) for c, widths, rows, bias, parts in variants]
    # A few bytes that ptxas spills by its own choice; measured are 8 to 56, and 8 at 512 + 64.
    spill = [v for v in flat if v[2] != 64 or (capability in (86, 89) and v[4] == "additive")]
    check_needs([variant for variant in flat if variant not in spill], tmp_path)
    check_needs(spill, tmp_path, spilt=64)


def test_keys_are_split_where_there_is_nothing_else_to_do():
    assert splits_for(tiles=1, total_len=32768, processors=132) == MOST_SPLITS
    assert splits_for(tiles=1, total_len=1000, processors=132) == 3
    assert splits_for(tiles=1, total_len=5, processors=132) == 1
    assert splits_for(tiles=64, total_len=32768, processors=132) == 4
    assert splits_for(tiles=1000, total_len=32768, processors=132) == 1
