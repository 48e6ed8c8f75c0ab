"""What the best of several Sharpe ratios owes to luck. Pure, and without numpy, because delivery computes it too.

Source: D. H. Bailey and M. López de Prado, "The Deflated Sharpe Ratio", The Journal of Portfolio Management 40 (5),
2014.
"""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["expected_maximum_sharpe", "probability_above"]

_EULER_MASCHERONI = 0.5772156649015329
_NORMAL = NormalDist()


def expected_maximum_sharpe(trials: int, deviation: float) -> float:
    """Return the Sharpe ratio that the best of `trials` without any skill is expected to have.

    ``deviation * ((1 - γ) * Φ⁻¹(1 - 1 / N) + γ * Φ⁻¹(1 - 1 / (N * e)))`` with the Euler-Mascheroni constant γ (Bailey
    and López de Prado 2014, equation 1). It is 0.0 for one trial.

    Args:
        trials: Number N of independent trials; dependent ones, such as seeds of one configuration, count as fewer.
        deviation: Standard deviation of the trials' Sharpe ratios, in the unit of the result.

    Raises:
        ValueError: `trials` is less than 1, or `deviation` is negative.
    """
    if trials < 1 or deviation < 0:
        raise ValueError(f"expected at least one trial and no negative deviation, got {trials} and {deviation}")
    if trials == 1:
        return 0.0
    first = _NORMAL.inv_cdf(1.0 - 1.0 / trials)
    second = _NORMAL.inv_cdf(1.0 - 1.0 / (trials * math.e))
    return deviation * ((1.0 - _EULER_MASCHERONI) * first + _EULER_MASCHERONI * second)


def probability_above(reference: float, ratio: float, error: float) -> float:
    """Return the probability that a true Sharpe ratio is above `reference`, given its estimate and standard error."""
    return _NORMAL.cdf((ratio - reference) / error)
