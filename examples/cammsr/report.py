"""Write the page of a run anew: ``report.html``, all that the run folder knows.

    python examples/cammsr/report.py RUN
    python examples/cammsr/report.py RUN --data FOLDER

RUN is the folder that ``train.py`` left. ``train.py`` and ``evaluate.py`` write the page too.
"""

from __future__ import annotations

import sys

from cammsr.cli import parse_report
from cammsr.page import write_report

if __name__ == "__main__":
    try:
        print(write_report(*parse_report()))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
