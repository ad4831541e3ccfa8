"""A way to jax's coordinator that stays open when the coordinator is lost.

Where its connection closes, jax aborts the process at once with a stack trace, before anything can
say which process was lost. So jax connects to a thread of its own process, which passes on what
comes, and keeps silent about the end: that is for the watch to tell.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

# Bytes passed on at a time.
_CHUNK = 1 << 16


def relay(address: str) -> str:
    """Begins to pass on to another address, for as long as this process lives.

    Args:
      address: HOST:PORT of what is there now or will be.

    Returns:
      HOST:PORT on this machine, to connect to in its place.

    >>> server = socket.create_server(("127.0.0.1", 0))
    >>> here = relay(f"127.0.0.1:{server.getsockname()[1]}")
    >>> client = socket.create_connection(("127.0.0.1", int(here.split(":")[1])))
    >>> client.sendall(b"who leads?")
    >>> peer, _ = server.accept()
    >>> peer.recv(16)
    b'who leads?'
    >>> peer.close(); client.close(); server.close()
    """
    server = socket.create_server(("127.0.0.1", 0))
    if any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy")):
        # It would be asked for this machine's own address, too.
        direct = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""  # noqa: SIM112
        os.environ["no_grpc_proxy"] = ",".join(filter(None, [direct, "127.0.0.1"]))  # noqa: SIM112
    _start(_serve, server, address)
    return f"127.0.0.1:{server.getsockname()[1]}"


def _serve(server: socket.socket, address: str) -> None:
    while True:
        client, _ = server.accept()
        _start(_connect, client, address)


def _connect(client: socket.socket, address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:  # jax knows how long to wait
        try:
            peer = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
            break
        except OSError:
            time.sleep(0.1)
    peer.settimeout(None)
    for one in (client, peer):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start(_pass_on, peer, client)
    _pass_on(client, peer)
    peer.close()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
    except OSError:
        return  # as at an end


def _start(target: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=target, args=args, daemon=True, name="instructjax-relay").start()
