"""A stream of rows as requests, each of which one of several processes makes for all of them.

Encoding takes thirty times as long as reading. So every process reads all rows and encodes its
share, and what the others made comes by way of the coordinator, whatever the devices do meanwhile.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any, TypeVar

import jax

from instructjax.errors import InstructJaxError
from instructjax.prompts.request import Request
from instructjax.sharding import processes

BLOCK_ROWS = 64  # that a process encodes before it exchanges them for those of the others

Row = TypeVar("Row")
_streams = count()


def encode_rows(
    rows: Iterable[Row],
    encode: Callable[[Row, int], Any],
    *,
    done: Mapping[int, int] | None = None,
    shared: bool = False,
) -> Iterator[tuple[Row, Any]]:
    """Each row with what `encode` makes of it, in order.

    Args:
      rows: any iterable.
      encode: makes the requests of a row, given its index, or says why there are none: that, and
        what it raises, it says in every process.
      done: rows that are not encoded, and come with None: the index of the first to that after
        the last.
      shared: of several processes, each encodes its share. Then the rows are the same in all of
        them, and all must go through them; by default each encodes all of its own.

    >>> list(encode_rows("abc", lambda row, place: [row * place], done={1: 2}))
    [('a', ['']), ('b', None), ('c', ['cc'])]
    """
    rows, stream = iter(rows), next(_streams)
    together = shared and processes.several()
    here, many = (jax.process_index(), jax.process_count()) if together else (0, 1)
    size = BLOCK_ROWS * many if many > 1 else 1
    first = stop = 0
    for block in count():
        group = dict(enumerate(islice(rows, size), first))
        if not group:
            return
        wanted = []
        for place in group:
            stop = (done or {}).get(place, stop)
            if place >= stop:
                wanted.append(place)
        ready: dict[int, list[Request] | None] = {}
        if many > 1:
            mine = [_try(encode, group[place], place) for place in wanted[here::many]]
            shares = processes.exchange(f"rows {stream}, block {block}", _pack(mine))
            for number, share in enumerate(shares):
                made = mine if number == here else _unpack(share)
                ready.update(zip(wanted[number::many], made, strict=True))
        for place, row in group.items():
            made = ready.get(place)
            yield row, encode(row, place) if made is None and place in wanted else made
        first += len(group)


def _try(encode: Callable[[Row, int], Any], row: Row, place: int) -> list[Request] | None:
    """Requests, or None: then every process is to see for itself why there are none."""
    try:
        made = encode(row, place)
    except InstructJaxError:
        return None
    return made if isinstance(made, list) else None


def _pack(made: list[list[Request] | None]) -> bytes:
    described = [one and [request.to_json() for request in one] for one in made]
    return zlib.compress(json.dumps(described).encode(), 1)


def _unpack(share: bytes) -> list[list[Request] | None]:
    described = json.loads(zlib.decompress(share))
    return [one and list(map(Request.from_json, one)) for one in described]
