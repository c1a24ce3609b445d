"""The teacher's cache holds what the trunk says, and a build that was killed ends like one that was not."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from models.distill.network.decoder import Trunk, padded
from models.distill.teacher import cache as cache_module
from models.distill.teacher.cache import CachedTeacher, cached_teacher, plan_cache
from models.errors import ConfigError
from models.sources.source import open_source
from tests.models.distill.tiny_teacher import SHA, cache_of, examples_of

EXAMPLES = examples_of(9, 4, 17, 12, 6, 9)
PLAN_LAYERS = (2, 3)


@pytest.fixture
def trunk(tiny_source: Callable[..., Path]) -> Trunk:
    return Trunk(open_source(tiny_source("llama")))


def test_cache_holds_what_the_trunk_says(trunk: Trunk, tmp_path: Path) -> None:
    found = cache_of(trunk, EXAMPLES, tmp_path)
    assert found.offsets == (0, 9, 13, 30, 42, 48, 57)
    for index, example in enumerate(EXAMPLES):
        rows = slice(found.offsets[index], found.offsets[index + 1])
        hidden_BTH = trunk.embed(padded([example.token_ids])[0])
        for layer in range(4):
            if layer in (2, 3):
                assert_same_bf16(found.states[layer][rows], hidden_BTH[0])
            hidden_BTH = trunk.run(hidden_BTH, range(layer, layer + 1))
        assert_same_bf16(found.states[4][rows], hidden_BTH[0])
        logprobs_TV = trunk.logits(trunk.norm(hidden_BTH[0])).log_softmax(-1)
        entropy_T = torch.special.entr(logprobs_TV.exp()).sum(-1)
        torch.testing.assert_close(found.entropy[rows], entropy_T, rtol=1e-3, atol=1e-4)
        likeliest_TK = logprobs_TV.sort(descending=True).values[:, :8]
        torch.testing.assert_close(found.top_logprobs[rows].float(), likeliest_TK, rtol=2e-3, atol=2e-3)
        looked_up = logprobs_TV.gather(1, found.top_ids[rows].long())
        torch.testing.assert_close(looked_up, likeliest_TK, rtol=1e-3, atol=1e-3)


def assert_same_bf16(cached: torch.Tensor, direct: torch.Tensor) -> None:
    assert cached.dtype is torch.bfloat16
    torch.testing.assert_close(cached.float(), direct, rtol=2**-7, atol=1e-4)


def test_a_killed_build_goes_on_where_it_was(trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "FLUSH_BATCHES", 1)
    plan = plan_cache(trunk, SHA, EXAMPLES, PLAN_LAYERS, 8)
    heard: list[int] = []

    def build(parent: str, stop_at: int | None = None) -> CachedTeacher:
        heard.clear()

        def report(num_tokens: int) -> None:
            heard.append(num_tokens)
            if len(heard) == stop_at:
                raise KeyboardInterrupt

        return cached_teacher(tmp_path / parent, plan, trunk, EXAMPLES, batch_tokens=18, report=report)

    build("whole")
    assert heard == [0, 4 + 6, 9 + 9, 12, 17]
    with pytest.raises(KeyboardInterrupt):
        build("torn", stop_at=4)
    build("torn")
    # The third batch was computed but not yet noted as done.
    assert heard == [10 + 18, 12, 17]
    for file in (tmp_path / "whole" / plan.key()).iterdir():
        assert file.read_bytes() == (tmp_path / "torn" / plan.key() / file.name).read_bytes(), file.name
    build("torn")
    assert heard == [57]


def test_a_finished_cache_is_opened_without_the_trunk(
    trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache_of(trunk, EXAMPLES, tmp_path)

    def run(*_: object) -> NoReturn:
        raise AssertionError("the trunk ran again")

    monkeypatch.setattr(trunk, "run", run)
    again = cache_of(trunk, EXAMPLES, tmp_path)
    assert all(torch.equal(first.states[layer], again.states[layer]) for layer in (2, 3, 4))


def test_another_plan_gets_another_folder(trunk: Trunk) -> None:
    plans = [
        plan_cache(trunk, SHA, EXAMPLES, PLAN_LAYERS, 8),
        plan_cache(trunk, "6" * 64, EXAMPLES, PLAN_LAYERS, 8),
        plan_cache(trunk, SHA, EXAMPLES[1:], PLAN_LAYERS, 8),
        plan_cache(trunk, SHA, EXAMPLES[::-1], PLAN_LAYERS, 8),
        plan_cache(trunk, SHA, EXAMPLES, (2,), 8),
        plan_cache(trunk, SHA, EXAMPLES, PLAN_LAYERS, 9),
    ]
    assert len({plan.key() for plan in plans}) == len(plans)
    # The last layer's states are always there, and the order and repetition of layers do not matter.
    assert plan_cache(trunk, SHA, EXAMPLES, (3, 2, 2, 4), 8) == plans[0]


def test_the_caches_size_is_what_its_plan_says(trunk: Trunk, tmp_path: Path) -> None:
    cache_of(trunk, EXAMPLES, tmp_path)
    files = list(tmp_path.glob("*/*.bin"))
    # Three states of 64 channels in two bytes, eight ids in four bytes with log-probabilities in two, an entropy.
    per_token = 3 * 64 * 2 + 8 * (4 + 2) + 4
    assert sum(file.stat().st_size for file in files) == 57 * per_token
    assert plan_cache(trunk, SHA, EXAMPLES, PLAN_LAYERS, 8).bytes_per_token() == per_token


def test_a_full_disk_shows_before_anything_is_computed(
    trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"no room for the teacher's cache in .*GiB.*No space left"):
        cache_of(trunk, EXAMPLES, tmp_path)
    assert not list(tmp_path.glob("*/*.bin"))
    monkeypatch.undo()
    assert len(cache_of(trunk, EXAMPLES, tmp_path).entropy) == 57
