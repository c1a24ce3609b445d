"""Servers that tests start in the process itself."""

import asyncio


async def stop_listening(server: asyncio.Server) -> None:
    """Takes no more connections. What was accepted already reaches its handler first: a server that is closed between
    the two leaves the socket open, which pytest finds later, in another test.
    """
    loop = asyncio.get_running_loop()
    for socket in server.sockets:
        loop.remove_reader(socket.fileno())
    await asyncio.sleep(0.02)
    server.close()
