"""Evaluate: what a trained model is good at, and what it rests on.

    python examples/cammsr/evaluate.py RUN
    python examples/cammsr/evaluate.py RUN --model sasrec --by category cold
    python examples/cammsr/evaluate.py RUN --curves

RUN is the folder that ``train.py`` left. The tables are also written there, as ``evaluation.json``,
and shown on its page, ``report.html``.
"""

from __future__ import annotations

import sys

from cammsr.evaluate_cli import examine, parse_request
from cammsr.page import write_report

if __name__ == "__main__":
    try:
        request = parse_request()
        examine(request)
        print(f"the page of the run: {write_report(request.run, request.data)}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
