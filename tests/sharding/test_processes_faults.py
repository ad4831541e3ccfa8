"""Processes that are lost, hang or fail: the others stop in time, say why, and the run goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"
# Chunks of few rows, and time between them.
SLOW = """
import time
from instructjax.cli import table_run
from instructjax.scoring.runs import chunks
chunks.CHUNK_ROWS = 4
ticks = table_run.ScoringProgress.update
table_run.ScoringProgress.update = lambda *a: (time.sleep(0.2), ticks(*a))
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {n}.", "output": f"y {n}"} for n in range(400)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def score(rows: Path, *options: Any) -> list[Any]:
    return ["score", rows, "--out", rows.with_name("s.csv"), "--model", TINY, *options]


def some_kept(rows: Path) -> bool:
    return len(list(rows.with_name("s.csv.parts").glob("*.note"))) > 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_stopped_process_does_not_hold_the_others_for_ever(
    start, rows, victim, record_property
) -> None:
    """SIGSTOP: it lives, its connections stand, and it says nothing."""
    together = start(score(rows, "--lost-after", "5"), count=3, devices=1, before=SLOW)
    together.wait_for(lambda: some_kept(rows))
    stopped = together.signal(victim, signal.SIGSTOP)
    for end in together.ends(of=[n for n in range(3) if n != victim]):
        assert end.code == 1, end
        assert 2 < end.when - stopped < 15
        assert end.errors == [
            f"error: process {victim} has said nothing for 5 s: it was stopped or is cut off"
        ]
        record_property("seconds", end.when - stopped)
    # Who is woken after that finds nobody.
    together.signal(victim, signal.SIGCONT)
    (end,) = together.ends(of=[victim], timeout=30)
    assert end.code == 1 and len(end.errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_ends_the_others_at_once(
    start, rows, victim, sent, record_property
) -> None:
    together = start(score(rows), count=3, devices=1, before=SLOW)
    together.wait_for(lambda: some_kept(rows))
    killed = together.signal(victim, sent)
    for end in together.ends(of=[n for n in range(3) if n != victim]):
        assert end.code == 1, end
        assert end.when - killed < 10
        assert end.errors == [f"error: process {victim} is gone: its connection was closed"]
        assert "coordination" not in end.err  # of jax's own stack trace
        record_property("seconds", end.when - killed)


# As libtpu, which answers SIGTERM with a stack trace once it is loaded.
TRACES_SIGTERM = """
import faulthandler, signal
from jax._src import xla_bridge
load = xla_bridge._init_backend
def load_and_answer(*args):
    faulthandler.register(signal.SIGTERM, all_threads=False, chain=True)
    return load(*args)
xla_bridge._init_backend = load_and_answer
"""


@pytest.mark.slow
def test_told_to_stop_a_process_says_nothing(start, rows) -> None:
    together = start(score(rows), count=2, devices=1, before=SLOW + TRACES_SIGTERM)
    together.wait_for(lambda: some_kept(rows))
    together.signal(1, signal.SIGTERM)
    (end,) = together.ends(of=[1])
    assert end.code == -signal.SIGTERM and "most recent call first" not in end.err


# A process that is killed once jax has connected it to the others.
KILLED_AT_THE_START = """
import os, signal, time
import jax
begin = jax.distributed.initialize
jax.distributed.initialize = lambda *args, **options: (
    begin(*args, **options), time.sleep(1), os.kill(os.getpid(), signal.SIGKILL)
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_while_they_start(
    start, rows, victim, record_property
) -> None:
    together = start(score(rows), count=3, devices=1, before={victim: KILLED_AT_THE_START})
    ends = together.ends()
    for number, end in enumerate(ends):
        if number == victim:
            assert end.code == -signal.SIGKILL
        else:
            assert end.code == 1, end
            assert end.when - ends[victim].when < 10
            record_property("seconds", end.when - ends[victim].when)
            assert end.err == f"error: process {victim} is gone: its connection was closed\n"


# A process that is lost as soon as all have said that they are done.
LOST_AT_THE_END = """
import os, signal
from instructjax.sharding.watch import Watch
finish = Watch.finish
Watch.finish = lambda self: (finish(self), os.kill(os.getpid(), signal.{}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_a_killed_process_that_nobody_needs_any_more(start, rows, victim, sent) -> None:
    together = start(score(rows), before={victim: LOST_AT_THE_END.format(sent)})
    (end,) = together.ends(of=[1 - victim], timeout=120)
    assert (end.code, end.err if victim == 0 else end.errors) == (0, "" if victim == 0 else [])
    assert "coordination" not in end.err
    assert len(rows.with_name("s.csv").read_text().splitlines()) == 401


@pytest.mark.slow
def test_a_process_that_hangs_in_python(start, rows, record_property) -> None:
    """It says that it lives, and does nothing: a lock, a file system that does not answer."""
    hang = SLOW + "from instructjax.scoring import dispatch\ncount = []\ntick = dispatch.tick\n"
    hang += "dispatch.tick = lambda: (count.append(1), tick()) "
    hang += "if len(count) < 6 else time.sleep(1000)\n"
    before = {0: SLOW, 1: hang, 2: SLOW}
    together = start(score(rows, "--stalled-after", "60"), count=3, devices=1, before=before)
    together.wait_for(lambda: some_kept(rows))
    began = time.monotonic()
    for end in together.ends():
        assert end.code == 1, end
        assert end.when - began < 80
        record_property("seconds", end.when - began)
        (error,) = end.errors
        assert "nothing has moved on for 6" in error and "process 1 is behind" in error


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_that_hangs_ends_when_it_is_told_to(start, config, victim, record_property) -> None:
    """SIGTERM waits for the step, which never ends: a cluster's patience does."""
    hang = "import time\nfrom instructjax.finetuning import loop\ncount = []\ntick = loop.tick\n"
    hang += "loop.tick = lambda: (count.append(1), tick()) "
    hang += "if len(count) < 3 else time.sleep(1000)\n"
    together = start([*config, "--lost-after", "2"], devices=1, before={victim: hang})
    metrics = config[config.index("--out") + 1] / "metrics.jsonl"
    together.wait_for(lambda: metrics.exists() and '"step": 2' in metrics.read_text())
    time.sleep(2)  # the third step is done but for its end
    told = together.signal(1, signal.SIGTERM)
    for end in together.ends(timeout=60):
        assert end.code == 143, end
        assert 8 <= end.when - told < 20
        (error,) = end.errors
        assert "SIGTERM: nothing has moved on for " in error
        record_property("seconds", end.when - told)


@pytest.mark.slow
@pytest.mark.parametrize("refuses", [0, 1])
def test_a_wrong_call_that_one_process_sees_ends_all_as_such(start, rows, refuses) -> None:
    refuse = "from instructjax.cli.score import Score\nfrom instructjax.errors import UsageError\n"
    refuse += "def run(self): raise UsageError('not so')\nScore.run = run\n"
    before = {number: refuse if number == refuses else SLOW for number in range(3)}
    ends = start(score(rows), count=3, devices=1, before=before).ends()
    assert [end.code for end in ends] == [2, 2, 2], ends
    assert ends[1 - refuses].errors == [f"error: process {refuses} stopped: not so"]


@pytest.mark.slow
def test_a_process_that_does_not_come(start, rows, record_property) -> None:
    wait = "import time; time.sleep(100)"
    began = time.monotonic()
    together = start(score(rows, "--join-timeout", "6"), count=3, before={0: "", 1: "", 2: wait})
    for end in together.ends(of=[0, 1]):
        assert end.code == 1
        assert end.errors[0].startswith("error: process 2 of 3 did not come within 6 s")
        assert end.when - began < 60
        record_property("seconds", end.when - began)
    together = start(score(rows, "--join-timeout", "4"), before={0: wait, 1: ""})
    (end,) = together.ends(of=[1])
    assert end.code == 1 and "process 0 was not reached at 127.0.0.1:" in end.errors[0]
    assert ", 4096 above the coordinator's port 2" in end.errors[0]


@pytest.mark.slow
def test_a_full_disk_stops_all(start, rows, record_property) -> None:
    """Process 0 writes; a limit on the size of files stands for a full disk."""
    full = SLOW + "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += "chunks.CHUNK_ROWS = 16\n"  # more than fits; messages do
    full += "from instructjax.scoring.runs import parts\nwrite = parts.write_whole\n"
    full += "def limited(file, text, **options):\n"
    full += "    if file.suffix == '.note' and int(file.name[:12]) >= 16:\n"
    full += "        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
    full += "    write(file, text, **options)\n"
    full += "parts.write_whole = limited\n"
    large = SLOW + "chunks.CHUNK_ROWS = 16\n"
    first, second = start(score(rows), before={0: full, 1: large}).ends()
    assert first.code == second.code == 1
    (error,) = first.errors
    assert "the table cannot be written: File too large" in error and "rows are kept" in error
    assert second.errors == [f"error: process 0 stopped: {error.removeprefix('error: ')}"]
    assert second.when - first.when < 10
    record_property("seconds", second.when - first.when)
    ends = start(score(rows), devices=1, before=large.replace("0.2", "0")).ends()
    assert [end.code for end in ends] == [0, 0], ends
    assert "going on after" in ends[0].err and rows.with_name("s.csv").exists()


@pytest.fixture
def config(tmp_path: Path, rows: Path) -> list[Any]:
    options = {"steps": 6, "checkpoint_every": 2, "keep": 5, "row_length": 64, "rows": 2}
    options |= {"learning_rate": 0.003, "export": "none"}
    words: list[Any] = ["finetune", "--data", rows, "--out", tmp_path / "run", "--model", TINY]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "deleted"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(start, config, tmp_path, damage) -> None:
    """Files of one process are damaged; all must fall back to the same checkpoint."""
    ends = start(config, devices=1).ends()
    assert [end.code for end in ends] == [0, 0], ends
    out = tmp_path / "run"
    undisturbed = (out / "metrics.jsonl").read_text().splitlines()
    newest = out / "checkpoints" / "6" / "state"
    parts = [file for file in newest.rglob("d/*") if file.is_file()]
    assert parts
    for file in parts:
        if damage == "deleted":
            file.unlink()
        else:
            with file.open("r+b") as stream:
                stream.truncate(file.stat().st_size // 2)
    (out / "done.json").unlink()
    first, second = start(config, devices=1).ends()
    assert first.code == second.code == 0, (first.err, second.err)
    assert "checkpoints/6: " in first.err and "; passed over" in first.err
    assert "going on after step 4 of 6" in first.err
    again = (out / "metrics.jsonl").read_text().splitlines()
    losses = [[json.loads(line)["loss"] for line in run] for run in (undisturbed, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_stops_all(
    start, config, tmp_path, record_property
) -> None:
    """The metrics fit, a checkpoint does not: first with process 1, then with process 0."""
    full = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))\n"
    for victim in (1, 0):
        together = start([*config, "--mesh", "fsdp=2"], devices=1, before={victim: full})
        ends = together.ends(timeout=500)
        assert [end.code for end in ends] == [1, 1], ends
        for end in ends:
            (error,) = end.errors
            assert "a checkpoint cannot be written (" in error, end
        assert abs(ends[0].when - ends[1].when) < 15
        record_property("seconds", abs(ends[0].when - ends[1].when))
        assert not (tmp_path / "run" / "done.json").exists()
    ends = start(config, devices=1).ends()
    assert [end.code for end in ends] == [0, 0], ends
