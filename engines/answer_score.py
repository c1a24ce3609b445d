"""What one path's answer is scored by: sums over its tokens, from the full path's predictions at their positions."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True, frozen=True)
class AnswerScore:
    """`nats` is minus the log-likelihood of the answer; `expected_nats` is what it would be on average if the path that
    scores had drawn every one of the tokens itself, with the sampling that the answer was drawn with, behind the same
    text. For its own answers the two differ by chance alone.

    `num_agreed` counts tokens that are the likeliest, `expected_agreed` is what that would be on average.
    Units: nats of the raw distribution, before temperature and filters.
    """

    num_tokens: int = 0
    nats: float = 0.0
    expected_nats: float = 0.0
    num_agreed: int = 0
    expected_agreed: float = 0.0

    def __add__(self, other: "AnswerScore") -> "AnswerScore":
        return AnswerScore(
            num_tokens=self.num_tokens + other.num_tokens,
            nats=self.nats + other.nats,
            expected_nats=self.expected_nats + other.expected_nats,
            num_agreed=self.num_agreed + other.num_agreed,
            expected_agreed=self.expected_agreed + other.expected_agreed,
        )
