"""Train CAMMSR beside its floors and baselines, and say where it stands.

    python examples/cammsr/train.py
    python examples/cammsr/train.py --config examples/cammsr/configs/amazon-instruments.yaml
    python examples/cammsr/train.py --data FOLDER --models '[cammsr]' --print_config

Without ``--data`` a catalogue is generated whose structure is known. ``DATASET.md`` describes the
folder that ``--data`` takes.
"""

from __future__ import annotations

import os

# Large tensors on huge pages: fewer page faults on the CPU. Read by torch when it is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from cammsr.cli import parse
from cammsr.run import run

if __name__ == "__main__":
    run(*parse())
