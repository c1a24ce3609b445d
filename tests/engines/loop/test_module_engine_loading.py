"""Progressive loading: paths become servable one after the other, and waiting for one holds up no other sequence."""

import threading
from typing import Any

import pytest

from engines.loop import loading
from engines.sequence import FinishReason, WhileLoading
from models.errors import EngineUnhealthy


@pytest.fixture
def gated(make_engine: Any) -> Any:
    """An engine that loads the knowledge path at once and each later module when its gate opens."""
    fake = make_engine(max_running=2)
    fake.runner.gates = {name: threading.Event() for name in ("reasoning", "adapter")}
    fake.start()
    fake.submit("first", path="knowledge", max_tokens=2, ignore_eos=True)
    fake.finish("first")
    return fake


def servable(fake: Any) -> list[str]:
    return [path.path for path in fake.engine.status().paths if path.is_servable]


def test_loading_makes_the_first_path_servable_before_the_rest(gated: Any) -> None:
    assert servable(gated) == ["knowledge"]
    assert gated.runner.loaded == ["head", "knowledge", "knowledge_exit"]
    status = gated.engine.status()
    assert not status.is_ready
    full = next(path for path in status.paths if path.is_default)
    assert (full.path, full.num_loaded_stages, full.num_stages) == ("full", 2, 5)


def test_loading_paths_follow_one_another(gated: Any) -> None:
    gated.submit("middle", path="reasoning", max_tokens=2)
    gated.submit("deep", path="full", max_tokens=2)
    gated.runner.gates["reasoning"].set()
    gated.finish("middle")
    assert servable(gated) == ["knowledge", "reasoning"]
    assert "deep" not in gated.events
    gated.runner.gates["adapter"].set()
    assert gated.finish("deep").path == "full"
    assert gated.tokens("deep") == gated.alone(gated.request("deep", (5, 6, 7), "full", max_tokens=2))
    assert gated.engine.status().is_ready


def test_loading_waiters_block_nobody(gated: Any) -> None:
    for number in range(5):
        gated.submit(f"deep{number}", path="full", max_tokens=2)
    gated.submit("shallow", path="knowledge", max_tokens=2)
    gated.finish("shallow")
    assert gated.engine.status().num_waiting == 5


def test_loading_degrades_who_allows_it_to_the_deepest_loaded_path(gated: Any) -> None:
    gated.submit("a", path="full", max_tokens=3, while_loading=WhileLoading.DEGRADE)
    assert gated.finish("a").path == "knowledge"
    gated.runner.gates["reasoning"].set()
    gated.submit("waited", path="reasoning", max_tokens=1)
    gated.finish("waited")
    gated.submit("b", path="full", max_tokens=3, while_loading=WhileLoading.DEGRADE)
    assert gated.finish("b").path == "reasoning"
    assert gated.tokens("b") == gated.alone(gated.request("b", (5, 6, 7), "reasoning", max_tokens=3))


def test_loading_degrades_nobody_to_a_deeper_path_or_without_need(gated: Any) -> None:
    gated.submit("a", path="knowledge", max_tokens=3, while_loading=WhileLoading.DEGRADE)
    assert gated.finish("a").path == "knowledge"


def test_loading_waiter_can_be_aborted(gated: Any) -> None:
    gated.submit("a", path="full")
    gated.engine.abort("a")
    assert gated.finish("a").reason is FinishReason.ABORT


def test_loading_waiter_is_told_when_the_engine_stops(gated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "JOIN_S", 0.1)
    gated.submit("a", path="full")
    gated.engine.stop(0)
    assert gated.finish("a").reason is FinishReason.ABORT


def test_loading_failure_is_told_to_everyone_and_refuses_the_next(make_engine: Any) -> None:
    fake = make_engine()
    fake.runner.gates = {"reasoning": threading.Event()}
    fake.runner.load_errors = {"reasoning": OSError("disk gone")}
    fake.start()
    fake.submit("a", path="full")
    fake.runner.gates["reasoning"].set()
    finish = fake.finish("a")
    assert finish.reason is FinishReason.ERROR
    assert isinstance(finish.error, EngineUnhealthy)
    assert str(finish.error) == "the student cannot be loaded; the server's log has the details"
    status = fake.engine.status()
    assert not status.is_healthy
    assert "disk gone" not in (status.error or "")
    assert "disk gone" in (status.error_detail or "")
    with pytest.raises(EngineUnhealthy, match="cannot be loaded; the server's log"):
        fake.submit("b", path="knowledge")
