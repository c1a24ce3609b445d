"""A path's scores on one row, and the figures that are sums over rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from models.student.manifest import HeadKind


class PathHead(NamedTuple):
    """A path, and the head that turns its states into predictions."""

    path: str
    head: HeadKind


@dataclass(slots=True, kw_only=True, frozen=True)
class RowScore:
    """A path's scores on one passage, summed over the tokens of its answer.

    `choice_nats` has the mean nats per token of every choice, the right one first; empty where there is no choice.
    `reworded_choice_nats` has the same for every rewording of the question.
    `blind_nats` are those of the same answer after another row's question; None where that was not scored.
    `kl` and `num_agreed` compare with the reference, `full_kl` and `num_full_agreed` with the full path and the exact
    head at the same precision; None where predictions were not compared.
    Units: nats, kl, full_kl, blind_nats in nats.
    """

    dataset: str
    task: str
    num_tokens: int
    nats: float
    kl: float | None = None
    num_agreed: int | None = None
    full_kl: float | None = None
    num_full_agreed: int | None = None
    choice_nats: tuple[float, ...] = ()
    blind_nats: float | None = None
    reworded_choice_nats: tuple[tuple[float, ...], ...] = ()

    @property
    def share_right(self) -> float:
        """In what share of the wordings the right choice is likelier than every other one; a tie is not right."""
        wordings = (self.choice_nats, *self.reworded_choice_nats)
        return sum(right < min(wrong) for right, *wrong in wordings) / len(wordings)

    @property
    def information(self) -> float | None:
        """Nats that the row's own question takes off its answer; below 0 the question misleads."""
        return None if self.blind_nats is None else self.blind_nats - self.nats


@dataclass(slots=True, kw_only=True, frozen=True)
class TextScore:
    """The nats of a text without a prompt, all its tokens together."""

    dataset: str
    task: str
    num_tokens: int
    nats: float


@dataclass(slots=True, kw_only=True, frozen=True)
class PairScore:
    """The nats of a right sentence and of a wrong one that differs little from it."""

    good_nats: float
    bad_nats: float

    @property
    def is_right(self) -> bool:
        """Whether the right sentence is likelier; a tie is not right."""
        return self.good_nats < self.bad_nats


@dataclass(slots=True, kw_only=True, frozen=True)
class AnswerScore:
    """A path's own answer to a prompt, as the full path with the exact head finds it.

    `num_ngrams` counts its runs of four tokens, `num_repeated` those of them that stand earlier in it.
    """

    task: str
    prompt: str
    num_tokens: int
    nats: float
    num_ngrams: int
    num_repeated: int


@dataclass(slots=True, kw_only=True)
class Scores:
    """All scores of one path with one head at one precision: texts in the same order for every path."""

    rows: list[RowScore] = field(default_factory=list)
    plain: list[TextScore] = field(default_factory=list)
    pairs: list[PairScore] = field(default_factory=list)
    answers: list[AnswerScore] = field(default_factory=list)


def nats_per_token(rows: Iterable[RowScore]) -> float:
    held = list(rows)
    return sum(row.nats for row in held) / sum(row.num_tokens for row in held)


def perplexity_ratio(path: Sequence[RowScore], base: Sequence[RowScore]) -> float:
    """Perplexity of the reference answers on a path over that on the base; more than 1 is worse."""
    return math.exp(nats_per_token(path) - nats_per_token(base))


def agreement(rows: Sequence[RowScore]) -> float:
    """Share of answer positions at which the path's likeliest token is the reference's, in rows that were compared."""
    compared = [row for row in rows if row.num_agreed is not None]
    return sum(row.num_agreed or 0 for row in compared) / sum(row.num_tokens for row in compared)


def mean_kl(rows: Sequence[RowScore]) -> float:
    """Mean over answer positions of KL(reference || path), in rows that were compared. Units: nats."""
    compared = [row for row in rows if row.kl is not None]
    return sum(row.kl or 0.0 for row in compared) / sum(row.num_tokens for row in compared)


def repeated_ngrams(token_ids: Sequence[int], size: int = 4) -> tuple[int, int]:
    """How many runs of `size` tokens there are, and how many of them stand earlier in the text."""
    runs = [tuple(token_ids[start : start + size]) for start in range(len(token_ids) - size + 1)]
    return len(runs), len(runs) - len(set(runs))
