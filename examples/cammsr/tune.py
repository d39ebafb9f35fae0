"""Search the settings of models on validation; the test split is not looked at.

    python examples/cammsr/tune.py --data FOLDER --models '[cammsr,sasrec]' --trials 20
    python examples/cammsr/tune.py --data FOLDER --space my-space.yaml

Every model gets the same number of trials. ``configs/space.yaml`` is what is searched by default,
and what is found is written as a file for ``train.py --config``. Needs ``pip install optuna``.
"""

from __future__ import annotations

import sys

from cammsr.cli import parse_tuning
from cammsr.tuning import tune

if __name__ == "__main__":
    try:
        tune(*parse_tuning())
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}. Install it: python -m pip install optuna")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the trials are in the run folder")
