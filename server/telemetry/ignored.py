"""What was ignored of requests: a counter, and a line in the debug log for each request that had something.

Definition: a request counts once per name, however often it had the field; names that are not well known are `other`.
"""

import logging

from prometheus_client import CollectorRegistry, Counter

from server.wire.ignored import Ignored

logger = logging.getLogger(__name__)


class IgnoredFields:
    """Any thread may report: bodies are decoded beside the loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "fenhe_ignored_fields", "Requests with a field that was ignored.", ("field",), registry=registry
        )

    def report(self, ignored: Ignored, request_id: str) -> None:
        if not ignored:
            return
        for label in sorted(ignored.labels):
            self._requests.labels(label).inc()
        logger.debug("fields ignored id=%s num=%d first=%s", request_id, ignored.num, ignored.places)
