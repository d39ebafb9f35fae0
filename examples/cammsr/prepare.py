"""Turn raw data into a dataset folder that the recommender trains on.

    python examples/cammsr/prepare.py amazon2014 --category Toys --output data/toys
    python examples/cammsr/prepare.py amazon2023 --category All_Beauty --output data/beauty
    python examples/cammsr/prepare.py movielens --source ml-1m --output data/ml-1m
    python examples/cammsr/prepare.py table --interactions_file shop.csv --output data/shop

``PREPARE.md`` describes every format, and ``prepare.py KIND --help`` every setting.
"""

from __future__ import annotations

import sys

from cammsr.dataset import DatasetError
from cammsr.raw.command import parse
from cammsr.raw.prepare import prepare

if __name__ == "__main__":
    try:
        prepare(*parse())
    except (DatasetError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; nothing was written, and what was finished is in the cache")
