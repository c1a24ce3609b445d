"""The router around classifier and policy: faults are caught and counted, decisions are the policy's."""

import logging

import pytest

from engines.scripted import ScriptedEngine
from router.conversation import Conversation, conversation_of
from router.decision import Reason, RoutePreferences
from router.policy import PolicyConfig
from router.pool import Member, Pool
from router.router import Router
from tests.router.test_pool import make_member
from tests.server.conftest import SURE, WordClassifier

HELLO = Conversation(last="hello")


def test_router_passes_scores_on() -> None:
    router = Router(WordClassifier(), PolicyConfig())
    scores = router.classify(Conversation(last="some math"))
    assert scores is not None
    assert (scores.task, scores.confidence) == ("math", SURE)
    assert router.num_faults == 0


def test_router_counts_faults_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    router = Router(WordClassifier(), PolicyConfig())
    with caplog.at_level(logging.ERROR):
        assert router.classify(Conversation(last="kaboom")) is None
    assert router.num_faults == 1
    assert any(record.exc_info for record in caplog.records)
    assert router.classify(HELLO) is not None


def test_router_without_classifier_has_no_scores_and_no_faults() -> None:
    router = Router(None, PolicyConfig())
    assert router.classify(HELLO) is None
    assert router.num_faults == 0


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [("math", "shallow", Reason.TASK), ("hello", "full", Reason.GENERAL)],
)
def test_router_decides_by_policy(text: str, path: str, reason: Reason) -> None:
    pool: Pool[Member] = Pool()
    member = make_member("a")
    assert isinstance(member.engine, ScriptedEngine)
    pool.add(member)
    router = Router(WordClassifier(), PolicyConfig())
    scores = router.classify(Conversation(last=text))
    decision = router.decide(scores, RoutePreferences(), 10, router.choose(scores, RoutePreferences(), pool.states()))
    assert (decision.student, decision.path, decision.reason) == ("a", path, reason)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], Conversation(last="")),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], Conversation(last="c", earlier=("a",))),
        ([("system", "s"), ("developer", "d"), ("user", "a")], Conversation(last="a", system=("s", "d"))),
        ([("user", "a"), ("user", "")], Conversation(last="a")),
    ],
)
def test_conversation_takes_what_the_user_said(turns: list[tuple[str, str]], expected: Conversation) -> None:
    assert conversation_of(turns) == expected
