"""Counting, showing and refusing unreadable rows."""

import pytest

from cammsr.raw.faults import Faults
from cammsr.validate import DatasetError


def test_few_faults_are_shown_and_let_pass() -> None:
    faults = Faults("a.json", 0.5, seen=8)
    for where in range(4):
        faults.add(where, "not JSON")
    faults.check()
    assert str(faults) == (
        "a.json: 8 lines, 4 dropped as unreadable "
        "(line 0: not JSON; line 1: not JSON; line 2: not JSON)"
    )


def test_too_many_are_refused_with_both_shares() -> None:
    faults = Faults("a.json", 0.1, "record", seen=8)
    faults.add(3, "no asin")
    message = r"a.json: 1 of 8 records \(12.50%\).*limit of 10.00%: record 3: no asin.*--corrupt_l"
    with pytest.raises(DatasetError, match=message):
        faults.check()


def test_a_hopeless_file_is_refused_before_its_end() -> None:
    faults = Faults("a.json", 0.1, seen=2000)
    for where in range(1000):
        faults.add(where, "not JSON")
    with pytest.raises(DatasetError, match=r"1,001 of 2,000"):
        faults.add(1000, "not JSON")


def test_no_fault_at_a_limit_of_zero_is_fine() -> None:
    faults = Faults("a.json", 0.0, seen=5)
    faults.check()
    faults.add(3, "not JSON")  # one is too many
    with pytest.raises(DatasetError, match=r"a\.json"):
        faults.check()
