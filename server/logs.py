"""Log lines of a server process."""

import logging
import sys

from server.config import ServerConfig


def set_up_logging(config: ServerConfig) -> None:
    """Log lines to stderr. Called by the command alone: a library must not touch logging."""
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("uvicorn").setLevel(
        max(logging.WARNING, logging.getLevelNamesMapping()[config.log_level.upper()])
    )
    if config.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
