"""Rows that cannot be read: counted, shown, and refused when there are too many."""

from __future__ import annotations

from dataclasses import dataclass, field

from cammsr.validate import DatasetError

__all__ = ["Faults"]

SHOWN = 3
PATIENCE = 1000  # so many faults are waited for before their share is judged midway


@dataclass
class Faults:
    """The faults of one source.

    Args:
        source: what the rows come from, as a person would name it.
        limit: the largest share of faulty rows that is let pass.
        unit: what a row is called, ``"line"``, ``"row"`` or ``"record"``.
    """

    source: str
    limit: float
    unit: str = "line"
    seen: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: int, why: str, count: int = 1) -> None:
        """Count a fault; a share far beyond the limit is refused before all rows are read."""
        self.count += count
        if len(self.first) < SHOWN:
            self.first.append(f"{self.unit} {where}: {why}")
        if self.count > PATIENCE:
            self.check()

    def check(self) -> None:
        """Refuse the source if too many rows are faulty.

        Raises:
            DatasetError: naming the first of them.
        """
        if self.count > self.limit * self.seen:
            share = self.count / max(self.seen, 1)
            raise DatasetError(
                f"{self.source}: {self.count:,} of {self.seen:,} {self.unit}s ({share:.2%}) cannot "
                f"be read, more than the limit of {self.limit:.2%}: {'; '.join(self.first)}. "
                "Fetch or repair the file, or raise --corrupt_limit."
            )

    def __str__(self) -> str:
        """One line for a person."""
        said = f"{self.source}: {self.seen:,} {self.unit}s"
        if self.count:
            said += f", {self.count:,} dropped as unreadable ({'; '.join(self.first)})"
        return said
