"""Log lines of a server process: text, or one JSON object a line."""

import logging
import sys
import time

import msgspec

from server.settings.config import ServerConfig

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (UTC), `level`, `logger`, `message`, and the fields of a request where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": getattr(record, "event", None) or record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def set_up_logging(config: ServerConfig) -> None:
    """Send log lines to stderr. Only the command calls it: a library must not set up logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(
        max(logging.WARNING, logging.getLevelNamesMapping()[config.log_level.upper()])
    )
    if config.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
