"""Rows of the cheap head: it chooses, and the exact head says what was asked about, in one pass and only where needed.

In these rows token 0 and 1 are exact; what the cheap head says of the others is only a preview.
"""

import math
from typing import Any

import numpy as np
import pytest

from engines.sampler import ExactLogits, Sampled, Sampler
from engines.sequence import Sequence
from tests.engines.test_sampler import logits_of, sampler
from tests.engines.test_sampler import sequence as exact_sequence

EXACT = np.array([6.0, 5.0, 3.0, 9.0], np.float32)
CHEAP = np.array([6.0, 5.0, -5.0, 4.0], np.float32)


def sequence(**params: Any) -> Sequence:
    made = exact_sequence(**params)
    made.head = "cheap"
    return made


class Head:
    """An exact head that notes which rows it was asked for."""

    def __init__(self, rows: Any) -> None:
        self.rows = np.array(rows, np.float32)
        self.calls: list[list[int]] = []

    def __call__(self, rows: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.calls.append(rows)
        return self.rows[rows]


def sample_one(cheap: Any = CHEAP, exact: Any = EXACT, head: ExactLogits | None = None, **params: Any) -> Sampled:
    made = sequence(**{"temperature": 0.0, **params})
    return sampler().sample(np.array([cheap], np.float32), [made], head or Head([exact]))[0]


def test_sampler_chooses_by_the_cheap_head_and_asks_for_nothing_else() -> None:
    head = Head([EXACT])
    assert sample_one(head=head) == Sampled(token_id=0)
    assert head.calls == []


def test_sampler_reports_the_exact_logprobs_of_what_the_cheap_head_chose() -> None:
    exact = logits_of(0.2, 0.1, 0.3, 0.4)
    found = sample_one(logits_of(0.6, 0.2, 0.1, 0.1), exact, logprobs=2)
    assert found.token_id == 0
    assert found.logprob is not None
    assert found.logprob.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert [one.token_id for one in found.logprob.alternatives] == [3, 2]
    assert found.logprob.alternatives[0].logprob == pytest.approx(math.log(0.4), abs=1e-6)
    assert found.took_exact_row


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.05}, {"logit_bias": {7: 2.0}}])
def test_sampler_logprobs_change_no_draw(params: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    cheap, exact = rng.standard_normal((2, 64, 200)).astype(np.float32) * 3
    plain = [sequence(seed=seed, **params) for seed in range(64)]
    told = [sequence(seed=seed, logprobs=3, **params) for seed in range(64)]
    tokens = [one.token_id for one in sampler().sample(cheap, plain, Head(exact))]
    assert [one.token_id for one in sampler().sample(cheap, told, Head(exact))] == tokens
    assert tokens != [one.token_id for one in sampler().sample(exact, [exact_sequence(seed=s) for s in range(64)])]


@pytest.mark.parametrize(
    ("preview", "exact", "chosen"),
    [
        pytest.param(-5.0, 3.0, 2, id="the preview is too low"),
        pytest.param(3.0, -5.0, 0, id="the preview is too high"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_sampler_biases_the_exact_logit(preview: float, exact: float, chosen: int, temperature: float) -> None:
    """With a bias of 4 the token has 7, above the best one's 6, or -1."""
    cheap, truth = [6.0, 5.0, preview, 0.0], [6.0, 5.0, exact, 0.0]
    found = sample_one(cheap, truth, logit_bias={2: 4.0}, temperature=temperature, seed=1)
    assert found == Sampled(token_id=chosen, took_exact_row=True)


def test_sampler_takes_nothing_of_the_exact_row_but_what_was_asked_about() -> None:
    """Token 3 is the exact head's best, and the cheap head does not see that: it is not the path's choice."""
    assert sample_one(logit_bias={2: 1.0}, logprobs=1).token_id == 0
    assert sample_one(cheap=[6.0, 5.0, -5.0, 4.0], exact=[-9.0, 5.0, 3.0, 9.0], logit_bias={2: 1.0}).token_id == 0


@pytest.mark.parametrize(
    ("params", "chosen"),
    [
        # Token 2 has 8 exactly, more than token 0's 6, and 12 by the preview.
        ({"prompt": (2,), "repetition_penalty": 1.3}, 2),  # 8 / 1.3 = 6.15
        ({"prompt": (2,), "repetition_penalty": 1.4}, 0),  # 8 / 1.4 = 5.71; the preview would have 8.57
        ({"answer": (2,), "presence_penalty": 1.5}, 2),  # 6.5
        ({"answer": (2,), "presence_penalty": 2.5}, 0),  # 5.5; the preview would have 9.5
        ({"answer": (2, 2), "frequency_penalty": 0.9}, 2),  # 6.2
        ({"answer": (2, 2), "frequency_penalty": 1.1}, 0),  # 5.8; the preview would have 9.8
    ],
)
def test_sampler_penalises_the_exact_logit(params: dict[str, Any], chosen: int) -> None:
    found = sample_one(cheap=[6.0, 5.0, 12.0, 0.0], exact=[6.0, 5.0, 8.0, 9.0], **params)
    assert found == Sampled(token_id=chosen, took_exact_row=True)


def test_sampler_needs_no_exact_row_while_a_penalty_touches_nothing() -> None:
    head = Head([EXACT])
    sample_one(head=head, prompt=(2,), presence_penalty=1.0, frequency_penalty=1.0)
    assert head.calls == []


def test_sampler_asks_once_for_the_rows_that_need_it() -> None:
    head = Head([EXACT] * 6)
    sequences = [
        sequence(temperature=0.0),
        sequence(temperature=0.0, logprobs=0),
        exact_sequence(temperature=0.0, logprobs=0, logit_bias={2: 1.0}),
        sequence(temperature=0.0, logit_bias={2: 1.0}),
        sequence(temperature=0.0, top_p=0.5, min_p=0.1, top_k=3),
        sequence(temperature=0.0, answer=(3,), frequency_penalty=0.1),
    ]
    sampled = sampler().sample(np.stack([CHEAP, CHEAP, EXACT, CHEAP, CHEAP, CHEAP]), sequences, head)
    assert head.calls == [[1, 3, 5]]
    assert [one.took_exact_row for one in sampled] == [False, True, False, True, False, True]


def test_sampler_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(7)
    cheap, exact = rng.standard_normal((2, 6, 300)).astype(np.float32) * 3
    params: list[dict[str, Any]] = [
        {},
        {"logprobs": 2},
        {"logit_bias": {9: 5.0}},
        {"repetition_penalty": 1.3},
        {"top_p": 0.9},
        {"logprobs": 1, "logit_bias": {3: 4.0}},
    ]
    sequences = [sequence(seed=index, **one) for index, one in enumerate(params)]
    together = sampler().sample(cheap, sequences, Head(exact))
    for row, one in enumerate(sequences):
        assert sampler().sample(cheap[row : row + 1], [one], Head(exact[row : row + 1])) == [together[row]]


def test_sampler_refuses_exact_logits_that_are_not_numbers() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        sample_one(exact=[1.0, np.nan, 0.0, 0.0], logprobs=0)


def test_sampler_without_cheap_rows_needs_no_exact_head() -> None:
    found = Sampler(lambda _: b"").sample(np.array([EXACT]), [exact_sequence(temperature=0.0, logit_bias={2: 50.0})])
    assert found == [Sampled(token_id=2)]
