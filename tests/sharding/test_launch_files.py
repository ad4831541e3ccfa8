"""The example launch files, as far as they can be checked without a cluster."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from instructjax.cli.main import _parse
from instructjax.cli.process_options import ProcessOptions
from instructjax.sharding import parse_mesh

FOLDER = Path(__file__).parents[2] / "experiments" / "launch"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"


def find_commands(script: Path) -> list[list[str]]:
    """The calls of instructjax, with what variables stand for unless they are set."""
    text = re.sub(r"(?m)^\s*#.*", "", script.read_text()).replace("\\\n", " ")
    values = dict(re.findall(r"(?m)^(\w+)=\$\{\w+:-([^}]*)\}", text))
    found = []
    for call in re.findall(r"\binstructjax ((?:finetune|score|rank) [^&\n]*)", text):
        for name, value in values.items():
            call = re.sub(rf"\$\{{?{name}\b\}}?", value, call)
        assert "$" not in call, call
        found.append(shlex.split(call.replace('"', "")))
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_can_read_it(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_every_command_is_one_of_the_command_line():
    count = 0
    for script in SCRIPTS:
        for words in find_commands(script):
            assert_parses(words, distributed=script.name != "gpu_node.sh")
            count += 1
    assert count == 6


def assert_parses(words: list[str], *, distributed: bool) -> None:
    verb: Any = _parse(words)
    assert isinstance(verb, ProcessOptions) and verb.distributed is distributed
    sizes = parse_mesh(vars(verb)["mesh"])
    rows = getattr(verb, "rows", None)
    assert rows is None or rows % sizes["fsdp"] == 0


def test_the_job_set():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    assert job["kind"] == "JobSet" and job["spec"]["failurePolicy"]["maxRestarts"] > 0
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    # Exit code 2 ends it, and everything else starts it again.
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][0] == "instructjax"
    assert_parses(container["command"][1:], distributed=True)
    chips = container["resources"]["limits"]["google.com/tpu"] * spec["parallelism"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert chips == 16 and topology == "4x4" and spec["completions"] == spec["parallelism"]


def run_with_stub(script, folder, name, body, **variables):
    """The script where a command is another one; what it was called with, a line each time."""
    (folder / name).write_text(
        f"#!/bin/bash\nprintf '%q ' \"$@\" >> calls; echo >> calls\n{body}\n"
    )
    (folder / name).chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", FOLDER / script],
        cwd=folder,
        env={"PATH": f"{folder}:/usr/bin:/bin", "PROJECT": "p", "ZONE": "z", **variables},
        capture_output=True,
        text=True,
    )
    return done, [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]


def test_a_slice_is_deleted_when_all_is_done_and_named_when_the_script_is_cut_off(tmp_path):
    def run(body):
        done, calls = run_with_stub("tpu_pod.sh", tmp_path, "gcloud", body, BUCKET="b")
        known = {"describe", "create", "scp", "ssh", "delete"}
        return done, [next(word for word in call if word in known) for call in calls], calls

    there = 'case "$*" in *describe*) exit 1;; esac'
    done, verbs, calls = run(there)
    assert done.returncode == 0 and verbs[:2] == ["describe", "create"] and verbs[-1] == "delete"
    commands = [call[call.index("--command") + 1] for call in calls if "--command" in call]
    assert len(commands) == 4 and "gcsfuse --metadata-cache-ttl-secs 0 b work" in commands[1]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    done, verbs, _ = run(f'{there}; case "$*" in *ssh*) exit 255;; esac')
    assert done.returncode == 255 and "delete" not in verbs
    assert done.stderr.startswith("the slice instructjax is there, and is paid for")
    assert "create" not in run("true")[1]


@pytest.mark.parametrize(("code", "end"), [(0, 0), (1, 1), (2, 0), (143, 1)])
def test_a_wrong_call_ends_the_workload(tmp_path, code, end):
    _, calls = run_with_stub("xpk.sh", tmp_path, "xpk", "true")
    command = calls[-1][calls[-1].index("--command") + 1]
    for name, line in {"pip": "exit 0", "instructjax": f"exit {code}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(["bash", "-c", command], env=path).returncode == end


def test_the_supervisor_starts_again_what_failed(tmp_path):
    """Exit codes 1, 143, 0; and at once 2, or those of a shell that finds no program."""
    script = "n=$(cat n 2>/dev/null || echo 0); echo $((n+1)) > n; set -- $CODES; shift $n; exit $1"
    cases = [("1 143 0", 3, 0), ("1 2 0", 2, 2), ("1 1 1 1", 3, 1)]
    cases += [("126 0", 1, 126), ("127 0", 1, 127)]
    for codes, calls, end in cases:
        (tmp_path / "n").unlink(missing_ok=True)
        done = subprocess.run(
            [FOLDER / "restart.sh", "bash", "-c", script],
            cwd=tmp_path,
            env={"CODES": codes, "PAUSE": "0", "ATTEMPTS": "3", "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == end
        assert int((tmp_path / "n").read_text()) == calls


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_supervisor_passes_on_that_it_is_to_stop(tmp_path, sent):
    """And ends with its command, which may save what it has first."""
    name = sent.name.removeprefix("SIG")
    script = f"trap 'sleep 0.5; echo saved > saved; exit 143' {name}; touch began; "
    script += "while true; do sleep 0.05; done"
    running = subprocess.Popen([FOLDER / "restart.sh", "bash", "-c", script], cwd=tmp_path)
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    running.send_signal(sent)
    assert running.wait(10) == 143
    assert (tmp_path / "saved").read_text() == "saved\n"


@pytest.mark.parametrize(
    ("code", "count", "again"),
    [(0, "", False), (1, "", True), (143, "99", True), (1, "100", False), (2, "", False)]
    + [(126, "", False), (127, "", False)],
)
def test_the_slurm_job_is_requeued_so_often(tmp_path, code, count, again):
    for name, line in {"srun": "exit $CODE", "scontrol": "echo $@ > requeued"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"CODE": str(code), "SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    if count:
        variables["SLURM_RESTART_COUNT"] = count
    script = ["bash", FOLDER / "slurm.sbatch"]
    assert subprocess.run(script, cwd=tmp_path, env=variables).returncode == code
    assert (tmp_path / "requeued").exists() is again


def test_the_image_of_the_pod_gets_a_python_that_is_new_enough():
    import tomllib

    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    wanted = project["requires-python"].removeprefix(">=")
    (given,) = re.findall(r"--python (\d+\.\d+)", (FOLDER / "tpu_pod.sh").read_text())
    assert tuple(map(int, given.split("."))) >= tuple(map(int, wanted.split(".")))


@pytest.mark.slow
def test_supervised_processes_go_on_after_one_is_killed(start, tmp_path):
    """Each under a supervisor of its own: a killed one comes back, and the others meet it."""
    rows = [{"instruction": f"Say {n}.", "output": f"y {n}"} for n in range(200)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scores.jsonl"
    before = """
import time
from instructjax.cli import table_run
from instructjax.scoring.runs import chunks
chunks.CHUNK_ROWS = 4
update = table_run.ScoringProgress.update
table_run.ScoringProgress.update = lambda *a: (time.sleep(0.1), update(*a))
"""
    together = start(
        ["score", file, "--out", out, "--model", TINY],
        devices=1,
        before=before,
        under=[str(FOLDER / "restart.sh")],
        PAUSE="0",
    )
    parts = tmp_path / "scores.jsonl.parts"
    together.wait_for(lambda: len(list(parts.glob("*.note"))) > 2)
    supervisor = together.processes[1].pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    (child,) = map(int, children)
    subprocess.run(["kill", f"-{int(signal.SIGKILL)}", str(child)], check=True)
    began = time.monotonic()
    first, second = together.ends()
    assert first.code == second.code == 0, (first.err, second.err)
    print(f"done {max(first.when, second.when) - began:.0f} s after the kill")
    assert "process 1 is gone" in first.err and "going on after" in first.err
    assert len(out.read_text().splitlines()) == 200
