"""A short storm over a real region; `./regis bench chaos` has the long one."""

from pathlib import Path

import pytest

from tests.contract.chaos import Storm, Weather
from tests.contract.region import region


@pytest.mark.timeout(1800)
def test_in_a_storm_the_ledger_is_true_and_nothing_is_lost_doubled_or_altered(tmp_path: Path) -> None:
    weather = Weather(seconds=60, count=300, flap=5, kills=(4, 10), full_disks=1, full_seconds=8)
    with region(tmp_path) as made:
        storm = Storm(made, weather)
        try:
            storm.start()
            storm.rage()
            try:
                storm.settle(600)
            except (AssertionError, TimeoutError) as error:
                pytest.fail(f"{error}\n{made.last_words()}")
        finally:
            storm.stop()
    happened = storm.account.happened
    assert storm.account.looks > 5
    assert happened["line cut"] > 2
    assert any(name.startswith("killed") for name in happened)
    assert all(storm.meddler.done[deed] for deed in ("answer lost", "doubled", "late"))
    for missing in storm.account.left_out:
        print(f"left out: {missing}")
