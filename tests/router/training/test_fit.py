"""One step by hand, what dropping features does, and the same bits twice."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from router.classifier.features import Features, Ids, read_features
from router.training.fit import Bag, FitConfig, LinearModel, bag_of, fit, softmax

BITS = 8
PLAIN = FitConfig(num_bits=BITS, num_epochs=1, drop_share=0.0, smoothing=0.1)


def bag(**counts: int) -> Bag:
    """`bag(f3=4)`: feature 3 four times."""
    return whole_bag(np.array([int(name[1:]) for name, count in counts.items() for _ in range(count)], np.uint32))


def whole_bag(ids: Ids) -> Bag:
    return bag_of(Features(ids, ids[:0]), 0.0)


def fit_one(one: Bag, label: int, weight: float, config: FitConfig) -> LinearModel:
    return fit([one], np.array([label]), np.array([weight], np.float32), 2, config)


def test_bag_has_every_feature_of_a_part_once_and_the_opening_by_its_weight() -> None:
    whole, opening = np.array([7, 3, 7, 7], np.uint32), np.array([9, 9, 9, 9, 8, 8, 8, 8, 8], np.uint32)
    found = bag_of(Features(whole, opening), 0.75)
    assert found.ids.tolist() == [3, 7, 8, 9]
    assert found.values.tolist() == [0.5, 1.5, 0.75 * np.float32(5 / 3), 1.0]


def test_logits_are_weights_over_the_root_of_the_features() -> None:
    weights = np.zeros((1 << BITS, 2), np.float32)
    weights[3], weights[7] = (1.0, 2.0), (10.0, -4.0)
    model = LinearModel(weights=weights, bias=np.array([0.5, 0.25], np.float32))
    assert model.logits(bag(f3=1, f7=3)).tolist() == [0.5 + (1 + 30) / 2, 0.25 + (2 - 12) / 2]


def test_one_step_by_hand() -> None:
    """Shares are 1/2 each, targets 0.9 and 0.1: errors -0.4 and 0.4. Counts 4 and 12 over the root of 16: values 1 and
    3. Squares begin at 0.001."""
    model = fit_one(bag(f3=4, f7=12), 0, 1.0, PLAIN)
    assert model.bias.tolist() == pytest.approx([0.004, -0.004])
    small, large = 0.2 * 0.4 / math.sqrt(0.001 + 0.16), 0.2 * 1.2 / math.sqrt(0.001 + 1.44)
    assert model.weights[3].tolist() == pytest.approx([small, -small])
    assert model.weights[7].tolist() == pytest.approx([large, -large])
    assert np.count_nonzero(model.weights) == 4


def test_one_step_counts_the_weight_of_the_row() -> None:
    model = fit_one(bag(f3=4), 1, 0.25, PLAIN)
    step = 0.2 * 0.2 / math.sqrt(0.001 + 0.04)
    assert model.weights[3].tolist() == pytest.approx([-step, step])
    assert model.bias.tolist() == pytest.approx([-0.001, 0.001])


def test_second_step_is_from_where_the_first_led() -> None:
    """One feature, once: after the first step its weights are +-w, the biases +-0.004."""
    config = FitConfig(num_bits=BITS, num_epochs=2, drop_share=0.0, smoothing=0.1)
    model = fit_one(bag(f3=1), 0, 1.0, config)
    first = 0.2 * 0.4 / math.sqrt(0.161)
    error = 0.9 - 1 / (1 + math.exp(-2 * (first + 0.004)))
    second = 0.2 * error / math.sqrt(0.161 + error * error)
    assert model.weights[3].tolist() == pytest.approx([first + second, -first - second], rel=1e-5)
    assert model.bias.tolist() == pytest.approx([0.004 + 0.01 * error, -0.004 - 0.01 * error], rel=1e-5)


def test_smoothing_spreads_over_the_other_classes() -> None:
    """Of five classes with 1/5 each: errors 0.2 - 0.8, and 0.2 - 0.05."""
    config = FitConfig(num_bits=BITS, num_epochs=1, drop_share=0.0, smoothing=0.2)
    model = fit([bag(f1=1)], np.array([2]), np.ones(1, np.float32), 5, config)
    assert model.bias.tolist() == pytest.approx([-0.0015, -0.0015, 0.006, -0.0015, -0.0015])


def test_dropped_features_are_not_touched_and_kept_ones_scaled() -> None:
    """A quarter of 200 features stays, at twice its value of 1 over the root of 200."""
    config = FitConfig(num_bits=BITS, num_epochs=1, drop_share=0.75, smoothing=0.1)
    model = fit_one(whole_bag(np.arange(200, dtype=np.uint32)), 0, 1.0, config)
    touched = model.weights[model.weights[:, 0] != 0]
    assert 30 <= len(touched) <= 70
    step = 0.4 * 2 / math.sqrt(200)
    assert touched[:, 0].tolist() == pytest.approx([0.2 * step / math.sqrt(0.001 + step * step)] * len(touched))


def test_all_features_dropped_still_teaches_the_bias() -> None:
    config = FitConfig(num_bits=BITS, num_epochs=1, drop_share=0.9999999, smoothing=0.1)
    model = fit_one(bag(f3=1), 0, 1.0, config)
    assert not model.weights.any()
    assert model.bias.tolist() == pytest.approx([0.004, -0.004])


TEXTS = [f"{words} {number}" for number in range(20) for words in ("add the numbers", "write a poem", "陪审团的判决")]


def toy(seed: int = 0) -> tuple[list[Bag], npt.NDArray[np.int64], LinearModel]:
    bags = [bag_of(read_features(text, 12), 0.5) for text in TEXTS]
    labels = np.arange(len(TEXTS)) % 3
    config = FitConfig(num_bits=12, seed=seed)
    return bags, labels, fit(bags, labels, np.ones(len(TEXTS), np.float32), 3, config)


def test_separable_texts_are_learned() -> None:
    bags, labels, model = toy()
    assert [int(model.logits(one).argmax()) for one in bags] == labels.tolist()
    unseen = bag_of(read_features("Write me a little poem!", 12), 0.5)
    assert int(model.logits(unseen).argmax()) == 1


def test_same_seed_gives_the_same_bytes() -> None:
    (_, _, one), (_, _, same), (_, _, other) = toy(1), toy(1), toy(2)
    assert one.weights.tobytes() + one.bias.tobytes() == same.weights.tobytes() + same.bias.tobytes()
    assert one.weights.tobytes() != other.weights.tobytes()


def test_heavier_rows_win() -> None:
    """The same text under two labels."""
    one = bag(f1=2, f2=2)
    weights = np.array([1.0, 3.0], np.float32)
    model = fit([one, one], np.array([0, 1]), weights, 2, FitConfig(num_bits=BITS, num_epochs=20, drop_share=0.0))
    shares = softmax(model.logits(one).astype(np.float64))
    assert shares[1] > 0.6


def test_softmax_by_hand_and_at_the_ends() -> None:
    assert softmax(np.log([[1.0, 3.0], [4.0, 4.0]])).tolist() == [
        pytest.approx([0.25, 0.75]),
        pytest.approx([0.5, 0.5]),
    ]
    assert softmax(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]
