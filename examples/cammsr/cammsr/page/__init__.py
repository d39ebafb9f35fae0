"""Pages of HTML that say what a run or a comparison found, each a file that needs no other."""

from cammsr.page.comparison_page import comparison_page
from cammsr.page.run_page import write_report

__all__ = ["comparison_page", "write_report"]
