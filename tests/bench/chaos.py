"""Ten minutes of everything going wrong between a clinic and the archive, over 5,000 instances.

The line is cut for five seconds in every ten, every process of both ends and the centre is killed at random, the
archive's disk fills to the last byte twice, the clinic's clock is a day fast and then a day slow, receipts and requests
are lost, doubled, late, damaged, or answered with old receipts. All along the clinic's ledger is held against what the
archive holds at that moment. It ends with an error when anything was lost, doubled, altered or told wrongly.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.bench._peers import ROOT
from tests.bench._servers import servers
from tests.bench._usage import load
from tests.contract.chaos import Storm, Weather
from tests.contract.region import region


def run(weather: Weather, settle: float, scratch: Path) -> None:
    """Let it rage, settle, and say what was found. Raises: AssertionError, TimeoutError."""
    scratch.chmod(0o755)
    with servers(scratch), region(scratch / "region") as made:
        storm = Storm(made, weather)
        account = storm.account
        try:
            storm.start()
            print(f"{weather.count} instances in a storm of {weather.seconds / 60:g} minutes; {load()}", flush=True)
            for missing in account.left_out:
                print(f"left out: {missing}", flush=True)
            storm.rage(lambda text: print(f"  {text}", flush=True))
            print("the storm is over", flush=True)
            storm.settle(settle)
        except (AssertionError, TimeoutError):
            print(f"{made.last_words()}\n{account}", file=sys.stderr)
            raise
        finally:
            storm.stop()
    print(f"\nhappened: {', '.join(f'{what} {times}x' for what, times in sorted(account.happened.items()))}")
    print(f"on the way: {', '.join(f'{what} {times}x' for what, times in sorted(storm.meddler.done.items()))}")
    print(f"the ledger was held against the archive {account.looks} times and always true", end=" ")
    print(f"({account.skipped} times the disk was too full or a process too dead to look)")
    print(f"all receipted {account.settled_after:.0f} s after the storm")
    print(f"0 lost, 0 doubled, 0 altered of {weather.count}")


def main() -> None:
    """Parse, rage, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--count", type=int, default=5000, help="instances, small ones")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000, help="of all dice")
    parser.add_argument("--settle", type=float, default=600, help="seconds it may take to come to rest")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder to work in")
    chosen = parser.parse_args()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    weather = Weather(seconds=chosen.minutes * 60, count=chosen.count, seed=chosen.seed)
    print(f"seed {chosen.seed}")
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=chosen.dir) as folder:
        try:
            run(weather, chosen.settle, Path(folder))
        except (AssertionError, TimeoutError) as error:
            sys.exit(f"regis bench chaos: {error}")


if __name__ == "__main__":
    main()
