"""What one ``run.log_metrics`` call costs the training, and that every point arrives once.

    make bench

Logs 5 metrics in each of 20 000 calls to a SQLite store in a temporary folder, prints the p50 and p99 of a call, then
waits for delivery and counts the points in the store.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tracking_callbacks import MLflowTracker

METRICS = ("loss", "accuracy", "f1", "grad_norm", "learning_rate")


def time_calls(run, calls: int) -> list[int]:
    """Return the nanoseconds of each call, sorted."""
    nanoseconds = []
    for step in range(calls):
        metrics = {name: (step + offset) / 7 for offset, name in enumerate(METRICS)}
        began = time.perf_counter_ns()
        run.log_metrics(metrics, step=step)
        nanoseconds.append(time.perf_counter_ns() - began)
    return sorted(nanoseconds)


def count_points(uri: str, run_id: str, calls: int) -> tuple[int, int]:
    """Return how many points are in the store, and how many of them are as they were logged, once each."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    found = right = 0
    for offset, name in enumerate(METRICS):
        history = [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        found += len(history)
        right += len(set(history) & {(step, (step + offset) / 7) for step in range(calls)})
    return found, right


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    calls = parser.parse_args().calls

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        tracker = MLflowTracker(uri, "benchmark", journal_root=Path(folder, "journal"))
        with tracker.start_run() as run:
            timed = time_calls(run, calls)
        journal = sum(path.stat().st_size for path in Path(folder, "journal").rglob("*.journal"))
        began = time.perf_counter()
        report = run.flush(600)
        seconds = time.perf_counter() - began
        found, right = count_points(uri, run.run_id or "", calls)
    print(f"log_metrics, {len(METRICS)} metrics, {calls} calls:")
    print(f"  p50 {timed[calls // 2] / 1000:.1f} µs, p99 {timed[calls * 99 // 100] / 1000:.1f} µs")
    print(f"  journal {journal / calls:.0f} bytes a call")
    print(f"  delivered {report.delivered} in {seconds:.1f} s after the end; rejected {report.rejected}")
    print(f"  in the store: {found} points, {right} of the {calls * len(METRICS)} logged, once each")


if __name__ == "__main__":
    main()
