"""The page in a real browser, where chromium is found: nothing goes wrong, loads, or overflows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from instructjax.report.page import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
]

# Loads the page in a frame of a phone's width, plays with it, and writes what it saw.
PROBE = """<!doctype html><meta charset="utf-8"><title>probe</title>
<iframe id="f" style="width:%(width)dpx;height:800px;border:0"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("f");
frame.onload = () => {
  const d = frame.contentDocument, w = frame.contentWindow;
  const found = { width: d.documentElement.scrollWidth, inner: w.innerWidth };
  found.wide = [...d.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.right > w.innerWidth + 1 && !e.closest(".scroll") && box.width > 0;
  }).map((e) => e.tagName + "." + e.className).slice(0, 5);
  const token = d.querySelector(".tokens span");
  token.click();
  found.detail = d.querySelector(".detail").textContent;
  const before = token.style.getPropertyValue("--s");
  d.querySelectorAll("input[name=layer]")[2].click();
  found.repainted = before !== token.style.getPropertyValue("--s");
  const tokens = d.querySelector(".tokens");
  tokens.dispatchEvent(new w.KeyboardEvent("keydown", { key: "ArrowRight" }));
  found.moved = tokens.children[2].classList.contains("on") && !token.classList.contains("on");
  const over = tokens.children[4];
  over.dispatchEvent(new w.PointerEvent("pointerover", { bubbles: true }));
  found.hovered = d.querySelector(".detail").textContent;
  found.small = [...d.querySelectorAll("body *")].filter((e) =>
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) &&
    parseFloat(w.getComputedStyle(e).fontSize) < 11).map((e) => e.tagName + "." + e.className);
  const boxes = [...d.querySelectorAll(".track-row")].map((row) =>
    [row.querySelector(".label"), row.querySelector(".value")].map((e) => {
      const range = d.createRange();
      range.selectNodeContents(e);
      return range.getBoundingClientRect();
    }));
  found.overlaps = boxes.filter(([a, b]) => a.right > b.left + 1).length;
  found.scrolls = [...d.querySelectorAll(".scroll")].filter((e) =>
    e.scrollWidth > e.clientWidth + 1).length;
  found.height = d.documentElement.scrollHeight;
  found.alerts = w.alerts || 0;
  found.loaded = w.performance.getEntriesByType("resource").map((e) => e.name);
  document.getElementById("out").textContent = JSON.stringify(found);
};
frame.srcdoc = %(page)s;
</script>"""


def browse(folder: Path, *words: str) -> tuple[str, str]:
    """What the browser prints and says for an address and options."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={folder / 'profile'}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(page: Page, tmp_path: Path, width: int) -> None:
    # The frame shares the probe's origin, so its own policy is what is tested; it is kept.
    text = json.dumps(page.to_html()).replace("</", "<\\/").replace("<!--", "<\\!--")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE % {"width": width, "page": text}, encoding="utf-8")
    words = ("--virtual-time-budget=8000", "--window-size=1400,1000", "--dump-dom", probe.as_uri())
    dom, said = browse(tmp_path, *words)
    seen = re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)
    assert seen is not None and seen[1], said
    found = json.loads(html.unescape(seen[1]))
    assert found["width"] <= found["inner"] == width and found["wide"] == []
    assert "log p" in found["detail"] and found["repainted"] and found["moved"]
    # What is pointed at is told under the tokens; nothing is tiny, nothing lies over another.
    assert "adds: instruction" in found["hovered"] and found["hovered"] != found["detail"]
    assert found["small"] == [] and found["overlaps"] == 0
    assert found["scrolls"] == 0 and found["height"] > 2_000  # the whole page, not its top
    assert found["alerts"] == 0 and found["loaded"] == []
    assert "CONSOLE" not in said, said


def test_it_prints(page: Page, tmp_path: Path) -> None:
    saved, pdf = page.save(tmp_path / "report.html"), tmp_path / "report.pdf"
    browse(tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", saved.as_uri())
    data = pdf.read_bytes()
    assert data[:5] == b"%PDF-" and len(data) > 10_000
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20
    if (reader := shutil.which("pdftotext")) is not None:
        words = subprocess.run([reader, pdf, "-"], capture_output=True, text=True, check=True)
        # What a person would have to open is open on paper; what only a pointer does is gone.
        assert "fingerprint" in words.stdout and "SHA-256" in words.stdout
        assert "Point at a token" not in words.stdout
