"""The score cache: the same bits, never those of other weights, and damage that is said."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from instructjax.data import Example
from instructjax.errors import DataError, UsageError
from instructjax.prompts import Request
from instructjax.scoring import ScoreCache, Work, rank, score, score_requests
from instructjax.scoring.cache import score_cached
from instructjax.scoring.cache.database import open_database

ROOT = Path(__file__).parents[3]
ARRAYS = ("token_log_probs", "greedy", "entropy", "rank", "top_ids", "top_log_probs")


def make_requests(count: int = 20, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    made = []
    for row in range(count):
        n = int(rng.integers(3, 40))
        ids = rng.integers(0, 61, n).astype(np.int32)
        start = int(rng.integers(1, n))
        made.append(Request(ids=ids, spans=((start, n),), num_bytes=row, row=row))
    return made


def same_bits(left: Any, right: Any) -> bool:
    pairs = [(getattr(left, name), getattr(right, name)) for name in ARRAYS]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs
    )


@pytest.mark.parametrize("top_k", [0, 3])
def test_hits_are_the_bits_that_were_computed(
    tmp_path: Path, random_model: Callable[..., Any], top_k: int
) -> None:
    model, requests = random_model(), make_requests()
    plain = list(score_requests(model, requests, top_k=top_k))
    with ScoreCache(tmp_path, model) as cache:
        first = score_cached(model, requests, cache, top_k=top_k)
        assert (cache.hits, cache.misses) == (0, 20)
    work, ticks = Work(), []
    with ScoreCache(tmp_path, model) as cache:
        # In another order and company, and still the same.
        again = score_cached(
            model, requests[::-1], cache, top_k=top_k, work=work, on_row=ticks.append
        )
        assert (cache.hits, cache.misses) == (20, 0)
    assert work.computed == 0 and ticks == [20]
    for a, b, c in zip(plain, first, again[::-1], strict=True):
        assert same_bits(a, b) and same_bits(b, c)
        assert c.request is a.request
        assert c.token_log_probs.flags.writeable


def test_equal_requests_are_computed_once(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    model, requests = random_model(), make_requests(5)
    twins = [dataclasses.replace(request, row=9, context="z") for request in requests]
    ticks: list[int] = []
    with ScoreCache(tmp_path, model) as cache:
        scored = score_cached(model, [*requests, *twins], cache, on_row=ticks.append)
        count = sqlite3.connect(cache.path).execute("SELECT count(*) FROM scores").fetchone()
    assert count == (5,) and sum(ticks) == 10
    for a, b, twin in zip(scored, scored[5:], twins, strict=False):
        assert same_bits(a, b) and b.request is twin


def test_what_makes_another_score_makes_another_key(
    tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    model, (request, other) = random_model(), make_requests(2)
    n = len(request.ids)
    changed = request.ids.copy()
    changed[0] ^= 1
    one, two = ((1, n),), ((1, 2), (2, n)) if n > 2 else ((1, n),)
    requests = [
        dataclasses.replace(request, spans=one),
        dataclasses.replace(request, spans=two),
        dataclasses.replace(request, ids=changed, spans=one),
        dataclasses.replace(request, ids=request.ids[:-1], spans=((1, n - 1),)),
        other,
    ]
    with ScoreCache(tmp_path, model) as cache:
        keys = [cache.key(r, top_k=k) for r in requests for k in (0, 1)]
        names = dataclasses.replace(requests[0], row=7, candidate=3, context="c", num_bytes=99)
        assert cache.key(names) == keys[0]
    assert len(set(keys)) == len(keys)


def test_other_weights_never_hit(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    model, request = random_model(), make_requests(1)[0]
    leaf = jax.tree.leaves(model.params)[0]
    nudged = leaf.at[(0,) * leaf.ndim].add(1e-6)
    assert nudged[(0,) * leaf.ndim] != leaf[(0,) * leaf.ndim]
    leaves, tree = jax.tree.flatten(model.params)
    swapped = [x[..., ::-1] if i == 1 else x for i, x in enumerate(leaves)]
    rope = dataclasses.replace(model.config.rope, theta=500.0)
    models = [
        model,
        # With the names and the fingerprint that it had.
        dataclasses.replace(model, params=jax.tree.unflatten(tree, [nudged, *leaves[1:]])),
        dataclasses.replace(model, params=jax.tree.unflatten(tree, swapped)),
        dataclasses.replace(model, config=dataclasses.replace(model.config, rope=rope)),
        dataclasses.replace(model, fingerprint="f"),
        random_model(seed=1),
        random_model(dtype="bfloat16"),
    ]
    keys = set()
    for other in models:
        with ScoreCache(tmp_path, other) as cache:
            assert score_cached(other, [request], cache)
            assert (cache.hits, cache.misses) == (0, 1)
            keys.add(cache.key(request))
    assert len(keys) == len(models)
    with ScoreCache(tmp_path, dataclasses.replace(model, name="another name")) as cache:
        score_cached(model, [request], cache)
        assert cache.hits == 1


def test_score_takes_a_cache(tmp_path: Path, tiny_model: Any) -> None:
    examples = [Example(instruction="Add.", input=f"{n} + 1", output=["2", "3"]) for n in range(9)]
    plain = score(tiny_model, examples, progress=False)
    first = score(tiny_model, examples, cache=tmp_path / "c", progress=False)
    with ScoreCache(tmp_path / "c", tiny_model) as cache:
        again = score(tiny_model, examples[::-1], cache=cache, progress=False)
        assert (cache.hits, cache.misses) == (18, 0)
        more = score(tiny_model, examples[:1], contexts=("c", "cz"), cache=cache, progress=False)
        assert (cache.hits, cache.misses) == (20, 2)
    assert plain.log_prob.tolist() == first.log_prob.tolist()
    assert again.log_prob.reshape(9, 2)[::-1].ravel().tolist() == first.log_prob.tolist()
    assert more.log_prob[1::2].tolist() == first.log_prob[:2].tolist()
    assert again.ids == [f"row {n}" for n in range(1, 10) for _ in "ab"]


@pytest.mark.parametrize("damage", ["cut", "not one", "zeros", "value"])
def test_a_damaged_file_is_an_error_with_a_remedy(
    tmp_path: Path, random_model: Callable[..., Any], damage: str
) -> None:
    model, requests = random_model(), make_requests(200)
    with ScoreCache(tmp_path, model) as cache:
        score_cached(model, requests, cache)
    path = tmp_path / "scores.sqlite"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.sqlite"]
    data = path.read_bytes()
    if damage == "value":
        with sqlite3.connect(path) as database:
            database.execute("UPDATE scores SET value = CAST(substr(value, 1, 9) AS BLOB)")
        database.close()
    else:
        middle = len(data) // 2 // 4096 * 4096
        path.write_bytes(
            {
                "cut": data[:middle],
                "not one": b"scores\n" * 999,
                "zeros": data[:4096] + bytes(len(data) - 4096),
            }[damage]
        )
    with (
        pytest.raises(DataError, match=r"damaged.*delete it") as caught,
        ScoreCache(tmp_path, model) as cache,
    ):
        score_cached(model, requests, cache)
    assert caught.value.file == str(path)
    path.unlink()
    with ScoreCache(tmp_path, model) as cache:
        assert len(score_cached(model, requests, cache)) == 200


def test_a_database_of_another_program(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    with sqlite3.connect(tmp_path / "scores.sqlite") as database:
        database.execute("CREATE TABLE mine (a)")
    database.close()
    with pytest.raises(UsageError, match="not a score cache"):
        ScoreCache(tmp_path, random_model())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="folder cannot be made"):
        ScoreCache(tmp_path / "file", random_model())


def test_a_place_that_cannot_be_used(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    (tmp_path / "scores.sqlite").mkdir()
    with pytest.raises(DataError, match=r"cannot be used.*leave the cache out"):
        ScoreCache(tmp_path, random_model())


# Three forks of a process that has computed nothing open the file at once and add to it.
_FORKS = """
import os, sys
from pathlib import Path
from instructjax.scoring.cache.database import open_database, transaction

