"""The page: it says what the numbers say, holds all it needs, and text stays text."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.errors import UsageError
from instructjax.report.contributions import Response, choose_shown
from instructjax.report.page import Page, make_page
from instructjax.report.results import Results, make_results
from instructjax.report.tables import escape_latex, escape_markdown, make_table
from instructjax.report.texts import shorten

# The page with all there is takes its time; `instructjax report` is tested by default.
pytestmark = pytest.mark.slow

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
ATTRIBUTES = {"class", "style", "id", "lang", "charset", "content", "name", "http-equiv", "rel"}
ATTRIBUTES |= {"href", "scope", "role", "tabindex", "dir", "type", "value", "checked", "open"}
ATTRIBUTES |= {"title", "aria-label", "aria-labelledby", "aria-hidden", "aria-live"}
ATTRIBUTES |= {"data-s", "data-t", "data-hint", "data-label"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page; fails where elements do not close."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.text += data

    def finish(self) -> None:
        assert not self._open


@pytest.fixture(scope="module")
def reader(page: Page) -> Reader:
    reader = Reader()
    reader.feed(page.to_html())
    reader.close()
    reader.finish()
    return reader


def test_the_verdict_is_on_top_in_words(page: Page, reader: Reader) -> None:
    assert page.headline == (
        "generalizes over inputs, not over new wordings of known tasks (2 leaks among the unseen; "
        "see Leaks)"
    )
    assert re.fullmatch(
        r"intra-task gap −?0\.0\d+\xa0±\xa00\.0\d+, wording gap 0\.(39|40|41)\d*\xa0±\xa00\.0\d+.*",
        page.numbers,
    )
    assert reader.text.index(page.headline) < reader.text.index("Seen and unseen")


def test_numbers_are_those_of_the_rows(page: Page, results: Results) -> None:
    mine = results.columns["model"] == "tuned"
    for k, cell in enumerate(page.cells):
        mean = results.value[mine & (results.cell == k)].mean()
        assert abs(float(cell.mean) - mean) < 5e-4 and cell.rows == 60
    worst = page.worst[0].rows
    assert all(row[1].startswith("c\u00a0new") for row in worst)
    assert page.models is not None
    difference = page.models.tables[2].rows[0]
    both = results.value[~mine] - results.value[mine]
    cells = results.cell[mine]
    for k, text in enumerate(difference[2:]):
        assert abs(float(text.split()[0].replace("−", "-")) - both[cells == k].mean()) < 2e-3
        assert text.endswith("*") == (k >= 2)  # new wordings are sure to differ, others are not


def test_contributions_are_differences_of_contexts(page: Page) -> None:
    assert page.contributions is not None
    values = {row[0]: row for row in page.contributions.table.rows}
    # cz - z: k = 0 against 2, over the three tokens: 2 + 1 + 0.
    assert values["instruction, given the input"][2].startswith("3.0")
    assert values["input, given the instruction"][2].startswith("1.5")
    assert values["both together"][3] == "1.50"


def test_texts_of_the_data_are_only_text(reader: Reader) -> None:
    assert set(reader.tags) & {"img", "iframe", "a", "object", "svg", "form"} == set()
    assert reader.tags.count("script") == 1 and "alert" not in reader.scripts[0]
    assert {name for _, name, _ in reader.attributes} <= ATTRIBUTES
    styles = [value for _, name, value in reader.attributes if name == "style"]
    assert all(re.fullmatch(r"[-\w:;.%]*", value) for value in styles)
    assert "<script>alert(1)</script>" in reader.text  # shown, not run
    assert "{{ 7 * 7 }}" in reader.text and "\u202e" not in reader.text
    assert "\\u202e" in reader.text


def test_nothing_is_loaded(page: Page, reader: Reader) -> None:
    links = [v for _, name, v in reader.attributes if name in ("src", "href", "srcset", "action")]
    assert links == ["data:,"]
    style = (resources.files("instructjax.report") / "templates" / "style.css").read_text("utf-8")
    assert "url(" not in style and "@import" not in style
    policy = next(v for _, name, v in reader.attributes if v.startswith("default-src 'none'"))
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert len(page.to_html()) < 400_000  # of which a text of 100,000 characters is no part


def test_it_can_be_read_without_eyes_or_mouse(reader: Reader) -> None:
    assert reader.tags.count("h1") == 1 and reader.tags.count("main") == 1
    assert ("html", "lang", "en") in reader.attributes
    tables = [a for a in reader.attributes if a[0] == "th" and a[1] == "scope"]
    assert len(tables) == reader.tags.count("th")
    images = [tag for tag, name, value in reader.attributes if name == "role" and value == "img"]
    labels = [value for tag, name, value in reader.attributes if name == "aria-label"]
    assert len(labels) >= len(images) and all(labels)


def luminance(color: str) -> float:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_that_of_wcag_aa() -> None:
    style = (resources.files("instructjax.report") / "templates" / "style.css").read_text("utf-8")
    themes = re.findall(r":root \{([^}]*--z:[^}]*)\}", style)
    assert len(themes) == 2
    for theme in themes:
        colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", theme))
        for ink in ("ink", "muted", "accent", "good", "bad", "unsure"):
            for ground in ("card", "bg"):
                light, dark = sorted((luminance(colors[ink]), luminance(colors[ground])))[::-1]
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_tables_as_markdown_and_latex(page: Page) -> None:
    markdown, latex = page.to_markdown(), page.to_latex()
    assert markdown.startswith(
        "**Generalizes over inputs, not over new wordings of known tasks \\(2 leaks among the "
        "unseen; see Leaks\\): intra"
    )
    assert "<script>" not in markdown and "<img" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"\|.*\|", row) for row in rows)
    assert r"\input{" not in latex and latex.count(r"\begin{table}") == len(page.tables())
    assert escape_markdown("a|b*<i>") == r"a\|b\*&lt;i&gt;"
    assert escape_latex("50% & a_b\\c") == r"50\% \& a\_b\textbackslash{}c"


def test_latex_rows_are_no_options_of_the_row_before() -> None:
    r"""`\\ [x]` and `\midrule [x]` take [x] as a length, `\\ *` the star; -- is a dash."""
    rows = [("[1pt] a", "*"), ("* b", "--all"), ('say "x"', "`''`"), ("c" * 50, "d")]
    latex = make_table("T", ["one", "two"], [], rows).to_latex()
    assert [line for line in latex.splitlines() if line.endswith(r" \\")] == [
        r"one & two \\",
        r"{}[1pt] a & * \\",
        r"{}* b & -{}-all \\",
        r"say {\ttfamily\char34}x{\ttfamily\char34} & "
        r"\textasciigrave{}'{}'\textasciigrave{} \\",
        "c" * 50 + r" & d \\",
    ]
    assert r"\begin{tabular}{p{0.60\linewidth}l}" in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_sets_what_there_is(page: Page, tmp_path: Path) -> None:
    text = page.to_latex()
    text = "".join(c for c in text if not "\u0590" <= c <= "\u05ff")  # pdfLaTeX has no Hebrew
    # Its rules alone: booktabs may not be there.
    rules = "".join(
        rf"\newcommand\{name}{{\hline}}" for name in ("toprule", "midrule", "bottomrule")
    )
    document = rf"\documentclass{{article}}{rules}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "page.tex").write_text(document, "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    errors = [line for line in done.stdout.decode("latin-1").splitlines() if line.startswith("!")]
    assert not errors


def test_markdown_and_latex_say_what_the_page_says(page: Page) -> None:
    markdown, latex = page.to_markdown(), page.to_latex()
    assert page.variance is not None and page.wording is not None and page.models is not None
    assert page.contributions is not None and page.leaks is not None
    assert page.variance.advice and page.variance.plan is not None
    said = [page.numbers, page.wording.note, page.variance.note, page.variance.advice]
    said += [page.contributions.note, page.models.note, page.leaks.note, page.variance.plan.title]
    said += [page.command, "fingerprint", "abc", "seed", *page.more]
    for text in said:
        assert escape_markdown(text) in markdown
        assert escape_latex(text) in latex


@pytest.mark.parametrize(("action", "warned"), [("report", True), ("remove", False)])
def test_leaks_that_are_left_are_in_the_verdict(
    action: str, warned: bool, tuned_rows: list[dict[str, Any]]
) -> None:
    side = {"compared": 50, "leaked": 1500}
    split = {"recipe": {"by": "paraphrase"}, "leaks": {"action": action, "input": side}}
    page = make_page(make_results(tuned_rows, split=split))
    assert ("(1,500 leaks among the unseen; see Leaks)" in page.verdict) == warned
    assert ("(1,500 leaks" in page.to_html().partition("<section")[0]) == warned


def test_in_a_shell_it_is_its_verdict(page: Page) -> None:
    assert repr(page).startswith("Page('generalizes over inputs, not over new wordings")
    assert " ± " in repr(page) and "xa0" not in repr(page)


def test_a_notebook_gets_a_frame_of_its_own(page: Page) -> None:
    frame = page._repr_html_()
    assert frame.count("<iframe") == 1 and 'sandbox="allow-scripts"' in frame
    assert "<script" not in frame


def test_saved_whole_and_not_over_another(page: Page, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert page.save(out) == out and out.read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(UsageError, match="exists already"):
        page.save(out)
    with pytest.raises(UsageError, match="suffix"):
        page.save(tmp_path / "report.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_one_cell_is_enough_for_a_page(tuned_rows: list[dict[str, Any]]) -> None:
    rows = [row for row in tuned_rows if row["cell"] == "seen_c_unseen_z"]
    html = make_page(make_results(rows)).to_html()
    assert html.count("no scores") == 3


def test_without_a_gap_none_is_shown(tuned_rows: list[dict[str, Any]]) -> None:
    page = make_page(
        make_results([row for row in tuned_rows if row["cell"] == "unseen_c_unseen_z"])
    )
    assert not page.gaps
    for text in (page.to_html(), page.to_markdown(), page.to_latex()):
        assert "No gap can be measured" in text
    assert "| gap |" not in page.to_markdown()
    assert "Differences of the grid" not in page.to_html()


def test_rows_without_tasks_or_with_one_instruction_an_input(
    tuned_rows: list[dict[str, Any]],
) -> None:
    rows = [row | {"task": None, "input_hash": row["id"]} for row in tuned_rows]
    page = make_page(make_results(rows))
    assert page.wording is None and page.variance is not None
    assert [part.kind for part in page.variance.parts] == ["c", "z"]


def test_texts_are_cut_and_made_visible(evil: str) -> None:
    assert len(shorten("x" * 10**7)) == 240
    assert "\u202e" not in shorten(evil) and "\x07" not in shorten(evil)


def test_figures(page: Page, tmp_path: Path) -> None:
    written = page.save_figures(tmp_path)
    names = {path.name for path in written}
    assert names == {
        f"{n}.{k}" for n in ("grid", "gaps", "wording", "variance") for k in ("svg", "png")
    }
    again = page.save_figures(tmp_path / "again")
    for one, other in zip(written, again, strict=True):
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 2_000


def test_without_matplotlib_it_says_what_to_install(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r'pip install "instructjax\[report\]"'):
        page.save_figures(tmp_path)


def test_gaps_say_what_they_were_measured_on(tuned_rows: list[dict[str, Any]]) -> None:
    rows = [row for row in tuned_rows if row["cell"] != "unseen_c_seen_z"]
    notes = {gap.label: gap.note for gap in make_page(make_results(rows)).gaps}
    assert notes["wording gap"] == "new wordings, unseen inputs: m1\u00a0−\u00a0m3"
    assert notes["intra-task gap"].startswith("new inputs, known instructions: ")


def test_tasks_are_listed_where_they_are_not_the_instructions_again(
    tuned_rows: list[dict[str, Any]],
) -> None:
    def titles(rows: list[dict[str, Any]]) -> list[str]:
        return [table.title for table in make_page(make_results(rows)).worst]

    assert "Tasks" in titles(tuned_rows)
    alone = [row | {"task": row["instruction_hash"]} for row in tuned_rows]
    assert titles(alone) == ["Instructions", "Inputs"]


def test_shown_responses_are_long_and_of_different_instructions() -> None:
    def respond(id: str, tokens: int, adds: float) -> Response:
        log_probs = np.zeros((4, tokens))
        log_probs[2] = -adds
        return Response(id=id, candidate=0, token_ids=np.arange(tokens), log_probs=log_probs)

    responses = [
        respond(f"{c}{k}", 1 + 5 * (k % 2), c + k / 10) for c in range(9) for k in range(4)
    ]
    shown = choose_shown(responses, lambda id: (id[0], id), limit=6)
    assert [one.id for one in shown] == ["83", "73", "63", "21", "11", "01"]
    of_one = choose_shown(responses[:4], lambda id: ("c", id), limit=6)
    assert [one.id for one in of_one] == ["03", "01"]
