"""The fitted preview: best in closed form, better after refining, and the same for the same seed."""

import numpy as np
import numpy.typing as npt
import pytest

from models.building.head_fit import FittedHead, HeadFitConfig, fit_head
from models.errors import ConfigError

Array = npt.NDArray[np.float32]
HIDDEN, VOCAB = 24, 200
SMALL = HeadFitConfig(rank=8, num_frequent=20, num_candidates=10, reach=20.0, steps=0, batch_rows=64)


@pytest.fixture(scope="module")
def weight() -> Array:
    return np.random.default_rng(1).standard_normal((VOCAB, HIDDEN)).astype(np.float32) * 0.5


@pytest.fixture(scope="module")
def states() -> Array:
    """Most of their variance lies in eight directions."""
    rng = np.random.default_rng(2)
    spread = np.where(np.arange(HIDDEN) < 8, 3.0, 0.5).astype(np.float32)
    return (rng.standard_normal((1500, HIDDEN)) * spread + 0.3).astype(np.float32)


def previews(head: FittedHead, states: Array, weight: Array) -> Array:
    preview: Array = (states @ head.project.T) @ (weight @ head.expand.T).T + head.bias
    return preview


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def softmax(logits: Array) -> Array:
    return np.exp(log_softmax(logits))


def kl_of(head: FittedHead, states: Array, weight: Array) -> float:
    exact, preview = states @ weight.T, previews(head, states, weight)
    for row, logits in enumerate(preview):
        rivals = logits.copy()
        rivals[list(head.frequent)] = -np.inf
        known = [*head.frequent, *np.argsort(-rivals)[: SMALL.num_candidates]]
        logits[known] = exact[row, known]
    return float((softmax(exact) * (log_softmax(exact) - log_softmax(preview))).sum(1).mean())


def test_a_preview_of_full_rank_is_the_exact_head(states: Array, weight: Array) -> None:
    config = HeadFitConfig(rank=24, num_frequent=1, num_candidates=1, steps=0)
    head = fit_head(states, weight, config)
    exact, preview = states @ weight.T, previews(head, states, weight)
    # A constant per position is left out of the fit: it changes no probability.
    np.testing.assert_allclose(softmax(preview), softmax(exact), rtol=1e-2, atol=1e-4)


def test_refining_lowers_the_divergence_on_states_it_has_not_seen(weight: Array) -> None:
    """Half of the tokens vary most and are never likely: least squares fits those, KL does not."""
    states, weight = np.random.default_rng(2).standard_normal((1500, HIDDEN)).astype(np.float32), weight.copy()
    states[:, 0] = 1.0
    weight[100:] *= 4.0
    weight[100:, 0] = -60.0
    start = fit_head(states[:1000], weight, SMALL)
    config = HeadFitConfig(rank=8, num_frequent=20, num_candidates=10, reach=20.0, steps=150, batch_rows=64)
    steps: list[tuple[int, float]] = []
    refined = fit_head(states[:1000], weight, config, lambda step, kl: steps.append((step, kl)))
    assert steps[0][0] == 0
    assert steps[-1][0] == 149
    assert kl_of(refined, states[1000:], weight) < 0.9 * kl_of(start, states[1000:], weight)


def test_the_same_seed_gives_the_same_head(states: Array, weight: Array) -> None:
    config = HeadFitConfig(rank=8, num_frequent=20, num_candidates=10, steps=5, batch_rows=32, seed=4)
    one, other = (fit_head(states, weight, config) for _ in range(2))
    np.testing.assert_array_equal(one.project, other.project)
    assert one.frequent == other.frequent


def test_frequent_tokens_are_the_likeliest_on_average(states: Array, weight: Array) -> None:
    expected = np.argsort(-softmax(states @ weight.T).sum(0))
    assert set(fit_head(states, weight, SMALL).frequent[:10]) <= set(expected[:20].tolist())


@pytest.mark.parametrize("reach", [0.5, 4.0, 1000.0])
def test_mean_candidates_are_those_within_reach_at_most_the_most(states: Array, weight: Array, reach: float) -> None:
    config = HeadFitConfig(rank=24, num_frequent=1, num_candidates=10, reach=reach, steps=0)
    head = fit_head(states, weight, config)
    logits = previews(head, states, weight)
    rivals = np.delete(logits, head.frequent, axis=1)
    num_near = (rivals >= logits.max(1, keepdims=True) - reach).sum(1)
    assert head.mean_candidates == pytest.approx(np.minimum(num_near, 10).mean(), abs=0.02)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HeadFitConfig(rank=28, num_frequent=4, num_candidates=4), "rank 28 is above the hidden size, 24"),
        (HeadFitConfig(rank=8, num_frequent=190, num_candidates=20), "are more than the vocabulary, 200"),
        (HeadFitConfig(rank=0, num_frequent=4, num_candidates=4), "rank"),
        (HeadFitConfig(rank=6, num_frequent=4, num_candidates=4), "rank 6 must be a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(states: Array, weight: Array, config: HeadFitConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_head(states, weight, config)
