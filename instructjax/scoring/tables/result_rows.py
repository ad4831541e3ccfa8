"""Rows that a function returns: indexed as arrays are, a data frame, and a display in notebooks."""

from __future__ import annotations

import dataclasses
import html
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

import numpy as np
import pyarrow as pa

from instructjax.display.tokens import render_legend_html
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.scoring.tables.files import open_table
from instructjax.scoring.tables.table import to_pandas, to_table

if TYPE_CHECKING:
    import pandas

SHOWN_ROWS = 10
Row = TypeVar("Row", bound=Any)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResultRows(ABC, Generic[Row]):
    """A slice, a mask or a list of indices gives another of these, an index one row.

    Attributes:
      rows: in order.
      tokenizer: turns ids into text.
      metadata: of the table.
    """

    rows: tuple[Row, ...]
    tokenizer: Tokenizer
    metadata: Mapping[str, str] = field(default_factory=dict)
    _schema: ClassVar[pa.Schema]

    @property
    def ids(self) -> list[str]:
        """The examples' ids; "row N" where an example has none."""
        return [row.id for row in self.rows]

    @property
    def status(self) -> list[str]:
        """ "ok", or flags of each row joined by commas."""
        return [row.status for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, index: int) -> Row: ...
        @overload
        def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Self: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return self.rows[index]
        if isinstance(index, slice):
            rows = self.rows[index]
        else:
            rows = tuple(self.rows[i] for i in np.arange(len(self))[np.asarray(index)])
        return dataclasses.replace(self, rows=rows)

    def to_arrow(self) -> pa.Table:
        """The table, with the metadata in its schema."""
        return to_table(map(self._record, self.rows), self.metadata, self._schema)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame; the metadata is in its `attrs`.

        Raises:
          UsageError: pandas is not installed.
        """
        return to_pandas(self.to_arrow())

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the table: .parquet, .jsonl or .csv; see `open_table`."""
        with open_table(path, self.metadata, overwrite=overwrite, schema=self._schema) as write:
            for row in self.rows:
                write(self._record(row))

    @abstractmethod
    def _record(self, row: Row) -> Mapping[str, Any]:
        """A row of the table."""

    @abstractmethod
    def _describe(self, row: Row) -> str:
        """A line of text."""

    @abstractmethod
    def _show(self, row: Row) -> tuple[str, str]:
        """A line of text, and the coloured tokens under it as HTML."""

    def _columns(self) -> str:
        """What stands over the lines of rows."""
        return ""

    def __repr__(self) -> str:
        about = [self.metadata[name] for name in ("model", "layout") if name in self.metadata]
        noun = "row" if len(self) == 1 else "rows"
        lines = [f"{type(self).__name__}({', '.join([f'{len(self)} {noun}', *about])})"]
        if self.rows and (columns := self._columns()):
            lines.append(f"  {columns}")
        lines += [f"  {self._describe(row)}" for row in self.rows[:SHOWN_ROWS]]
        if len(self) > SHOWN_ROWS:
            lines.append(f"  … and {len(self) - SHOWN_ROWS} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [render_legend_html()]
        for row in self.rows[:SHOWN_ROWS]:
            head, tokens = self._show(row)
            parts.append(
                f'<div style="margin:0.6em 0 0.2em;opacity:0.75">{html.escape(head)}</div>{tokens}'
            )
        if len(self) > SHOWN_ROWS:
            parts.append(
                f'<div style="margin-top:0.6em;opacity:0.75">… and {len(self) - SHOWN_ROWS} more '
                "rows: index them to see them</div>"
            )
        return f'<div style="max-width:60em">{"".join(parts)}</div>'
