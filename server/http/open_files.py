"""The limit of open files, which bounds connections too: a connection that cannot be opened gets no answer at all."""

import logging
import sys

logger = logging.getLogger(__name__)

RESERVE = 64
"""Files that are no connections: weights, logs, Redis; and connections that are being refused."""


def raise_limit(max_connections: int) -> None:
    """Let this process open as many files as the system allows it; warn where that is too few."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # macOS has a limit beside this one
            logger.info("limit of open files stays soft=%d hard=%d reason=%r", soft, hard, str(error))
    if num_allowed(max_connections) < max_connections:
        logger.warning(
            "few open files: at most %d connections instead of limits.max_connections=%d; allow %d files with "
            "`ulimit -n` or LimitNOFILE",
            num_allowed(max_connections),
            max_connections,
            max_connections + RESERVE,
        )


def num_allowed(max_connections: int) -> int:
    """As many connections as wanted and as this process can open, at least one."""
    if sys.platform == "win32":
        return max_connections
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max_connections if soft == resource.RLIM_INFINITY else max(1, min(max_connections, soft - RESERVE))
