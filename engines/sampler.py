"""From logits to tokens. Rows that need more than the largest logit are handled one at a time.

The head of a sequence chooses its tokens. The cheap head only previews most logits, so for its rows the logits that a
request asks about (bias, penalties, legal tokens of a grammar) and all log-probabilities come from the exact head.
"""

import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engines.drawing import Chooser, PlainChooser, Row, uniform
from engines.grammar import Masks, Tokens
from engines.sequence import SamplingParams, Sequence, TokenLogprob

T = TypeVar("T")

ExactLogits = Callable[[list[int]], npt.NDArray[np.float32]]
"""The exact head's logits of some rows, by their index among those to be sampled. Shapes: returns [rows, vocab]."""

LARGEST_LOGIT = np.float32(1e30)
NO_TOKENS: Tokens = np.empty(0, np.int64)
REDRAW = 0x5851F42D4C957F2D
"""Turns a seed into another, for second draws: they must not depend on the first."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Sampled:
    """`took_exact_row`: the row was the cheap head's, and the exact head computed it too."""

    token_id: int
    logprob: TokenLogprob | None = None
    took_exact_row: bool = False


class Choice:
    """The choice of one row's token. `exact` is the row by the exact head, None until that is known; `seconds` is what
    the choice has cost alone, `exact_s` its part of a pass of the exact head that several rows needed."""

    __slots__ = (
        "_banned",
        "_best",
        "_row",
        "_touched",
        "exact",
        "exact_s",
        "is_cheap",
        "seconds",
        "sequence",
        "token_id",
    )

    def __init__(self, row: Row, best: np.intp, sequence: Sequence, banned: Tokens = NO_TOKENS) -> None:
        """`best` is the row's largest logit; `banned` tokens are not chosen while any other may be."""
        self._banned = banned
        self.sequence = sequence
        self.is_cheap = sequence.head == "cheap"
        self.exact = None if self.is_cheap else row
        self.token_id: int | None = None
        self.seconds = 0.0
        self.exact_s = 0.0
        self._row = row
        self._best = best
        self._touched = adjusted_tokens(sequence) if self.is_cheap else NO_TOKENS

    @property
    def waits(self) -> bool:
        """Whether logits are missing that the token depends on."""
        return self.exact is None and len(self._touched) > 0

    @property
    def is_refused(self) -> bool:
        """Whether the sequence's grammar refuses the token that was chosen."""
        matcher = self.sequence.matcher
        return matcher is not None and self.token_id is not None and not matcher.allows(self.token_id)

    @property
    def wants_logprobs(self) -> bool:
        return self.sequence.request.sampling.logprobs is not None

    def choose(self, chooser: Chooser) -> None:
        """Choose among all tokens."""
        row, sequence = self._row, self.sequence
        if _is_adjusted(sequence.request.sampling) or len(self._banned):
            row = row.copy()
            self._take_exact(row)
            adjust_in_place(row, sequence)
            row[self._banned] = -LARGEST_LOGIT
        if sequence.request.sampling.is_greedy:
            self.token_id = int(self._best if row is self._row else row.argmax())
        else:
            point = uniform(sequence.seed, sequence.num_completion_tokens)
            self.token_id = chooser.draw(row, sequence.request.sampling, point)

    def _take_exact(self, row: Row) -> None:
        """Replace previews that are going to be adjusted."""
        if not len(self._touched):
            return
        assert self.exact is not None
        bias = self.sequence.bias
        if bias.spread is not None and self._touched is bias.tokens:
            is_biased = bias.spread.is_biased
            np.copyto(row[: len(is_biased)], self.exact[: len(is_biased)], where=is_biased)
        else:
            row[self._touched] = self.exact[self._touched]

    def choose_legal(self, legal: Tokens, chooser: Chooser) -> None:
        """Choose among the tokens that a grammar allows."""
        assert self.exact is not None
        if len(self._banned):
            others = legal[~np.isin(legal, self._banned)]
            legal = others if len(others) else legal
        self.token_id = _choose_legal(adjust(self.exact, self.sequence), legal, self.sequence, chooser)


