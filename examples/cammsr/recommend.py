"""Recommend: the best items for a user or for a typed history, and what speaks for each.

    python examples/cammsr/recommend.py RUN --user 17
    python examples/cammsr/recommend.py RUN --history "dark bowl 108; pale chair 96" -k 5
    python examples/cammsr/recommend.py RUN --user 17 --model sasrec --seen

RUN is the folder that ``train.py`` left. Items are given by their id in the dataset folder or by a
part of their title, the latest last.
"""

from __future__ import annotations

import sys

from cammsr.recommend_cli import answer, parse_question

if __name__ == "__main__":
    try:
        answer(parse_question())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
