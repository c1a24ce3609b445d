"""Which words of a request are classified."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.conversation import Conversation, conversation_of


@pytest.mark.parametrize(
    ("turns", "conversation"),
    [
        ([], Conversation(last="")),
        ([("user", "a")], Conversation(last="a")),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], Conversation(last="c", earlier=("a",))),
        ([("system", "s"), ("developer", "d"), ("user", "a")], Conversation(last="a", system=("s", "d"))),
        ([("user", "a"), ("system", "s")], Conversation(last="a", system=("s",))),
        ([("user", "a"), ("user", "b"), ("user", "c")], Conversation(last="c", earlier=("a", "b"))),
        ([("user", "a"), ("user", "")], Conversation(last="a")),
        ([("system", ""), ("user", "a")], Conversation(last="a")),
        ([("system", "s")], Conversation(last="", system=("s",))),
        ([("assistant", "b"), ("tool", "t")], Conversation(last="")),
        ([("user", "a"), ("tool", "t"), ("assistant", "b")], Conversation(last="a")),
    ],
)
def test_conversation_keeps_the_words_of_user_and_system(
    turns: list[tuple[str, str]], conversation: Conversation
) -> None:
    assert conversation_of(iter(turns)) == conversation


@given(
    st.lists(st.tuples(st.sampled_from(["user", "system", "developer", "assistant", "tool", "x"]), st.text(max_size=3)))
)
def test_conversation_loses_and_invents_no_word_of_the_user(turns: list[tuple[str, str]]) -> None:
    found = conversation_of(turns)
    said = [text for role, text in turns if role == "user" and text]
    assert [*found.earlier, found.last] == (said or [""])
