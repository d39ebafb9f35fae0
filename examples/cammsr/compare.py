"""Train several models over several seeds and compare them pair by pair.

    python examples/cammsr/compare.py --seeds 5
    python examples/cammsr/compare.py --data FOLDER --models '[cammsr,sasrec]' --seeds 3
    python examples/cammsr/compare.py --data FOLDER --vary model.num_experts=1,2,4,8,16
    python examples/cammsr/compare.py --data FOLDER --models '[cammsr,sasrec]' --tuned SEARCH
    python examples/cammsr/compare.py --runs '[RUN,RUN,RUN]'

Prints means and spreads over the seeds, and the paired difference of every model to the first one;
writes the table for Markdown and LaTeX too, and every metric of every seed. ``--tuned`` takes the
folder of ``tune.py``, and ``--runs`` joins what was trained apart, or before a comparison stopped.
A seed draws the weights, the batches and, without ``--data``, the generated catalogue itself.
"""

from __future__ import annotations

import sys

from cammsr.compare_cli import parse_comparison
from cammsr.comparison import compare, join

if __name__ == "__main__":
    request = parse_comparison()
    try:
        if request.runs:
            join(request.runs, request.metric, request.models)
        else:
            compare(request.rows, request.seeds, request.metric)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; what was finished is in the run folder")
