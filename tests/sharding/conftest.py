"""Several processes on this machine, each with virtual devices of its own."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# A process runs this with what a test puts before it.
_MAIN = """
import sys
from instructjax.cli.main import main
{}
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int
    out: str
    err: str
    when: float

    @property
    def errors(self) -> list[str]:
        """What it said that was wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Together:
    """Processes of one command, from the first to the last.

    Args:
      folder: for what they say and compile.
      args: of the command; each process is told who it is besides.
      count, devices: processes, and virtual devices of each.
      under: words of a command that runs each.
      variables: of its environment.
      before: Python that a process runs first, by its number; "" for those that are not there.
    """

    def __init__(
        self,
        folder: Path,
        args: list[Any],
        *,
        count: int = 2,
        devices: int = 2,
        before: dict[int, str] | str = "",
        under: list[str] | None = None,
        programs: Path,
        **variables: str,
    ) -> None:
        port = _free_port()
        self._files = []
        self.processes = []
        for number in range(count):
            code = before if isinstance(before, str) else before.get(number, "")
            words = [*args, "--coordinator", f"127.0.0.1:{port}"]
            words += ["--num-processes", count, "--process-id", number]
            out, err = (folder / f"{port}.{number}.{name}" for name in ("out", "err"))
            self._files.append((out, err))
            with out.open("w") as out_file, err.open("w") as err_file:
                self.processes.append(
                    subprocess.Popen(
                        [*(under or []), sys.executable, "-W", "ignore", "-c", _MAIN.format(code)]
                        + [str(word) for word in words],
                        stdout=out_file,
                        stderr=err_file,
                        env={
                            **os.environ,
                            "PYTHONPATH": str(ROOT),
                            "JAX_PLATFORMS": "cpu",
                            "JAX_NUM_CPU_DEVICES": str(devices),
                            "JAX_COMPILATION_CACHE_DIR": str(programs),
                            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                            **variables,
                        },
                    )
                )

    def wait_for(self, happened: Callable[[], Any], timeout: float = 240) -> None:
        """Returns when something has happened; fails if a process ends before."""
        deadline = time.monotonic() + timeout
        while not happened():
            ended = [p.args for p in self.processes if p.poll() is not None]
            said = [err.read_text()[-2000:] for _, err in self._files]
            assert not ended and time.monotonic() < deadline, said
            time.sleep(0.01)

    def signal(self, number: int, signal: int) -> float:
        """Sends a process a signal; returns when that was."""
        self.processes[number].send_signal(signal)
        return time.monotonic()

    def ends(self, timeout: float = 300, *, of: list[int] | None = None) -> list[End]:
        """Waits for the end of all, or of some."""
        deadline = time.monotonic() + timeout
        numbers = list(range(len(self.processes))) if of is None else of
        when: dict[int, float] = {}
        while len(when) < len(numbers) and time.monotonic() < deadline:
            for number in numbers:
                if number not in when and self.processes[number].poll() is not None:
                    when[number] = time.monotonic()
            time.sleep(0.01)
        found = []
        for number in numbers:
            code = self.processes[number].poll()
            texts = [file.read_text() for file in self._files[number]]
            assert code is not None, f"process {number} still runs: {texts}"
            found.append(End(code, texts[0], texts[1], when[number]))
        return found

    def kill(self) -> None:
        """Ends what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _free_port() -> int:
    """One whose neighbour 4096 above, where processes watch each other, is free as well."""
    while True:
        port = random.randint(20_000, 28_000)
        try:
            for taken in (port, port + 4096):
                with socket.create_server(("", taken)):
                    pass
            return port
        except OSError:
            continue


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where processes keep compiled programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def start(tmp_path: Path, programs: Path) -> Iterator[Callable[..., Together]]:
    """A function that starts processes: (args, **options of `Together`); they end with the test."""
    started: list[Together] = []

    def run(args: list[Any], **options: Any) -> Together:
        started.append(Together(tmp_path, args, programs=programs, **options))
        return started[-1]

    yield run
    for one in started:
        one.kill()
