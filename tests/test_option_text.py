"""Numbers of tokens and caches, as users write them."""

from __future__ import annotations

import pytest

from mla_opt.errors import InputError
from mla_opt.option_text import parse_cache, parse_count
from mla_opt.options import Options


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("512", 512), ("8k", 8192), ("8K", 8192), ("2m", 2 << 20)]
)
def test_counts(text: str, number: int) -> None:
    assert parse_count(text) == number
    assert parse_cache(f"static:{text}") == ("static", number)
    assert Options(cache=f"static:{text}").cache_mode() == ("static", number)


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "8kk", "8g", "²", "1" * 10, "0", "0k"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(InputError, match=r"whole number; write 512 or 8k|too small"):
        parse_count(text)
    with pytest.raises(InputError, match=r"cache: the rows in 'static:"):
        Options(cache=f"static:{text}")


@pytest.mark.parametrize("text", ["", "paged", "keep:4", "packed:1k", "Static"])
def test_what_is_no_cache(text: str) -> None:
    with pytest.raises(InputError, match=f"'{text}' is none of keep, packed"):
        parse_cache(text)
