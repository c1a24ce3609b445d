"""Counts of a growing text are those of the whole text, and each token is gone through once."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.token_counts import TokenCounts


@given(st.lists(st.lists(st.integers(0, 200), max_size=90), max_size=6), st.integers(0, 20))
def test_counts_are_those_of_the_whole_text(parts: list[list[int]], start: int) -> None:
    text: list[int] = []
    counts = TokenCounts(start)
    for part in parts:
        text += part
        counts.follow(text)
        found = dict(zip(counts.tokens.tolist(), counts.counts.tolist(), strict=True))
        assert found == Counter(text[start:])


class WatchedText(list[int]):
    """Notes how many tokens are taken."""

    num_taken = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.num_taken += len(found)
        return found


@pytest.mark.parametrize("start", [0, 100])
def test_only_new_tokens_are_gone_through(start: int) -> None:
    text = WatchedText(range(1000))
    counts = TokenCounts(start)
    for token in range(50):
        counts.follow(text)
        text.append(token)
    assert text.num_taken == 1049 - start