class Sampler:
    """`token_bytes` gives the bytes a token stands for, for logprobs; `eos_token_ids` end an answer. Without a
    `chooser` numpy chooses."""

    def __init__(
        self, token_bytes: Callable[[int], bytes], eos_token_ids: Iterable[int] = (), chooser: Chooser | None = None
    ) -> None:
        self._chooser = PlainChooser() if chooser is None else chooser
        self._token_bytes = token_bytes
        self._eos_token_ids = frozenset(eos_token_ids)
        self._masks = Masks()

    def sample(
        self, logits: npt.NDArray[np.float32], sequences: list[Sequence], exact_logits: ExactLogits | None = None
    ) -> list[Sampled]:
        """The next token of every sequence, each from its row by its own head. `exact_logits` is called at most once,
        and only for rows of the cheap head; without such rows it may be left out.

        Shapes: logits [len(sequences), vocab].
        Raises: FloatingPointError for logits that are not finite: a broken model must not answer nonsense.
        """
        choices = [
            Choice(row, best, sequence, end_tokens_to_avoid(sequence, self._eos_token_ids))
            for row, best, sequence in zip(logits, largest(logits), sequences, strict=True)
        ]
        at_once = [choice for choice in choices if not choice.waits]
        for choice in at_once:
            _timed(choice, partial(choice.choose, self._chooser))
        refused = [choice for choice in at_once if choice.is_refused]
        _complete(choices, refused, exact_logits)
        for choice in choices:
            if choice.token_id is None:
                _timed(choice, partial(choice.choose, self._chooser))
                refused += [choice] if choice.is_refused else []
        for group in _by_tenant(refused):
            self._choose_legal(group)
        sampled = [_timed(choice, partial(self._sampled, choice)) for choice in choices]
        for choice in choices:
            choice.sequence.note_choosing(choice.seconds, choice.exact_s)
        return sampled

    def _choose_legal(self, refused: list[Choice]) -> None:
        """Choose again where a grammar refused the token; only there, because listing what is legal costs more.

        A token drawn among all is kept if it is legal; otherwise another is drawn among the legal ones. Without filters
        such as top-p this gives every legal token the probability that it has among the legal tokens. Filters apply to
        all tokens in the first draw, and to the legal ones in the second.
        """
        matchers = [choice.sequence.matcher for choice in refused if choice.sequence.matcher is not None]
        begun_s = time.perf_counter()  # the library's own threads work
        masks = self._masks.legal_tokens(matchers)
        seconds = (time.perf_counter() - begun_s) / len(refused)
        for choice, legal in zip(refused, masks, strict=True):
            choice.seconds += seconds
            _timed(choice, partial(choice.choose_legal, legal, self._chooser))

    def _sampled(self, choice: Choice) -> Sampled:
        token_id, num_alternatives = choice.token_id, choice.sequence.request.sampling.logprobs
        assert token_id is not None
        took_exact_row = choice.is_cheap and choice.exact is not None
        if num_alternatives is None:
            return Sampled(token_id=token_id, took_exact_row=took_exact_row)
        assert choice.exact is not None
        logprob = self._logprob(choice.exact, token_id, num_alternatives)
        return Sampled(token_id=token_id, logprob=logprob, took_exact_row=took_exact_row)

    def _logprob(self, row: Row, token_id: int, num_alternatives: int) -> TokenLogprob:
        """Under the raw distribution, before penalties and temperature."""
        found = self._chooser.likeliest(row, num_alternatives)
        own, *alternatives = (
            TokenLogprob(token_id=id, logprob=logit - found.log_total, token_bytes=self._token_bytes(id))
            for id, logit in zip((token_id, *found.token_ids), row[[token_id, *found.token_ids]].tolist(), strict=True)
        )
        return replace(own, alternatives=tuple(alternatives))


def _timed(choice: Choice, work: Callable[[], T]) -> T:
    """Count the processor's time, not the clock's: other threads may hold this one up, which is not the row's fault."""
    begun_s = time.thread_time()
    result = work()
    choice.seconds += time.thread_time() - begun_s
    return result


def _by_tenant(choices: list[Choice]) -> list[list[Choice]]:
    """One tenant's schemas must not count as another's cost."""
    found: dict[str, list[Choice]] = {}
    for choice in choices:
        found.setdefault(choice.sequence.tenant, []).append(choice)
    return list(found.values())


