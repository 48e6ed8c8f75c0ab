"""The rows of the comparison, by their names on the command line."""

from benchmarks.comparison import Row
from benchmarks.rows import (
    artifacts,
    delivery,
    end_of_training,
    freshness,
    growth,
    idle,
    log_metrics,
    logging_calls,
    plugin,
    ppo_training,
    replay,
    start,
    transformers_training,
)

__all__ = ["ROWS"]

ROWS: dict[str, Row] = {
    module.ROW.name: module.ROW
    for module in (
        log_metrics,
        transformers_training,
        ppo_training,
        end_of_training,
        delivery,
        start,
        growth,
        freshness,
        artifacts,
        replay,
        logging_calls,
        idle,
        plugin,
    )
}
