"""From a conversation to a decision: the classifier asked, its faults caught, the policy applied."""

import logging
from collections.abc import Sequence
from typing import Protocol

from router.conversation import Conversation
from router.decision import RouteDecision, StudentState, TaskScores, Wishes
from router.policy import PolicyConfig, decide

logger = logging.getLogger(__name__)


class Classifier(Protocol):
    """The seam to `router.classify.TaskClassifier`."""

    def classify(self, conversation: Conversation) -> TaskScores: ...


class Router:
    """Holds the classifier, or none when it could not be read or is switched off; safe from any thread."""

    def __init__(self, classifier: Classifier | None, config: PolicyConfig) -> None:
        self._classifier = classifier
        self._config = config
        self.num_faults = 0

    def classify(self, conversation: Conversation) -> TaskScores | None:
        """Scores, or None when there is no classifier or it failed: never an error to the client."""
        if self._classifier is None:
            return None
        try:
            return self._classifier.classify(conversation)
        except Exception:
            self.num_faults += 1
            logger.exception("classifier failed faults=%d", self.num_faults)
            return None

    def decide(
        self, scores: TaskScores | None, wishes: Wishes, num_prompt_tokens: int, pool: Sequence[StudentState]
    ) -> RouteDecision:
        """Raises: UnknownModel, Unavailable."""
        return decide(scores=scores, wishes=wishes, num_prompt_tokens=num_prompt_tokens, pool=pool, config=self._config)
