"""The result cache: what is kept and what never is."""

import asyncio

import pytest

from engines.sequence import FinishReason, SequenceEvent
from models.errors import ConfigError, Unavailable
from router.cache.config import CacheConfig
from router.cache.result_cache import CacheUse, ResultCache, make_result_cache
from router.cache.similar import Question, read_text
from router.cache.single_flight import Flight
from router.cache.store import MemoryStore
from router.decision import Target
from tests.router.flights import KEY, TARGET, end, text

USE = CacheUse(reads=True, writes=True)


class Held(MemoryStore):
    """A store whose `put` waits until it may go on."""

    def __init__(self) -> None:
        super().__init__(1_000_000, 60.0)
        self.may_go_on = asyncio.Event()

    async def put(self, key: str, value: bytes) -> bool:
        await self.may_go_on.wait()
        return await super().put(key, value)


class Shaky(MemoryStore):
    """A store that counts its calls, takes a moment for each, and may be down."""

    def __init__(self) -> None:
        super().__init__(1_000_000, 60.0)
        self.is_down = False
        self.num_asked = 0

    async def get(self, key: str) -> bytes | None:
        self.num_asked += 1
        await asyncio.sleep(0)
        if self.is_down:
            raise Unavailable("down")
        return await super().get(key)


def make_cache(**settings: int) -> ResultCache:
    return make_result_cache(CacheConfig(**settings))  # type: ignore[arg-type]


def generate(cache: ResultCache, *events: SequenceEvent, target: Target = TARGET, use: CacheUse = USE) -> Flight:
    """A generation, from its beginning to as far as the events go."""
    flight = cache.enter(KEY, 1, use)
    flight.start(target, lambda: None, cache.finish)
    for event in events:
        flight.push(0, event)
    cache.flights.leave(flight)
    return flight


async def settled(cache: ResultCache) -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def found(cache: ResultCache, use: CacheUse = USE) -> str | None:
    flight = cache.enter(KEY, 1, use)
    found = await cache.find(flight, use)
    cache.flights.leave(flight)
    return None if found is None else found.entry.choices[0].text


async def test_cache_finds_what_a_generation_left() -> None:
    cache = make_cache()
    generate(cache, text("an "), end(words="answer"))
    await settled(cache)
    assert await found(cache) == "an answer"
    assert (cache.num_stored, len(cache.flights)) == (1, 0)


@pytest.mark.parametrize(
    "events",
    [
        (text("half"),),
        (text("half"), end(FinishReason.ERROR)),
        (end(FinishReason.ABORT),),
        (end(path="shallow"),),
    ],
    ids=["unfinished", "failed", "aborted", "degraded"],
)
async def test_cache_never_keeps_what_is_not_the_answer(events: tuple[SequenceEvent, ...]) -> None:
    cache = make_cache()
    generate(cache, *events)
    await settled(cache)
    assert await found(cache) is None
    assert len(cache.flights) == 0


@pytest.mark.parametrize("where", [("other", "full"), ("tiny", "shallow")])
async def test_cache_never_keeps_a_fallback_s_answer(where: tuple[str, str]) -> None:
    cache = make_cache()
    student, path = where
    generate(cache, end(path=path), target=Target(student=student, path=path, reason=TARGET.reason))
    await settled(cache)
    assert await found(cache) is None


async def test_cache_keeps_nothing_larger_than_its_bound() -> None:
    cache = make_cache(max_entry_bytes=2000)
    generate(cache, end(words="x" * 2000))
    await settled(cache)
    assert (await found(cache), cache.num_too_large, cache.num_stored) == (None, 1, 0)


async def test_cache_gives_nothing_older_than_was_asked_for() -> None:
    cache = make_cache()
    generate(cache, end(words="answer"))
    await settled(cache)
    assert await found(cache, CacheUse(reads=True, writes=True, max_age_s=0.0)) is None
    assert await found(cache, CacheUse(reads=True, writes=True, max_age_s=60.0)) == "answer"
    assert await found(cache, CacheUse(writes=True)) is None


async def test_cache_counts_rubbish_and_replaces_it() -> None:
    cache = make_cache()
    await cache.store.put(KEY, b"rubbish")
    assert (await found(cache), cache.num_unreadable) == (None, 1)
    generate(cache, end(words="answer"))
    await settled(cache)
    assert await found(cache) == "answer"


async def test_flush_forgets_what_is_kept_and_what_is_on_its_way() -> None:
    cache = make_cache()
    generate(cache, end(words="old"))
    await settled(cache)
    flight = cache.enter(KEY, 1, CacheUse(reads=True, writes=True))
    flight.start(TARGET, lambda: None, cache.finish)
    assert await cache.flush("tiny:") == 1
    flight.push(0, end(words="begun before the flush"))
    await settled(cache)
    assert await found(cache) is None


async def test_flush_reaches_what_runs_alone() -> None:
    cache = make_cache()
    flight = cache.enter(KEY, 1, CacheUse(writes=True))
    flight.start(TARGET, lambda: None, cache.finish)
    await cache.flush("tiny:")
    flight.push(0, end(words="begun before the flush"))
    await settled(cache)
    assert await found(cache) is None


