"""Taking the address."""

import socket

import pytest

from models.errors import ConfigError
from server.http.listener import open_socket
from server.settings.config import ServerConfig


def test_address_in_use_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*--port.*FENHE_PORT.*make serve PORT="):
            open_socket(ServerConfig(port=port))
