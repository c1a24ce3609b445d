"""What the result cache may do for a request."""

import pytest

from engines.sequence import GenerationRequest, SamplingParams
from router.cache.result_cache import BYPASS, CacheUse
from server.generation.cache_control import cache_use

FULL = CacheUse(reads=True, writes=True)


def request(**sampling: float) -> GenerationRequest:
    params = SamplingParams(max_tokens=4, **sampling)  # type: ignore[arg-type]
    return GenerationRequest(id="a", prompt_token_ids=(1,), path="full", sampling=params)


GREEDY, SEEDED, DRAWN = request(temperature=0.0), request(seed=1), request()


def use_of(
    *requests: GenerationRequest, wanted: bool | None = None, said: str = "", is_enabled: bool = True
) -> CacheUse:
    return cache_use(requests, wanted, [said] if said else [], is_enabled=is_enabled)


def test_cache_is_used_for_what_can_be_repeated() -> None:
    assert use_of(GREEDY) == use_of(SEEDED) == use_of(GREEDY, SEEDED) == FULL
    assert use_of(DRAWN) == use_of(GREEDY, DRAWN) == BYPASS


def test_cache_follows_the_wish_of_the_body() -> None:
    assert use_of(DRAWN, wanted=True) == FULL
    assert use_of(GREEDY, wanted=False) == BYPASS
    assert use_of(GREEDY, wanted=True, is_enabled=False) == BYPASS


@pytest.mark.parametrize(
    ("said", "use"),
    [
        ("no-store", BYPASS),
        ("no-cache, no-store", BYPASS),
        ("No-Cache", CacheUse(writes=True)),
        ("max-age=0", CacheUse(reads=True, writes=True, max_age_s=0.0)),
        ("max-age = 60", CacheUse(reads=True, writes=True, max_age_s=60.0)),
        ('max-age="60", max-age=5', CacheUse(reads=True, writes=True, max_age_s=5.0)),
        ("max-age=soon", CacheUse(reads=True, writes=True, max_age_s=0.0)),
        ("max-age", CacheUse(reads=True, writes=True, max_age_s=0.0)),
        ("max-age=-1", CacheUse(reads=True, writes=True, max_age_s=0.0)),
        ("public, x-no-store, max-stale=3", FULL),
        (" , ,", FULL),
    ],
)
def test_cache_follows_the_client_s_cache_control(said: str, use: CacheUse) -> None:
    assert use_of(GREEDY, said=said) == use


def test_cache_control_is_narrower_than_the_wish() -> None:
    assert use_of(DRAWN, wanted=True, said="no-store") == BYPASS
    assert use_of(GREEDY, wanted=False, said="max-age=60") == BYPASS


def test_cache_control_may_come_in_several_headers() -> None:
    use = cache_use([GREEDY], None, ["max-age=60", "no-cache"], is_enabled=True)
    assert use == CacheUse(writes=True)
