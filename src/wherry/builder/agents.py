"""An SSH agent lent to a step: a socket of ours that hands on what asks for keys and signatures, and nothing else.

Source: draft-miller-ssh-agent, "Agent Protocol Messages".
"""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from wherry.builder.selection import CopyError
from wherry.clock import machine

REQUEST_IDENTITIES, SIGN_REQUEST = 11, 13
FAILURE = b"\x00\x00\x00\x01\x05"
MESSAGE_MAX_BYTES = 256 * 1024
ANSWER_S = 120.0
"""An agent may ask a person first."""


@asynccontextmanager
async def lent(agent: str, place: Path, *, mode: int, uid: int, gid: int) -> AsyncGenerator[None]:
    """Answer at the socket `place` for the agent at the socket `agent`, until the end. Raises CopyError."""
    try:
        _, writer = await asyncio.open_unix_connection(agent)
        writer.close()
    except OSError as error:
        raise CopyError(f"RUN --mount: no SSH agent answers at {agent}: {error.strerror or error}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.setblocking(False)
        listening.bind(str(place))
        listening.listen()
        place.chmod(mode)
        if os.geteuid() == 0:
            os.chown(place, uid, gid)
        loop = asyncio.get_running_loop()
        clients: dict[socket.socket, asyncio.Task[None]] = {}

        def accept() -> None:
            with suppress(OSError):
                connection, _ = listening.accept()
                connection.setblocking(False)
                clients[connection] = asyncio.create_task(_client(connection, agent), name="ssh agent")
                clients[connection].add_done_callback(lambda _: clients.pop(connection, None))

        loop.add_reader(listening, accept)
        try:
            yield
        finally:
            loop.remove_reader(listening)
            left = dict(clients)
            for connection, task in left.items():
                task.cancel()
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            await asyncio.gather(*left.values(), return_exceptions=True)
            place.unlink(missing_ok=True)


async def _client(connection: socket.socket, agent: str) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        await _serve(reader, writer, agent)
    except (OSError, EOFError, TimeoutError):
        pass  # whoever asked has gone, or the agent has
    finally:
        writer.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, agent: str) -> None:
    """One client: each message to the agent, and its answer back."""
    theirs, ours = await asyncio.open_unix_connection(agent)
    try:
        while message := await _message(reader):
            if message[4] not in (REQUEST_IDENTITIES, SIGN_REQUEST):
                writer.write(FAILURE)  # adding and removing keys, locking, extensions
            else:
                ours.write(message)
                await ours.drain()
                async with machine.timeout(ANSWER_S):
                    answer = await _message(theirs)
                if not answer:
                    return
                writer.write(answer)
            await writer.drain()
    finally:
        ours.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A message with its length; b"" at the end, or for one that is none."""
    try:
        head = await reader.readexactly(4)
        size = int.from_bytes(head)
        return head + await reader.readexactly(size) if 0 < size <= MESSAGE_MAX_BYTES else b""
    except asyncio.IncompleteReadError:
        return b""