async def test_flush_reaches_what_those_who_wait_have_found() -> None:
    cache = make_cache()
    generate(cache, end(words="old"))
    await settled(cache)
    flight = cache.enter(KEY, 1, USE)
    assert await cache.find(flight, USE) is not None
    await cache.flush("tiny:")
    assert await cache.find(flight, USE) is None


async def test_flush_reaches_an_answer_that_is_being_put_away() -> None:
    store = Held()
    cache = ResultCache(CacheConfig(), store)
    generate(cache, end(words="old"))
    await settled(cache)
    await cache.flush("tiny:")
    store.may_go_on.set()
    await settled(cache)
    assert await found(cache) is None


async def test_generation_may_be_joined_until_it_is_put_away() -> None:
    store = Held()
    cache = ResultCache(CacheConfig(), store)
    flight = generate(cache, end(words="answer"))
    await settled(cache)
    again = cache.enter(KEY, 1, USE)
    assert again is flight
    cache.flights.leave(again)
    store.may_go_on.set()
    await settled(cache)
    assert len(cache.flights) == 0
    assert await found(cache) == "answer"


async def test_request_that_must_not_see_another_s_answer_runs_alone_and_is_kept() -> None:
    cache = make_cache()
    with_others = cache.enter(KEY, 1, USE)
    generate(cache, end(words="fresh"), use=CacheUse(writes=True))
    cache.flights.leave(with_others)
    await settled(cache)
    assert await found(cache) == "fresh"


async def test_store_is_asked_once_for_all_who_wait() -> None:
    store = Shaky()
    cache = ResultCache(CacheConfig(), store)
    flights = [cache.enter(KEY, 1, USE) for _ in range(9)]
    await asyncio.gather(*(cache.find(flight, USE) for flight in flights))
    assert store.num_asked == 1


async def test_kept_answer_that_is_too_old_for_one_is_given_to_the_next() -> None:
    cache = make_cache()
    generate(cache, end(words="answer"))
    await settled(cache)
    fresh = CacheUse(reads=True, writes=True, max_age_s=0.0)
    flight = cache.enter(KEY, 1, fresh)
    assert await cache.find(flight, fresh) is None
    assert await cache.find(flight, USE) is not None


def question(text: str = "what is a fact of nature?", threshold: float = 0.9) -> Question:
    return Question(group="g", reading=read_text(text), threshold=threshold)


async def keep_similar(cache: ResultCache, *texts: str) -> None:
    """Answers to other questions of one group."""
    for number, asked in enumerate(texts):
        flight = cache.enter(f"tiny:full:other{number}", 1, USE)
        flight.question = question(asked)
        flight.start(TARGET, lambda: None, cache.finish)
        flight.push(0, end(words="similar"))
        cache.flights.leave(flight)
    await settled(cache)


async def test_answer_to_a_similar_question_is_only_for_those_who_may_have_it() -> None:
    cache = make_cache()
    await keep_similar(cache, "what is a fact of nature")
    flight = cache.enter(KEY, 1, USE)
    assert await cache.find(flight, USE) is None
    found = await cache.find(flight, USE, question())
    assert found is not None
    assert found.similarity is not None
    assert 0.9 < found.similarity < 1.0
    assert await cache.find(flight, USE) is None
    assert await cache.find(flight, USE, question(threshold=1.0)) is None


async def test_store_that_fails_costs_one_call_and_no_questions() -> None:
    store = Shaky()
    cache = ResultCache(CacheConfig(), store)
    await keep_similar(cache, *(f"what is a fact of nature{end}" for end in ("", ".", "!")))
    store.is_down, store.num_asked = True, 0
    assert await cache.find(cache.enter(KEY, 1, USE), USE, question()) is None
    assert store.num_asked == 1
    store.is_down = False
    assert await cache.find(cache.enter("tiny:full:1", 1, USE), USE, question()) is not None


async def test_similar_answer_that_is_gone_is_looked_for_once() -> None:
    store = Shaky()
    cache = ResultCache(CacheConfig(), store)
    await keep_similar(cache, *(f"what is a fact of nature{end}" for end in ("", ".", "!")))
    await store.flush("")
    for number in range(4):
        store.num_asked = 0
        assert await cache.find(cache.enter(f"tiny:full:{number}", 1, USE), USE, question()) is None
        assert store.num_asked == (2 if number < 3 else 1)


async def test_close_waits_for_answers_on_their_way() -> None:
    cache = make_cache()
    generate(cache, end(words="answer"))
    await cache.close()
    assert cache.num_stored == 1


@pytest.mark.parametrize(
    "url", ["http://secret@host", "redis://secret@host:port", "redis://host/?socket_timeout=secret"]
)
def test_url_that_cannot_be_read_is_told_without_its_password(url: str) -> None:
    problems = [str(one) for one in CacheConfig(url=url).problems()]
    if not problems:
        with pytest.raises(ConfigError) as caught:
            make_result_cache(CacheConfig(url=url))
        problems = [str(caught.value)]
    assert "url" in problems[0]
    assert "secret" not in problems[0]


def test_entries_larger_than_the_whole_cache_are_a_mistake() -> None:
    assert CacheConfig(max_bytes=10, max_entry_bytes=11).problems()
    assert not CacheConfig(max_bytes=10, max_entry_bytes=11, url="redis://host").problems()
