"""What a person reads: one page, tables, figures, and the same displays in a notebook."""

from instructjax.report.page import Page, make_page
from instructjax.report.results import Results, read_results

__all__ = ["Page", "Results", "make_page", "read_results"]