def _complete(choices: list[Choice], refused: list[Choice], exact_logits: ExactLogits | None) -> None:
    """Give every choice its exact row that needs one and has none: one pass of the exact head for all of them."""
    needing = [
        index
        for index, choice in enumerate(choices)
        if choice.exact is None and (choice.waits or choice.wants_logprobs or choice in refused)
    ]
    if needing:
        assert exact_logits is not None
        begun_s = time.perf_counter()  # the runner's own threads work
        rows = exact_logits(needing)
        largest(rows)
        seconds = (time.perf_counter() - begun_s) / len(needing)
        for index, row in zip(needing, rows, strict=True):
            choices[index].exact, choices[index].exact_s = row, seconds


def end_tokens_to_avoid(sequence: Sequence, eos_token_ids: Set[int]) -> Tokens:
    """The tokens that would end an answer which has to go on. A grammar ends with an end token, so that it cannot be
    ignored there, but it can be put off.

    Source: vLLM, `MinTokensLogitsProcessor`.
    """
    params = sequence.request.sampling
    if sequence.num_completion_tokens < params.min_tokens:
        return np.array(sorted(eos_token_ids | params.stop_token_ids), np.int64)
    if params.ignore_eos and sequence.matcher is not None:
        return np.array(sorted(eos_token_ids), np.int64)
    return NO_TOKENS


def largest(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """The index of the largest logit of every row. Raises: FloatingPointError for logits that are not finite."""
    best: npt.NDArray[np.intp] = logits.argmax(axis=1)
    if not np.isfinite(logits[np.arange(len(best)), best]).all():
        raise FloatingPointError("the model's logits are not finite")
    return best


def _choose_legal(adjusted: Row, legal: Tokens, sequence: Sequence, chooser: Chooser) -> int:
    """A token among the legal ones; if there are none, any token, which the grammar then refuses."""
    params = sequence.request.sampling
    if not len(legal):
        return int(adjusted.argmax())
    if params.is_greedy:
        return int(legal[adjusted[legal].argmax()])
    point = uniform(sequence.seed ^ REDRAW, sequence.num_completion_tokens)
    return int(legal[chooser.draw(adjusted[legal], params, point)])


def _is_adjusted(params: SamplingParams) -> bool:
    return bool(params.logit_bias or params.repetition_penalty != 1.0 or _counts_tokens(params))


def _counts_tokens(params: SamplingParams) -> bool:
    return params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def adjusted_tokens(sequence: Sequence) -> Tokens:
    """The tokens whose logits `adjust` changes; some of them may be there twice."""
    params = sequence.request.sampling
    if params.repetition_penalty != 1.0:
        return np.concatenate([sequence.bias.tokens, sequence.count_tokens().tokens])
    if _counts_tokens(params):
        return np.concatenate([sequence.bias.tokens, sequence.count_answer().tokens])
    return sequence.bias.tokens


def adjust(row: Row, sequence: Sequence) -> Row:
    """Logits with bias and penalties; `row` itself stays as it is."""
    if not _is_adjusted(sequence.request.sampling):
        return row
    adjusted = row.copy()
    adjust_in_place(adjusted, sequence)
    return adjusted


def adjust_in_place(row: Row, sequence: Sequence) -> None:
    """Add bias and penalties to logits.

    Source: repetition over prompt and answer as in CTRL (arXiv 1909.05858, section 4.1); presence and frequency over
    the answer as the OpenAI specification defines them.
    """
    params = sequence.request.sampling
    if params.repetition_penalty != 1.0:
        seen, penalty = sequence.count_tokens().tokens, params.repetition_penalty
        values = row[seen]
        values = np.where(values > 0, values / penalty, values * penalty)
        # An extreme penalty overflows; infinities would turn to NaN in the softmax.
        row[seen] = np.clip(values, -LARGEST_LOGIT, LARGEST_LOGIT)
    if _counts_tokens(params):
        answer = sequence.count_answer()
        row[answer.tokens] -= params.presence_penalty + params.frequency_penalty * answer.counts
    sequence.bias.add_to(row)
