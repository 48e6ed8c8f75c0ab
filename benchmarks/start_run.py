"""What a run's start costs the training thread: all pieces that a run holds unasked, beside none of them.

Each figure is from a fresh interpreter in the repository that it is started in, offline: delivery's start, which both
have, is left out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

TRIALS = 5
CHILD = """
import json, sys, time
from tracking_callbacks import MLflowTracker
everything, root = json.loads(sys.argv[1])
tracker = MLflowTracker(offline=True, journal_root=root, log_everything=everything)
times = [time.perf_counter()]
run = tracker.start_run()
times.append(time.perf_counter())
run.log_metrics({"loss": 1.0}, step=1)
times.append(time.perf_counter())
time.sleep(1.0)
times.append(time.perf_counter())
run.end()
times.append(time.perf_counter())
print(json.dumps([1000 * (after - before) for before, after in zip(times, times[1:])]))
"""


def main() -> None:
    """Print the medians, in milliseconds."""
    print(f"{'ms, median of ' + str(TRIALS):24}{'start_run':>12}{'first log':>12}{'end':>12}")
    for everything in (False, True):
        with tempfile.TemporaryDirectory() as root:
            rows = [
                json.loads(
                    subprocess.run(
                        [sys.executable, "-c", CHILD, json.dumps([everything, root])],
                        check=True, capture_output=True, text=True,
                    ).stdout
                )
                for _ in range(TRIALS)
            ]  # fmt: skip
        start, first, _, end = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"log_everything={everything!s:9}{start:12.1f}{first:12.3f}{end:12.1f}")


if __name__ == "__main__":
    main()
