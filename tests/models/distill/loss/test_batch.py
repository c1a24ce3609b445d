"""Which positions of a batch count, for how much, and where the teacher's predictions for them are."""

from dataclasses import replace

import pytest
import torch

from models.distill.data.examples import Example
from models.distill.loss.batch import Batch, make_batch, shared_prefix, states
from models.distill.teacher.cache import CachedTeacher

LONG = Example(task="math", token_ids=(1, 2, 9, 10, 11), num_prompt_tokens=3, source="test")
SHORT = Example(task="math", token_ids=(1, 2, 5), num_prompt_tokens=2, source="test")
CACHE = CachedTeacher(
    states={2: torch.arange(1.0, 9.0)[:, None].bfloat16()},
    top_ids=torch.zeros(8, 1, dtype=torch.long),
    top_logprobs=torch.zeros(8, 1),
    entropy=torch.zeros(8),
    offsets=(0, 5, 8),
)


def batch_of(*indices: int, prefix: int = 2, prompt_weight: float = 0.5) -> Batch:
    batch = make_batch(indices, [LONG, SHORT], CACHE, prefix, prompt_weight)
    assert batch is not None
    return batch


def test_shared_prefix_is_what_all_examples_begin_with() -> None:
    assert shared_prefix([LONG, SHORT]) == 2
    assert shared_prefix([SHORT, SHORT]) == 3
    other = Example(task="math", token_ids=(7,), num_prompt_tokens=1, source="test")
    assert shared_prefix([LONG, other, SHORT]) == 0


def test_answers_count_whole_prompts_by_their_weight_and_the_shared_prefix_not_at_all() -> None:
    batch = batch_of(1, 0)
    expected = [[0, 1, 0, 0, 0], [0, 1, 1, 1, 0]]
    assert batch.counts_BT.int().tolist() == expected
    assert batch.is_real_BT.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    # Position 1 of the short one says its answer 5; of the long one the last prompt token 9.
    assert batch.target_N.tolist() == [5, 9, 10, 11]
    assert batch.rows_N.tolist() == [6, 1, 2, 3]
    torch.testing.assert_close(batch.weight_N, torch.tensor([8 / 7, 4 / 7, 8 / 7, 8 / 7]))
    assert (batch.num_tokens, batch.task, batch.indices) == (8, "math", (1, 0))


def test_prompts_of_no_weight_do_not_count() -> None:
    assert batch_of(0, prompt_weight=0.0).target_N.tolist() == [10, 11]


def test_without_a_shared_prefix_the_first_token_counts_too() -> None:
    assert batch_of(0, prefix=0).target_N.tolist() == [2, 9, 10, 11]


@pytest.mark.parametrize("token_ids", [(4,), (4, 5, 6)])
def test_a_batch_in_which_nothing_counts_is_none(token_ids: tuple[int, ...]) -> None:
    prompt = Example(task="math", token_ids=token_ids, num_prompt_tokens=len(token_ids), source="test")
    cache = replace(CACHE, offsets=(0, len(token_ids)))
    assert make_batch([0], [prompt], cache, 0, 0.0) is None


def test_states_are_the_examples_rows_with_zeros_behind() -> None:
    hidden_BTH = states(CACHE, batch_of(1, 0), 2, torch.device("cpu"))
    assert hidden_BTH.dtype is torch.bfloat16
    assert hidden_BTH[..., 0].tolist() == [[6, 7, 8, 0, 0], [1, 2, 3, 4, 5]]