children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        database = open_database(Path(sys.argv[1]))
        for n in range(30):
            with transaction(database):
                key = (number * 10 + n).to_bytes(4, "little")
                database.execute("INSERT OR IGNORE INTO scores VALUES (?, ?)", (key, b"x"))
        os._exit(0)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS, path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout == "[0, 0, 0]\n", result.stderr
    database = open_database(path)
    assert database.execute("SELECT count(*) FROM scores").fetchone() == (50,)
    database.close()


def test_an_interrupted_addition_leaves_none_of_it(
    tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    model, requests = random_model(), make_requests(4)
    with ScoreCache(tmp_path, model) as cache:
        scored = list(score_requests(model, requests))
        copy = tmp_path / "copy"
        good = {cache.key(r): s for r, s in zip(requests, scored, strict=True)}
        cache.write({cache.key(requests[0]): scored[0]})
        bad: Any = dict(good)
        bad["not bytes", 1] = scored[1]  # sqlite refuses such a key, after the good ones
        with pytest.raises(DataError):
            cache.write(bad)
        assert cache.read(cache.key(requests[1]), requests[1]) is None
        found = cache.read(cache.key(requests[0]), requests[0])
        assert found is not None and same_bits(found, scored[0])
        cache.write(good)
        assert cache.read(cache.key(requests[1]), requests[1]) is not None
    shutil.copytree(tmp_path, copy)
    with ScoreCache(copy, model) as cache:
        score_cached(model, requests, cache)
        assert cache.hits == 4


def test_a_cache_of_another_model_is_refused(
    tmp_path: Path, random_model: Callable[..., Any], tiny_model: Any
) -> None:
    one, other, requests = random_model(), random_model(seed=1), make_requests(3)
    with ScoreCache(tmp_path, one) as cache:
        score_cached(one, requests, cache)
        with pytest.raises(UsageError, match=r"opened for another model.*give the folder"):
            score_cached(other, requests, cache)
        example = Example(instruction="Add.", output=["2", "3"])
        for verb in (score, rank):
            with pytest.raises(UsageError, match="opened for another model"):
                verb(tiny_model, example, cache=cache, progress=False)
        # The same numbers under another name.
        twin = dataclasses.replace(one, name="twin")
        score_cached(twin, requests, cache)
        assert (cache.hits, cache.misses) == (3, 3)


def test_weights_changed_in_place_are_another_model(
    tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    model, requests = random_model(), make_requests(3)
    with ScoreCache(tmp_path, model) as cache:
        score_cached(model, requests, cache)
        score_cached(model, requests, cache)
        kernel = jax.tree.leaves(model.params, is_leaf=lambda x: isinstance(x, nnx.Param))[0]
        before = kernel.get_value()
        kernel.set_value(before * 1.5)
        with pytest.raises(UsageError, match="or for the weights that it had then"):
            score_cached(model, requests, cache)
        kernel.set_value(before + 0.0)
        score_cached(model, requests, cache)
        assert (cache.hits, cache.misses) == (6, 3)


def test_a_closed_cache_says_so(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    model, requests = random_model(), make_requests(2)
    with ScoreCache(tmp_path, model) as cache:
        (scored, _) = score_cached(model, requests, cache)
    cache.close()
    with pytest.raises(UsageError, match=r"the score cache is closed; open it again"):
        score_cached(model, requests, cache)
    with pytest.raises(UsageError, match="closed"):
        cache.write({cache.key(requests[0]): scored})


def test_what_is_no_folder(tiny_model: Any) -> None:
    example = Example(instruction="Add.", output=["2", "3"])
    for verb in (score, rank):
        with pytest.raises(UsageError, match="the score cache is ''; give the folder"):
            verb(tiny_model, example, cache="", progress=False)
    # Without its check of types, which a user does not have.
    with pytest.raises(UsageError, match="the score cache is 3"):
        inspect.unwrap(ScoreCache.__init__)(object.__new__(ScoreCache), 3, tiny_model)  # type: ignore
