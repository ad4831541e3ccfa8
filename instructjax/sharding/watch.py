"""Processes that watch each other, so that when one is lost the others stop and say which.

Process 0 listens, the others connect to it, and each says every second that it lives. A process
whose connection closes is gone; one that says nothing for `lost_after` seconds is lost (stopped,
its machine dead or cut off). Work waits for all processes, so where it stands still for
`stalled_after` seconds, one of them hangs. The others could wait for it for ever within a
collective, which no exception reaches: the watching threads end the process themselves.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from instructjax.errors import STOPPED, InstructJaxError, UsageError

BEAT = 1.0
# Others may be about to fail for the same reason, and to say it better.
_GRACE = 1.5
# For a first word, which comes with the connection.
_HELLO = 5.0

# Times `lost_after`, for work that is told to stop.
_STOPS_WITHIN = 4

_CLOSED = "is gone: its connection was closed"


def end_process(message: str, code: int) -> None:
    """Says why, and ends this process at once."""
    os.write(2, f"error: {message}\n".encode(errors="backslashreplace"))
    os._exit(code)


class Watch:
    """One process among several that watch each other; made by `meet`.

    Args:
      index: the number of this process.
      peers: connections: of process 0 to all others, of another to process 0.
      lost_after: seconds without a word after which a process is lost.
      stalled_after: seconds without progress after which one is taken to hang.
      end: ends this process, given why and the exit code.
    """

    def __init__(
        self,
        index: int,
        peers: dict[int, socket.socket],
        *,
        lost_after: float,
        stalled_after: float,
        end: Callable[[str, int], None] = end_process,
    ) -> None:
        self._index, self._peers, self._end = index, peers, end
        self._lost_after, self._stalled_after = lost_after, stalled_after
        self._ticks, self._theirs = 0, dict.fromkeys(peers, 0)
        self._moved = time.monotonic()
        self._told: Callable[[], bool] = lambda: False
        self._told_at: float | None = None
        self._done: set[int] = set()
        self._gone: set[int] = set()
        self._over = threading.Event()
        self._sending, self._ending = threading.Lock(), threading.Lock()
        for number in peers:
            self._start(self._listen, number)
        self._start(self._beat)

    def tick(self) -> None:
        """Notes that the work of this process moves on."""
        self._ticks += 1
        self._moved = time.monotonic()

    def heed(self, told: Callable[[], bool]) -> None:
        """From now on, work that was told to stop is ended where it does not move on any more.

        Args:
          told: whether a process was; asked every second by process 0.
        """
        self._told = told

    def stop_others(self, message: str, *, lost: bool = False, code: int = 1) -> None:
        """Tells the others that this process ends, and why.

        Args:
          message: why.
          lost: because another is lost; otherwise others may be about to fail for the same reason.
          code: the exit code of them all, so that supervisors of all do the same.
        """
        self._send({"stop": message, "lost": lost, "code": code})
        self._over.set()

    def leave_last(self, seconds: float = 5.0) -> None:
        """Returns when the others have gone, if this is process 0.

        A connection that is closed at once may take with it what was said last.
        """
        deadline = time.monotonic() + seconds
        while self._index == 0 and self._gone != set(self._peers) and time.monotonic() < deadline:
            time.sleep(0.01)

    def finish(self) -> None:
        """Returns when all processes have called this."""
        self._moved = time.monotonic()
        self._done.add(self._index)
        self._send({"done": True})
        self._end_together()
        self._over.wait()
        with self._ending:  # who stops them all is to end this process first
            return

    def close(self) -> None:
        """Lets go of the connections."""
        self._over.set()
        for peer in self._peers.values():
            peer.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True, name="instructjax-watch").start()

    def _beat(self) -> None:
        while not self._over.wait(min(BEAT, self._lost_after / 4)):
            self._send({"ticks": self._ticks})
            if self._index != 0:  # process 0 sees them all, and waits when any other does
                continue
            now = time.monotonic()
            if self._told_at is None and self._told():
                self._told_at = now
            waited = now - self._moved
            stands = 0.0 if self._told_at is None else now - max(self._told_at, self._moved)
            if stands > min(_STOPS_WITHIN * self._lost_after, self._stalled_after):
                self._stop_all(
                    f"SIGTERM: nothing has moved on for {stands:.0f} s since; what was saved "
                    "before is kept",
                    lost=True,
                    code=STOPPED,
                )
            if waited > self._stalled_after:
                counts = {0: self._ticks, **self._theirs}
                working = {n: count for n, count in counts.items() if n not in self._done}
                least = [n for n, count in working.items() if count == min(working.values())]
                behind = "" if len(least) == len(counts) else f": {_name(least)} is behind"
                self._stop_all(f"nothing has moved on for {waited:.0f} s{behind}", lost=True)

    def _listen(self, number: int) -> None:
        peer = self._peers[number]
        peer.settimeout(self._lost_after)
        try:
            with peer.makefile("rb") as lines:
                for line in lines:
                    self._take(number, json.loads(line))
            how = _CLOSED
        except ConnectionError:
            how = _CLOSED
        except TimeoutError:
            how = f"has said nothing for {self._lost_after:g} s: it was stopped or is cut off"
        except (OSError, ValueError) as error:
            how = f"is gone ({error})"
        self._gone.add(number)
        if not self._over.is_set():
            self._stop_all(f"process {number} {how}", lost=True)

    def _take(self, number: int, said: dict[str, Any]) -> None:
        if "ticks" in said:
            # Once process 0 has finished, the others alone show whether anything moves.
            if said["ticks"] > self._theirs[number] and self._index in self._done:
                self._moved = time.monotonic()
            self._theirs[number] = said["ticks"]
        elif "done" in said:
            self._moved = time.monotonic()
            self._done.add(number)
            self._end_together()
        elif "over" in said:
            self._over.set()
        elif "stop" in said and not self._over.is_set():
            if not said["lost"]:
                time.sleep(_GRACE)
            self._stop_all(said["stop"], lost=said["lost"], code=said["code"])

    def _end_together(self) -> None:
        if self._index == 0 and len(self._done) == len(self._peers) + 1:
            self._send({"over": True})
            self._over.set()

    def _stop_all(self, message: str, *, lost: bool, code: int = 1) -> None:
        with self._ending:
            if not self._over.is_set():
                self.stop_others(message, lost=lost, code=code)
                self.leave_last()
                self._end(message, code)

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            for peer in self._peers.values():
                try:
                    _tell(peer, message)
                except OSError:
                    continue  # the one who listens to it will say so


def _name(numbers: list[int]) -> str:
    return f"process {', '.join(map(str, sorted(numbers)))}"


def meet(
    address: str,
    index: int,
    count: int,
    *,
    timeout: float,
    lost_after: float,
    stalled_after: float,
    note: str = "",
    end: Callable[[str, int], None] = end_process,
) -> Watch:
    """Waits until all processes are there.

    Args:
      address: HOST:PORT at which process 0 listens and the others find it.
      index: the number of this process.
      count: how many there are.
      timeout: seconds to wait for them.
      lost_after, stalled_after, end: see `Watch`.
      note: what to say of the address where it is of no use.

    Raises:
      UsageError: the address cannot be used, or processes do not agree on their number.
      InstructJaxError: not all came in time.
    """
    deadline = time.monotonic() + timeout
    if index == 0:
        peers = _gather(address, count, deadline, timeout, note)
    else:
        peers = {0: _reach(address, index, count, deadline, timeout, note)}
    return Watch(index, peers, lost_after=lost_after, stalled_after=stalled_after, end=end)


def _gather(
    address: str, count: int, deadline: float, timeout: float, note: str
) -> dict[int, socket.socket]:
    port = int(address.rpartition(":")[2])
    try:
        six = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if six else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=six)
    except OSError as error:
        raise UsageError(
            f"process 0 cannot listen on port {port}{note} ({error.strerror})",
            remedy="give another port in --coordinator",
        ) from None
    peers: dict[int, socket.socket] = {}
    server.settimeout(_HELLO)
    with server, selectors.DefaultSelector() as waits:
        waits.register(server, selectors.EVENT_READ)
        while len(peers) < count - 1:
            heard = [key.fileobj for key, _ in waits.select(max(deadline - time.monotonic(), 0.01))]
            gone = [number for number, peer in peers.items() if peer in heard]
            if gone:  # nobody has more to say before the welcome
                message = f"{_name(gone)} {_CLOSED}"
                _refuse(peers, message, InstructJaxError.exit_code)
                raise InstructJaxError(message)
            if not heard:
                missing = [n for n in range(1, count) if n not in peers]
                message = f"{_name(missing)} of {count} did not come within {timeout:g} s"
                error = InstructJaxError(
                    message, remedy=f"see that all are started and reach {address}{note}"
                )
                _refuse(peers, message, error.exit_code)
                raise error
            try:
                peer, _ = server.accept()
            except OSError:
                continue  # it did not wait
            try:
                peer.settimeout(_HELLO)
                said = _hear(peer)
            except (OSError, ValueError):
                peer.close()
                continue  # something else that looks for open ports
            number = int(said.get("index", -1))
            if said.get("count") != count or number in peers or number not in range(1, count):
                message = (
                    f"process {number} of {said.get('count')} came to process 0 of {count}"
                    if number not in peers
                    else f"two processes are number {number}"
                )
                error = UsageError(
                    message,
                    remedy="give each its own --process-id from 0, and all the same "
                    "--num-processes",
                )
                _refuse({**peers, -1: peer}, message, error.exit_code)
                raise error
            peers[number] = peer
            waits.register(peer, selectors.EVENT_READ)
    for peer in peers.values():
        _tell(peer, {"welcome": count})
    return peers


def _reach(
    address: str, index: int, count: int, deadline: float, timeout: float, note: str
) -> socket.socket:
    host, _, port = address.rpartition(":")
    while True:
        left = deadline - time.monotonic()
        try:
            peer = socket.create_connection(
                (host.strip("[]"), int(port)), timeout=max(min(left, 10), 0.01)
            )
            break
        except OSError as error:
            if left <= 0:
                raise InstructJaxError(
                    f"process 0 was not reached at {address}{note} within {timeout:g} s "
                    f"({error.strerror or error})",
                    remedy="see that it is started, and that --coordinator is its address",
                ) from None
            time.sleep(0.2)
    _tell(peer, {"index": index, "count": count})
    # Process 0 gives up in time by itself, and says why.
    peer.settimeout(max(deadline - time.monotonic(), 0) + 10)
    try:
        said = _hear(peer)
    except (OSError, ValueError):
        said = {"stop": "process 0 is gone, or is not of this program"}
    if "welcome" not in said:
        peer.close()
        wrong = said.get("code") == UsageError.exit_code
        message = said.get("stop", "process 0 is not of this program")
        raise UsageError(message) if wrong else InstructJaxError(message)
    return peer


def _hear(peer: socket.socket) -> dict[str, Any]:
    """One line, byte by byte: what follows is for another reader."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 1000:
        byte = peer.recv(1)
        if not byte:
            raise OSError("closed")
        line += byte
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError("not of this program")
    return said


def _tell(peer: socket.socket, message: dict[str, Any]) -> None:
    peer.sendall((json.dumps(message) + "\n").encode())


def _refuse(peers: dict[int, socket.socket], message: str, code: int) -> None:
    for peer in peers.values():
        try:
            _tell(peer, {"stop": message, "code": code})
            peer.close()
        except OSError:
            continue
