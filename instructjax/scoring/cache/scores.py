"""A cache of scores on disk, found by what was computed and never by a name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.errors import UsageError
from instructjax.models.linear import precision_of
from instructjax.models.model import Model
from instructjax.prompts.request import Request
from instructjax.scoring.cache.database import blaming, open_database, transaction
from instructjax.scoring.cache.weights import digest_weights
from instructjax.scoring.engine import ScoredRequest, Work, score_requests
from instructjax.scoring.metadata import installed_version

FILE_NAME = "scores.sqlite"

# A score as it is stored: name, dtype, and whether there are top_k numbers a token.
_ARRAYS = (
    ("token_log_probs", "<f4", False),
    ("greedy", "|b1", False),
    ("entropy", "<f4", False),
    ("rank", "<i4", False),
    ("top_ids", "<i4", True),
    ("top_log_probs", "<f4", True),
)


class ScoreCache:
    """Scores of one model, in the file `scores.sqlite` of a folder that all models may share.

    A score is found again by the SHA-256 of the weights, the configuration, the dtype, the matmul
    precision, the kind of device, the version of this package, the ids, the spans and `top_k`.
    Tokenizer, template and layout count by the ids that they make, names not at all. What it gives
    are the bits that were computed once. Several processes may use one file.

    Args:
      folder: made if it is missing.
      model: whose scores are kept.

    Raises:
      UsageError: it is no folder, it cannot be made, or the file is of another program.
      DataError: the file is damaged or cannot be opened.

    Attributes:
      path: the file.
      hits: scores that were found.
      misses: scores that were asked for and not there.
    """

    def __init__(self, folder: str | os.PathLike[str], model: Model) -> None:
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise UsageError(
                f"the score cache is {folder!r}", remedy="give the folder that it is to be in"
            )
        self.path = Path(folder) / FILE_NAME
        self.hits = self.misses = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the cache's folder cannot be made ({error.strerror})",
                file=self.path.parent,
                remedy="give another one",
            ) from None
        self._model_key = _describe(model)
        self._leaves = jax.tree.leaves(model.params)
        self._model = model
        self._database: sqlite3.Connection | None = open_database(self.path)

    def check_model(self, model: Model) -> None:
        """Raises a UsageError unless the scores of this model are those that are kept."""
        leaves = jax.tree.leaves(model.params)
        # Weights are looked through once, not at every call: an array does not change, but another
        # may have taken its place.
        known = model is self._model and all(map(operator.is_, leaves, self._leaves))
        if known and len(leaves) == len(self._leaves):
            return
        if _describe(model) != self._model_key:
            raise UsageError(
                f"the score cache was opened for another model than {model.name}, or for the "
                "weights that it had then",
                file=self.path,
                remedy="give the folder, or open one for this model",
            )
        self._model, self._leaves = model, leaves

    def key(self, request: Request, *, top_k: int = 0) -> bytes:
        """What a score is found by, 32 bytes."""
        spans = [place for span in request.spans for place in span]
        digest = hashlib.sha256(self._model_key)
        digest.update(struct.pack(f"<3q{len(spans)}q", top_k, len(request.ids), len(spans), *spans))
        digest.update(np.ascontiguousarray(request.ids, "<i4").tobytes())
        return digest.digest()

    def read(self, key: bytes, request: Request, *, top_k: int = 0) -> ScoredRequest | None:
        """The score of a request, or None where there is none.

        Raises:
          DataError: the file is damaged.
        """
        with blaming(self.path):
            found = self._connection.execute("SELECT value FROM scores WHERE key = ?", (key,))
            row = found.fetchone()
            return None if row is None else _unpack(row[0], request, top_k)

    def write(self, scores: Mapping[bytes, ScoredRequest]) -> None:
        """Adds scores, all or none; one that is there already stays.

        Raises:
          DataError: the file is damaged or cannot be written.
        """
        if not scores:
            return
        packed = [(key, _pack(scored)) for key, scored in scores.items()]
        with blaming(self.path), transaction(self._connection):
            self._connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", packed)

    def close(self) -> None:
        """Lets go of the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise UsageError("the score cache is closed", file=self.path, remedy="open it again")
        return self._database

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_cache(
    cache: str | os.PathLike[str] | ScoreCache | None, model: Model
) -> AbstractContextManager[ScoreCache | None]:
    """The cache in a folder, closed after the block; one that is open, left open; or none.

    Raises:
      UsageError: it is no folder, or was opened for another model.
      DataError: the file is damaged or cannot be opened.
    """
    if isinstance(cache, ScoreCache):
        cache.check_model(model)
    return (
        nullcontext(cache)
        if cache is None or isinstance(cache, ScoreCache)
        else ScoreCache(cache, model)
    )


