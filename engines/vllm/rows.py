"""Which tokens of a step run how wide: counted here, multiplied in `layers.py`. Knows no tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from engines.vllm.form import PathForm


@dataclass(slots=True, kw_only=True, frozen=True)
class StepRows:
    """The tokens of one step, all on the first `num_layers` layers.

    `counts` [1 + widths] has the tokens of the whole width, then of those at least as wide as each width, widest first;
    the last one is all tokens. `order` has the tokens in the order of their widths, None where they already are.
    """

    num_layers: int
    counts: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def num_whole(self) -> int:
        return self.counts[0]

    @property
    def is_whole(self) -> bool:
        """Whether every token runs all neurons."""
        return self.counts[0] == self.counts[-1]

    @classmethod
    def of(cls, paths: Sequence[PathForm], num_tokens: Sequence[int], num_widths: int) -> "StepRows":
        """From the sequences of a step, in the order of their tokens. Raises: ValueError for paths of two depths."""
        depths = {path.num_layers for path in paths}
        if len(depths) != 1:
            raise ValueError(f"a step has sequences of {sorted(depths)} layers: one depth runs at a time")
        of_width = [0] * (1 + num_widths)
        for path, count in zip(paths, num_tokens, strict=True):
            of_width[path.width] += count
        counts = tuple(sum(of_width[: entry + 1]) for entry in range(len(of_width)))
        return cls(num_layers=depths.pop(), counts=counts, order=_order(paths, num_tokens))


def _order(paths: Sequence[PathForm], num_tokens: Sequence[int]) -> tuple[int, ...] | None:
    widths = [path.width for path in paths]
    if widths == sorted(widths):
        return None
    starts, first = [], 0
    for count in num_tokens:
        starts.append(first)
        first += count
    ranked = sorted(range(len(paths)), key=widths.__getitem__)
    return tuple(token for one in ranked for token in range(starts[one], starts[one] + num_tokens[one]))
