"""Train CAMMSR beside its floors and baselines, and say where it stands.

    python examples/cammsr/train.py
    python examples/cammsr/train.py --data FOLDER
    python examples/cammsr/train.py --data FOLDER --models '[cammsr]' --model.dim 32 --print_config
    python examples/cammsr/train.py --resume RUN

Without ``--data`` a catalogue is generated whose structure is known. ``DATASET.md`` describes the
folder that ``--data`` takes, and ``--help`` every setting.
"""

from __future__ import annotations

import sys

from cammsr.cli import parse
from cammsr.run import run

if __name__ == "__main__":
    try:
        run(*parse())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # run() has said how to go on
