"""Cuts a JSON text of any length into the byte strings of its records, a chunk at a time.

Only brackets and strings are followed; each record is parsed by `json` afterwards. So a record
that is not UTF-8, is nested too deeply or holds a number of 5,000 digits costs that record, not
the file (event parsers such as yajl lose the rest, or turn a lone surrogate into "?").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedIOBase

_CHUNK = 1 << 18
_GAP = re.compile(rb"[\s,:]*+")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# Outside strings only numbers, literals and separators may stand: anything else means that a
# quote is missing somewhere, and going on would take text for structure.
_FILL = rb"[\s,:0-9+\-.eEtrufalsnNIiy]*+"
# Not possessive: before Python 3.11.5 what is then left of a string cut short stays taken. Bounded,
# since each repetition is remembered.
_RUN = re.compile(_FILL + rb"(?:" + _STRING + _FILL + rb"){0,4096}", re.DOTALL)
_WORD = re.compile(rb'[^\s,:\[\]{}"]*+')
_STRING_ONLY = re.compile(_STRING, re.DOTALL)
_CLOSER = {ord("["): ord("]"), ord("{"): ord("}")}
_MAX_WORD = 1 << 20


class BrokenJson(Exception):
    """The text cannot be cut any further; its text says why and at which byte."""


class JsonSplitter:
    """A cursor on a JSON byte stream that holds one value at a time.

    >>> import io
    >>> splitter = JsonSplitter(io.BytesIO(b'[{"a": "]"}, 7]'))
    >>> list(splitter.split_array())
    [b'{"a": "]"}', b'7']
    """

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self._mark = 0  # bytes before it are no longer needed
        self._offset = 0  # of the buffer in the stream
        self._ended = False
        while not self._ended and len(self._buffer) < 3:
            self._read_more()
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._at = self._mark = 3

    def peek(self) -> str:
        """Returns the next character that is not a separator, "" at the end of the text."""
        while True:
            match = _GAP.match(self._buffer, self._at)
            assert match is not None
            self._at = self._mark = match.end()
            if self._at < len(self._buffer):
                return chr(self._buffer[self._at])
            if not self._read_more():
                return ""

    def skip_char(self) -> None:
        """Steps over the character that `peek` returned."""
        self._at += 1

    def read_value(self, limit: int | None = None) -> bytes:
        """Returns the bytes of the next value.

        Args:
          limit: most bytes that the value may have.

        Raises:
          BrokenJson: the text ends or breaks within the value, or the value is too long.
        """
        first = self.peek()
        if first == '"':
            while (match := _STRING_ONLY.match(self._buffer, self._at)) is None:
                self._read_on(limit)
            self._at = match.end()
        elif first in ("[", "{"):
            self._read_brackets(limit)
        else:
            self._read_word()
        return self._buffer[self._mark : self._at]

    def split_array(self) -> Iterator[bytes]:
        """Yields the bytes of each element of the list that starts here, and steps over it."""
        self.peek()
        self.skip_char()
        while (first := self.peek()) != "]":
            if not first:
                raise BrokenJson("the text ends before the list is closed")
            yield self.read_value()
        self.skip_char()

    def copy_rest(self) -> bytes:
        """Returns what is at hand from the start of the last value on."""
        return self._buffer[self._mark :]

    def _read_brackets(self, limit: int | None) -> None:
        stack = bytearray()
        while True:
            run = _RUN.match(self._buffer, self._at)
            assert run is not None
            at = run.end()
            char = self._buffer[at] if at < len(self._buffer) else None
            if char is None or char == ord('"'):  # another string, or one that goes on
                if at > self._at:
                    self._at = at
                else:
                    self._read_on(limit)
                continue
            if char in _CLOSER:
                stack.append(_CLOSER[char])
            elif char not in b"]}" or stack.pop() != char:
                raise BrokenJson(f"{chr(char)!r} is out of place at byte {self._offset + at + 1}")
            self._at = at + 1
            if not stack:
                return

    def _read_word(self) -> None:
        while True:
            match = _WORD.match(self._buffer, self._at)
            assert match is not None
            end = match.end()
            if end < len(self._buffer) or end - self._at > _MAX_WORD or not self._read_more():
                break
        if end == self._at:
            char = chr(self._buffer[self._at]) if self._at < len(self._buffer) else "the end"
            raise BrokenJson(f"{char!r} is out of place at byte {self._offset + self._at + 1}")
        if end - self._at > _MAX_WORD:
            raise BrokenJson(f"no JSON value at byte {self._offset + self._at + 1}")
        self._at = end

    def _read_on(self, limit: int | None) -> None:
        if limit is not None and len(self._buffer) - self._mark > limit:
            raise BrokenJson(f"a value of more than {limit:,} bytes")
        if not self._read_more():
            raise BrokenJson("the text ends in the middle of a value")

    def _read_more(self) -> bool:
        # Reading as much again as is pending keeps the work linear in the length of a value.
        chunk = self._stream.read(max(_CHUNK, len(self._buffer) - self._mark))
        self._ended = not chunk
        self._buffer = self._buffer[self._mark :] + chunk
        self._offset += self._mark
        self._at -= self._mark
        self._mark = 0
        return bool(chunk)
