"""The address a server listens on, bound early: a port in use should be reported before a model is loaded."""

import socket

from models.errors import ConfigError
from server.settings.config import ServerConfig


def open_socket(config: ServerConfig) -> socket.socket:
    """Bind the address before anything slow is done.

    Raises: ConfigError.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {reason}; choose another port with --port, FENHE_PORT or "
            "`make serve PORT=...`, or another address with --host"
        ) from None
    return listener
