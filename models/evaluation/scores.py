"""A path's scores on one row, and the figures that are sums over rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True, frozen=True)
class RowScore:
    """A path's scores on one passage, summed over the tokens of its answer.

    `choice_nats` has the mean nats per token of every choice, the right one first; empty where there is no choice.
    `blind_nats` are those of the same answer after another row's question; None where that was not scored.
    Units: nats, kl, blind_nats in nats.
    """

    dataset: str
    task: str
    num_tokens: int
    nats: float
    kl: float
    num_agreed: int
    choice_nats: tuple[float, ...] = ()
    blind_nats: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether the right choice is likelier than every other one; a tie is not right."""
        return self.choice_nats[0] < min(self.choice_nats[1:])

    @property
    def information(self) -> float | None:
        """Nats that the row's own question takes off its answer; below 0 the question misleads."""
        return None if self.blind_nats is None else self.blind_nats - self.nats


def nats_per_token(rows: Iterable[RowScore]) -> float:
    held = list(rows)
    return sum(row.nats for row in held) / sum(row.num_tokens for row in held)


def perplexity_ratio(path: Sequence[RowScore], base: Sequence[RowScore]) -> float:
    """Perplexity of the reference answers on a path over that on the base; more than 1 is worse."""
    return math.exp(nats_per_token(path) - nats_per_token(base))


def agreement(rows: Sequence[RowScore]) -> float:
    """Share of answer positions at which the path's likeliest token is the reference's."""
    return sum(row.num_agreed for row in rows) / sum(row.num_tokens for row in rows)


def mean_kl(rows: Sequence[RowScore]) -> float:
    """Mean over answer positions of KL(reference || path). Units: nats."""
    return sum(row.kl for row in rows) / sum(row.num_tokens for row in rows)
