"""The picture in the README: `instructjax demo` as a terminal shows it.

python experiments/figures/make_demo.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from instructjax.cli.demo import Demo
from instructjax.cli.demo_run import run_demo


def main() -> None:
    console = Console(
        record=True,
        width=88,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    run_demo(Demo(), console)
    svg = console.export_svg(title="instructjax demo")
    # The picture must not fetch fonts from anywhere.
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg)
    Path(__file__).with_name("demo.svg").write_text(svg)


if __name__ == "__main__":
    main()
