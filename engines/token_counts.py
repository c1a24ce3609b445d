"""How often each token has occurred in a text that grows, as arrays: penalties need that at every step."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


class TokenCounts:
    """`tokens` and `counts` belong together; the tokens are in the order of their first occurrence."""

    def __init__(self, start: int) -> None:
        """`start` is the place of the first token that counts."""
        self._next = start
        self._places: dict[int, int] = {}
        self._tokens = np.empty(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return self._tokens[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: len(self._places)]

    def follow(self, token_ids: Sequence[int]) -> None:
        """Count the tokens that have been added since the last call."""
        if not self._places and self._next < len(token_ids):
            self._begin(Counter(token_ids[self._next :]))
        else:
            for token_id in token_ids[self._next :]:
                self._count(token_id)
        self._next = max(self._next, len(token_ids))

    def _begin(self, counted: Mapping[int, int]) -> None:
        """A long prompt at once: token by token it takes milliseconds."""
        self._places = dict(zip(counted, range(len(counted)), strict=True))
        self._tokens = np.fromiter(counted, np.int64, len(counted))
        self._counts = np.fromiter(counted.values(), np.float32, len(counted))

    def _count(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._tokens[place] = token_id
        self._counts[place] += 1
