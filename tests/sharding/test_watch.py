"""Processes that watch each other, as threads with short times: who is lost, and who says so."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from instructjax.errors import InstructJaxError, UsageError
from instructjax.sharding.watch import Watch, meet


class Members:
    """Watches of several processes in one, and what each ended with."""

    def __init__(self, count: int, *, lost_after: float = 5.0, stalled_after: float = 60.0) -> None:
        self.ends: list[queue.Queue[tuple[str, int]]] = [queue.Queue() for _ in range(count)]
        address = f"127.0.0.1:{free_port()}"
        options: dict[str, Any] = {"timeout": 20.0, "lost_after": lost_after}
        options["stalled_after"] = stalled_after
        made: dict[int, Watch] = {}

        def join(n: int) -> None:
            made[n] = meet(address, n, count, end=lambda *end: self.ends[n].put(end), **options)

        run_all([lambda n=n: join(n) for n in range(count)])
        self.watches = [made[n] for n in range(count)]

    def said(self, number: int, code: int = 1) -> str:
        """What a process ends with, and with which exit code."""
        said, found = self.ends[number].get(timeout=10)
        assert found == code
        return said


def free_port() -> int:
    while True:
        port = random.randint(20_000, 32_000)
        try:
            with socket.create_server(("", port)):
                return port
        except OSError:
            continue


def run_all(functions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def members() -> Iterator[Callable[..., Members]]:
    """A function that makes `Members`; they end with the test."""
    made: list[Members] = []

    def make(count: int, **options: float) -> Members:
        made.append(Members(count, **options))
        return made[-1]

    yield make
    for one in made:
        for watch in one.watches:
            watch.close()


def drop(watch: Watch) -> None:
    """Its process dies: the system closes its connections."""
    watch._over.set()
    for peer in watch._peers.values():
        peer.shutdown(socket.SHUT_RDWR)
        peer.close()


def test_all_wait_for_the_last_at_the_end(members) -> None:
    three = members(3)
    finished: list[int] = []

    def finish(n: int) -> None:
        time.sleep(0.2 * n)
        three.watches[n].finish()
        finished.append(n)
        assert time.monotonic() - start > 0.35

    start = time.monotonic()
    run_all([lambda n=n: finish(n) for n in range(3)])
    assert sorted(finished) == [0, 1, 2]
    for watch in three.watches:
        watch.close()
    time.sleep(0.1)
    assert all(end.empty() for end in three.ends)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_is_named_by_all_others_at_once(members, victim: int) -> None:
    three = members(3)
    start = time.monotonic()
    drop(three.watches[victim])
    for number in {0, 1, 2} - {victim}:
        assert three.said(number).startswith(f"process {victim} is gone")
    assert time.monotonic() - start < 8  # process 0 waits for the others to end, and they do not


def test_one_that_says_nothing_is_lost(members, monkeypatch) -> None:
    three = members(3, lost_after=1.0)
    monkeypatch.setattr(three.watches[2], "_send", lambda message: None)
    start = time.monotonic()
    assert three.said(1).startswith("process 2 has said nothing for 1 s")
    assert 0.5 < time.monotonic() - start < 4
    assert three.said(0).startswith("process 2 has said nothing for 1 s")


def test_one_that_hangs_is_named(members) -> None:
    three = members(3, lost_after=0.4, stalled_after=1.5)
    start = time.monotonic()
    for _ in range(5):
        for watch in (*three.watches[:2], *three.watches[:1]):
            watch.tick()
        time.sleep(0.1)
    assert "nothing has moved on for 2 s: process 2 is behind" in three.said(1)
    assert 1.5 < time.monotonic() - start < 5


def test_work_that_moves_on_is_left_alone(members) -> None:
    two = members(2, lost_after=0.4, stalled_after=0.6)
    for _ in range(15):
        two.watches[0].tick()
        time.sleep(0.1)
    assert all(end.empty() for end in two.ends)


@pytest.mark.parametrize("hangs", [0, 1])
def test_one_that_hangs_when_others_have_finished_is_named(members, hangs: int) -> None:
    three = members(3, lost_after=0.4, stalled_after=1.0)
    for number in {0, 1, 2} - {hangs}:
        threading.Thread(target=three.watches[number].finish, daemon=True).start()
    for number in (1, 2):
        assert f"nothing has moved on for 1 s: process {hangs} is behind" in three.said(number)


def test_the_last_may_work_on_when_process_0_has_finished(members) -> None:
    two = members(2, lost_after=0.4, stalled_after=0.6)
    first = threading.Thread(target=two.watches[0].finish)
    first.start()
    for _ in range(15):
        two.watches[1].tick()
        time.sleep(0.1)
    assert first.is_alive()
    two.watches[1].finish()
    first.join()
    assert all(end.empty() for end in two.ends)


def test_nothing_goes_on_past_the_end_while_all_are_stopped() -> None:
    """A process that waits for the others to finish does not leave as if they had."""
    port = free_port()
    made: dict[int, Watch] = {}
    ending, finished = threading.Event(), threading.Event()
    options: dict[str, Any] = {"timeout": 20.0, "lost_after": 5.0, "stalled_after": 60.0}
    ends = [lambda *_: (ending.set(), time.sleep(0.5)), lambda *_: None]

    def join(n: int) -> None:
        made[n] = meet(f"127.0.0.1:{port}", n, 2, end=ends[n], **options)

    run_all([lambda: join(0), lambda: join(1)])
    threading.Thread(target=lambda: (made[0].finish(), finished.set()), daemon=True).start()
    drop(made[1])
    assert ending.wait(10) and not finished.wait(0.2)
    assert finished.wait(5)
    made[0].close()


@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("code", [1, 2])
def test_one_that_fails_tells_the_others(members, fails: int, code: int) -> None:
    """They end with its exit code: a supervisor starts none again that cannot go on."""
    three = members(3)
    three.watches[fails].stop_others("process stopped: no space", code=code)
    for number in {0, 1, 2} - {fails}:
        assert three.said(number, code) == "process stopped: no space"


def test_one_that_is_lost_while_others_are_waited_for_is_told_at_once() -> None:
    address, said = f"127.0.0.1:{free_port()}", []
    options: dict[str, Any] = {"timeout": 60.0, "lost_after": 5.0, "stalled_after": 60.0}

    def join(number: int) -> None:
        with pytest.raises(InstructJaxError) as caught:
            meet(address, number, 4, **options)
        said.append(str(caught.value))

    def come_and_go() -> None:
        while True:
            try:
                peer = socket.create_connection(("127.0.0.1", int(address.split(":")[1])))
                break
            except OSError:
                time.sleep(0.05)
        with peer:
            peer.sendall(b'{"index": 2, "count": 4}\n')
            time.sleep(0.5)

    start = time.monotonic()
    run_all([lambda: join(0), lambda: join(1), come_and_go])
    assert said == ["process 2 is gone: its connection was closed"] * 2
    assert time.monotonic() - start < 10


def test_those_that_do_not_come_are_named() -> None:
    with pytest.raises(InstructJaxError, match="process 1, 2 of 3 did not come within 0.3 s"):
        meet(f"127.0.0.1:{free_port()}", 0, 3, timeout=0.3, lost_after=1.0, stalled_after=9.0)


def test_process_0_that_is_not_there() -> None:
    with pytest.raises(InstructJaxError, match="process 0 was not reached at 127.0.0.1:"):
        meet(f"127.0.0.1:{free_port()}", 1, 2, timeout=0.3, lost_after=1.0, stalled_after=9.0)


@pytest.mark.parametrize(
    ("index", "count", "says"), [(1, 3, "process 1 of 3 came to process 0 of 2"), (2, 2, "of 2")]
)
def test_processes_that_do_not_agree_on_their_number(index: int, count: int, says: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    told: dict[int, Exception] = {}

    def join(number: int, of: int) -> None:
        try:
            meet(address, number, of, timeout=20.0, lost_after=5.0, stalled_after=60.0)
        except InstructJaxError as error:
            told[number] = error

    run_all([lambda: join(0, 2), lambda: join(index, count)])
    for number in (0, index):
        assert isinstance(told[number], UsageError) and says in str(told[number])


def test_a_stranger_at_the_door_is_passed_over() -> None:
    port = free_port()
    made: dict[int, Watch] = {}
    options: dict[str, Any] = {"timeout": 20.0, "lost_after": 5.0, "stalled_after": 60.0}

    def knock() -> None:
        time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        made[1] = meet(f"127.0.0.1:{port}", 1, 2, **options)

    def listen() -> None:
        made[0] = meet(f"127.0.0.1:{port}", 0, 2, **options)

    run_all([listen, knock])
    run_all([made[0].finish, made[1].finish])
    for watch in made.values():
        watch.close()


def test_work_that_is_told_to_stop_and_stands_still_is_ended(members) -> None:
    """Where it moves on it is not: it may be saving what it has."""
    two = members(2, lost_after=0.5, stalled_after=60.0)
    told = time.monotonic() + 1.0
    two.watches[0].heed(lambda: time.monotonic() > told)
    while time.monotonic() < told + 2.5:  # longer than what it is given to stand still
        for watch in two.watches:
            watch.tick()
        time.sleep(0.05)
    assert all(end.empty() for end in two.ends)
    stood = time.monotonic()
    for number in range(2):
        said = two.said(number, code=143)
        assert said.startswith("SIGTERM: nothing has moved on for 2 s since; what was saved")
    assert 1.5 < time.monotonic() - stood < 4
