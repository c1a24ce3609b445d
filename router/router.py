"""From a conversation to a decision: asks the classifier, catches its faults and applies the policy."""

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from models.errors import ServingError
from models.evaluation.verdicts import GateLimits
from router.conversation import Conversation
from router.decision import Candidates, Reason, RouteDecision, RoutePreferences, StudentState, TaskScores
from router.policy import PolicyConfig, choose_student, decide, decide_together
from router.quality.live import NOTHING_KNOWN, LiveQuality

logger = logging.getLogger(__name__)


class Classifier(Protocol):
    """What the router needs of `router.classifier.classify.TaskClassifier`."""

    def classify(self, conversation: Conversation) -> TaskScores: ...


class UnreadableClassifier:
    """Stands in for a classifier whose file could not be read: it fails on every request, so that each is counted."""

    def __init__(self, error: ServingError) -> None:
        self._error = error

    def classify(self, conversation: Conversation) -> TaskScores:
        raise self._error


class Router:
    """The classifier, or None where it is switched off, and the policy's settings. Safe from any thread."""

    def __init__(self, classifier: Classifier | None, config: PolicyConfig) -> None:
        self._classifier = classifier
        self._config = config
        self._unscored = Reason.ROUTER_OFF if classifier is None else Reason.CLASSIFIER_UNAVAILABLE
        self._lock = threading.Lock()
        self._live = NOTHING_KNOWN
        self.num_faults = 0

    def reconfigure(self, config: PolicyConfig) -> None:
        """Decide by other thresholds from now on."""
        self._config = config

    def adapt(self, live: LiveQuality) -> None:
        """Decide by this live quality from now on."""
        self._live = live

    def classify(self, conversation: Conversation) -> TaskScores | None:
        """Scores, or None without a classifier or when it fails: the client never sees an error."""
        if self._classifier is None:
            return None
        try:
            return self._classifier.classify(conversation)
        except Exception:
            with self._lock:
                self.num_faults += 1
                is_first = self.num_faults == 1
            if is_first:
                logger.exception("classifier failed; further faults are only counted")
            return None

    def choose(
        self, scores: TaskScores | None, preferences: RoutePreferences, pool: Sequence[StudentState]
    ) -> Candidates:
        """Raises: UnknownModel, Unavailable."""
        return choose_student(scores, preferences, pool)

    @property
    def limits(self) -> GateLimits:
        """Those of the gate that requests have to pass now."""
        return self._config.limits

    def decide(
        self,
        scores: TaskScores | None,
        preferences: RoutePreferences,
        num_prompt_tokens: int,
        candidates: Candidates,
        language: str | None = None,
    ) -> RouteDecision:
        """The decision for one prompt, over all candidates. `language` is that of its text, None where it has none."""
        return decide(
            scores=scores,
            preferences=preferences,
            num_prompt_tokens=num_prompt_tokens,
            candidates=candidates,
            config=self._config,
            unscored=self._unscored,
            language=language,
            live=self._live,
        )

    def decide_together(self, decisions: Sequence[RouteDecision], candidates: Candidates) -> tuple[int, RouteDecision]:
        """One decision for all prompts of a request, and the index of the prompt that made it."""
        if len(decisions) == 1:
            return 0, decisions[0]
        return decide_together(decisions, candidates.students)
