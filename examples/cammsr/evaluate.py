"""Evaluate: what a trained model is good at, and what it rests on.

    python examples/cammsr/evaluate.py RUN
    python examples/cammsr/evaluate.py RUN --model sasrec --by category cold
    python examples/cammsr/evaluate.py RUN --curves

RUN is the folder that ``train.py`` left. The tables are also written there, as ``evaluation.json``.
"""

from __future__ import annotations

import sys

from cammsr.dataset import DatasetError
from cammsr.evaluate_cli import examine, parse_request
from cammsr.saved import ServingError

if __name__ == "__main__":
    try:
        examine(parse_request())
    except (DatasetError, ServingError, OSError) as error:
        sys.exit(f"error: {error}")
