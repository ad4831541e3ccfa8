"""What starts processes: options that do not fit together, and clusters that are found."""

from __future__ import annotations

import pytest

from instructjax.cli.main import main
from instructjax.errors import UsageError
from instructjax.sharding import processes

SCORE = ["score", "rows.jsonl", "--out", "scores.csv"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--distributed"], "no cluster was found: neither a TPU pod, SLURM, Kubernetes nor Open"),
        (["--coordinator", "h:1"], "--num-processes and --process-id are not given; give all"),
        (["--process-id", "0"], "--coordinator and --num-processes are not given"),
        (["--coordinator", "h:1", "--process-id", "0"], "--num-processes is not given"),
        (
            ["--coordinator", "h", "--num-processes", "2", "--process-id", "0"],
            "--coordinator 'h' is not HOST:PORT; such as 10.0.0.1:8476",
        ),
        (
            ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id 2 is not one of 2 processes; give each its own, from 0 to 1",
        ),
        (["--distributed", "--lost-after", "0"], "--lost-after 0 is not above 0"),
    ],
)
def test_half_of_the_options_is_refused(options, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SCORE, *options]) == 2
    assert says in capsys.readouterr().err


def test_a_cluster_whose_server_does_not_answer(monkeypatch, capsys):
    from jax._src.clusters import ClusterEnv

    def ask(*_):
        raise ConnectionError("HTTPConnectionPool(host='metadata.google.internal')\nand more")

    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", ask)
    assert main([*SCORE, "--distributed"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: the cluster does not say who takes part (HTTPConnectionPool("
        "host='metadata.google.internal')); give --coordinator HOST:PORT, --num-processes and "
        "--process-id"
    )


def test_slurm_is_found_and_others_are_waited_for(monkeypatch):
    """The variables of a job of SLURM, as its documentation has them."""
    variables = {
        "SLURM_JOB_ID": "12345",
        "SLURM_STEP_NODELIST": "node[03-04]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = {}

    def note(address, index, count, **options):
        asked.update(address=address, index=index, count=count, **options)
        raise UsageError("as far as this")

    monkeypatch.setattr(processes, "meet", note)
    with pytest.raises(UsageError, match="as far as this"):
        processes.start(timeout=7.0, lost_after=11.0)
    # jax's port for the job, and the watch's away from those of other jobs
    jax_port = 12345 % 2**12 + (65535 - 2**12 + 1)
    assert asked["address"] == f"node03:{jax_port - 4096}"
    assert (asked["index"], asked["count"]) == (1, 2)
    assert (asked["timeout"], asked["lost_after"]) == (7, 11)


def test_alone_there_is_nothing_to_share():
    assert processes.leads() and not processes.several()
    assert processes.share([1, {"a": None}]) == [1, {"a": None}]
    assert processes.agree(True) and not processes.agree(False)
    processes.check_alike({"data": "x"})
    processes.tick()
    assert not processes.told_to_stop(3)
