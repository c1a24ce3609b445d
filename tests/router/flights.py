"""Short ways to make events and answers, and a listener to them."""

from engines.sequence import (
    Finish,
    FinishReason,
    SequenceEvent,
    Timings,
    Usage,
)
from router.decision import Reason, Target

TARGET = Target(student="tiny", path="full", reason=Reason.GENERAL)
KEY = "tiny:full:" + "0" * 64
USAGE = Usage(num_prompt_tokens=3, num_cached_tokens=1, num_completion_tokens=2)
TIMINGS = Timings(queued_s=0.0, admitted_s=0.0, first_token_s=0.0, finished_s=1.0)


def text(words: str) -> SequenceEvent:
    return SequenceEvent(sequence_id="s", text=words)


def end(reason: FinishReason = FinishReason.STOP, path: str = "full", words: str = "") -> SequenceEvent:
    finish = Finish(reason=reason, path=path, usage=USAGE, timings=TIMINGS, stop="END")
    return SequenceEvent(sequence_id="s", text=words, finish=finish)


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[int, SequenceEvent]] = []

    def push(self, index: int, event: SequenceEvent) -> None:
        self.heard.append((index, event))

    @property
    def words(self) -> str:
        return "".join(event.text for _, event in self.heard)