def score_cached(
    model: Model,
    requests: Sequence[Request],
    cache: ScoreCache,
    *,
    top_k: int = 0,
    work: Work | None = None,
    on_row: Callable[[int], None] | None = None,
) -> list[ScoredRequest]:
    """Scores requests, in order: those in the cache are read, the others computed and added.

    Of equal requests one is computed. New scores are added together at the end, so that a run
    which is stopped and goes on finds either all of them or none.

    Raises:
      UsageError: the cache was opened for another model, or is closed.
      DataError: its file is damaged or cannot be written.
    """
    cache.check_model(model)
    keys = [cache.key(request, top_k=top_k) for request in requests]
    found: dict[bytes, ScoredRequest] = {}
    missing: dict[bytes, Request] = {}
    hits = 0
    for key, request in zip(keys, requests, strict=True):
        if key not in found and key not in missing:
            scored = cache.read(key, request, top_k=top_k)
            if scored is None:
                missing[key] = request
            else:
                found[key] = scored
        hits += key in found
    cache.hits += hits
    cache.misses += len(keys) - hits
    if on_row is not None and hits:
        on_row(hits)
    copies = len(keys) - hits - len(missing)
    computed = score_requests(model, missing.values(), top_k=top_k, work=work, on_row=on_row)
    new = dict(zip(missing, computed, strict=True))
    cache.write(new)
    if on_row is not None and copies:
        on_row(copies)
    scores = found | new
    return [
        dataclasses.replace(scores[key], request=request)
        for key, request in zip(keys, requests, strict=True)
    ]


def _describe(model: Model) -> bytes:
    """Everything about a model that its numbers depend on."""
    about = [
        installed_version(),
        jax.default_backend(),
        model.fingerprint,
        digest_weights(model.params),
        model.dtype,
        precision_of(jnp.dtype(model.dtype)).name,
        dataclasses.asdict(model.config),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()


def _pack(scored: ScoredRequest) -> bytes:
    """The arrays of a score one behind the other, after a checksum of them."""
    parts: Iterable[bytes] = (
        np.ascontiguousarray(getattr(scored, name), dtype).tobytes() for name, dtype, _ in _ARRAYS
    )
    data = b"".join(parts)
    return struct.pack("<I", zlib.crc32(data)) + data


def _unpack(value: bytes, request: Request, top_k: int) -> ScoredRequest:
    (checksum,) = struct.unpack_from("<I", value) if len(value) >= 4 else (None,)
    data = value[4:]
    count = request.num_tokens
    sizes = [count * (top_k if many else 1) * np.dtype(d).itemsize for _, d, many in _ARRAYS]
    if zlib.crc32(data) != checksum or sum(sizes) != len(data):
        raise ValueError("a score's bytes are not those that were written")
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for (name, dtype, many), size in zip(_ARRAYS, sizes, strict=True):
        array = np.frombuffer(data[start : start + size], dtype).copy()
        arrays[name] = array.reshape(count, top_k) if many else array
        start += size
    return ScoredRequest(request=request, **arrays)
