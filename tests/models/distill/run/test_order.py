"""The whole run's order: a function of the seed, one task per pass."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from models.distill.config import DistillConfig, TrainingSettings
from models.distill.run.order import plan_order
from models.distill.steering.schedules import DataMix
from tests.models.distill.tiny_teacher import examples_of

EXAMPLES = [
    *examples_of(*range(10, 50), task="math"),
    *examples_of(*range(10, 40), task="general"),
    *examples_of(*range(10, 40), task="fact"),
]


def order_of(*, epochs: float = 1, batch_tokens: int = 64, **settings: Any) -> list[list[int]]:
    training = TrainingSettings(epochs=epochs, batch_tokens=batch_tokens)
    config = DistillConfig(teacher="a", data="b", out="c", training=training)
    return plan_order(EXAMPLES, replace(config, **settings))


def test_an_epoch_sees_every_example_once_in_passes_of_one_task() -> None:
    order = order_of()
    assert sorted(index for batch in order for index in batch) == list(range(len(EXAMPLES)))
    for batch in order:
        assert len({EXAMPLES[index].task for index in batch}) == 1
        assert max(EXAMPLES[index].num_tokens for index in batch) * len(batch) <= 64
    tasks = [EXAMPLES[batch[0]].task for batch in order]
    assert tasks != sorted(tasks)


def test_the_order_comes_from_the_seed_and_every_epoch_has_its_own() -> None:
    assert order_of(epochs=2) == order_of(epochs=2)
    assert order_of() != order_of(seed=1)
    both, length = order_of(epochs=2), len(order_of())
    assert both[:length] == order_of()
    assert both[length:] != both[:length]


@pytest.mark.parametrize(("epochs", "least", "most"), [(0.5, 0, 1), (1.5, 1, 2), (2.5, 2, 3)])
def test_part_of_an_epoch_is_part_of_its_passes(epochs: float, least: int, most: int) -> None:
    order = order_of(epochs=epochs)
    assert abs(len(order) - epochs * len(order_of())) <= 1
    times = Counter(index for batch in order for index in batch)
    assert {times[index] for index in range(len(EXAMPLES))} == {least, most}


def test_a_mix_begins_with_general_text_and_ends_with_its_share() -> None:
    plain = order_of(epochs=20)
    mixed = order_of(epochs=20, mix=DataMix(general_stage=0.3, ramp=0.1, task_share=0.7))
    assert len(mixed) == len(plain)
    is_task = [EXAMPLES[batch[0]].task != "general" for batch in mixed]
    assert not any(is_task[: int(0.3 * len(mixed))])
    later = is_task[int(0.4 * len(mixed)) + 1 :]
    assert sum(later) / len(later) == pytest.approx(0.7, abs=0.08)
    assert mixed == order_of(epochs=20, mix=DataMix(general_stage=0.3, ramp=0.1, task_share=0.7))


def test_a_side_that_runs_out_begins_again() -> None:
    mixed = order_of(mix=DataMix(general_stage=1.0, ramp=0.0, task_share=0.7))
    plain = [batch for batch in order_of() if EXAMPLES[batch[0]].task == "general"]
    assert mixed == (plain * len(mixed))[: len(mixed)]
    assert len(mixed) > len(plain)


def test_a_mix_of_one_side_changes_nothing() -> None:
    config = DistillConfig(teacher="a", data="b", out="c", mix=DataMix())
    alone = examples_of(*range(10, 30))
    assert plan_order(alone, config) == plan_order(alone, replace(config, mix=None))
