"""A table of texts, as Markdown, as LaTeX, and for a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
_LIGATURE = re.compile(r"-(?=-)|'(?=')")
_LONG = 40
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\ttfamily\char34}",  # in every font encoding
    "`": r"\textasciigrave{}",
    "−": "$-$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "–": "--",
    "…": r"\ldots{}",
    "φ": r"$\varphi$",
    "σ": r"$\sigma$",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its name, and whether it holds numbers, which stand to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts under a title."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        r"""As GitHub's Markdown; nothing of a text becomes markup.

        >>> table = make_table("T", ["name"], ["n"], [("<b>|*", "1")])
        >>> print(table.to_markdown())
        **T**
        <BLANKLINE>
        | name | n |
        | --- | ---: |
        | &lt;b&gt;\|\* | 1 |
        """
        lines = [
            f"**{escape_markdown(self.title)}**",
            "",
            _row([escape_markdown(column.name) for column in self.columns]),
            _row(["---:" if column.number else "---" for column in self.columns]),
            *(_row(list(map(escape_markdown, row))) for row in self.rows),
        ]
        return "\n".join(lines)

    def to_latex(self) -> str:
        r"""As a LaTeX table of package booktabs; nothing of a text becomes a command.

        Columns of long texts are paragraphs, together 0.6 of a line wide.

        >>> print(make_table("T", ["name"], ["n"], [("a_b", "1")]).to_latex())
        \begin{table}
        \caption{T}
        \begin{tabular}{lr}
        \toprule
        name & n \\
        \midrule
        a\_b & 1 \\
        \bottomrule
        \end{tabular}
        \end{table}
        """
        long = [
            not column.number and max((len(row[k]) for row in self.rows), default=0) > _LONG
            for k, column in enumerate(self.columns)
        ]
        width = rf"p{{{0.6 / max(sum(long), 1):.2f}\linewidth}}"
        places = "".join(
            width if is_long else "r" if column.number else "l"
            for is_long, column in zip(long, self.columns, strict=True)
        )
        head = " & ".join(escape_latex(column.name) for column in self.columns)
        rows = [rf"{_latex_row(row)} \\" for row in self.rows]
        lines = [
            r"\begin{table}",
            rf"\caption{{{escape_latex(self.title)}}}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines)


def make_table(
    title: str, texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]
) -> Table:
    """A table whose first columns hold text and whose others hold numbers."""
    columns = [Column(name=name, number=False) for name in texts]
    columns += [Column(name=name) for name in numbers]
    return Table(title=title, columns=tuple(columns), rows=tuple(tuple(row) for row in rows))


def escape_markdown(text: str) -> str:
    """A text of which Markdown makes nothing but itself."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A hyphen within a number or a word is harmless, and more readable bare.
    return re.sub(r"(?<=\w)\\-(?=\w)", "-", _MARKDOWN.sub(r"\\\1", text))


def escape_latex(text: str) -> str:
    r"""A text that LaTeX sets as it is; letters beyond Latin ones take LuaLaTeX or XeLaTeX.

    >>> print(escape_latex("50% of --all"))
    50\% of -{}-all
    """
    parts = [
        "".join(_LATEX.get(character, character) for character in part)
        for part in _LIGATURE.sub(r"\g<0>\0", text).split("\0")
    ]
    return "{}".join(parts)


def _latex_row(cells: Sequence[str]) -> str:
    row = " & ".join(map(escape_latex, cells))
    # After the end of a row, they would belong to it.
    return "{}" + row if row.startswith(("[", "*")) else row


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
