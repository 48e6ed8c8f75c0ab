"""How much a policy's decision depends on each feature of its observations.

This is permutation importance (L. Breiman, "Random Forests", Machine Learning 45 (1), 2001) with the policy's own
decision in place of a loss: the values of one feature are exchanged between observations, and the change of the action
distribution is measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from tracking_callbacks._episodes.market_log import log_importance
from tracking_callbacks._runs.run import Run
from tracking_callbacks._writing.guard import never_in_the_way
from tracking_callbacks.sb3.environments import names_of_features

__all__ = ["ObservationSample", "feature_names", "log_feature_importance", "permutation_importance"]

logger = logging.getLogger(__name__)

_MOST_OBSERVATIONS = 2_000
_MOST_FEATURES = 2_000
_SECONDS = 2.0
_REPEATS = 5

Decision = Callable[[NDArray[Any]], NDArray[np.float64]]


class ObservationSample:
    """At most two thousand observations, spread evenly over those that were added."""

    def __init__(self) -> None:
        self._kept: list[NDArray[Any]] = []
        self._count = 0
        self._stride = 1
        self._added = 0

    def add(self, observations: Any) -> None:
        """Add what the policy saw in one step of all environments; dicts are left out, and so are images."""
        if not isinstance(observations, np.ndarray) or not 2 <= observations.ndim <= 3:
            return
        if self._added % self._stride == 0:
            self._kept.append(observations.copy())
            self._count += len(observations)
            if self._count > _MOST_OBSERVATIONS and len(self._kept) > 1:
                self._kept = self._kept[::2]
                self._count = sum(map(len, self._kept))
                self._stride *= 2
        self._added += 1

    def taken(self) -> NDArray[Any] | None:
        """Return the observations, shape (n, *observation shape); None if there are none."""
        return np.concatenate(self._kept)[:_MOST_OBSERVATIONS] if self._kept else None


@never_in_the_way
def log_feature_importance(run: Run, place: str, model: BaseAlgorithm, observations: NDArray[Any], env: VecEnv) -> None:
    """Log how much the agent's decision depends on each feature, if the run records that.

    Args:
        run: The run.
        place: Folder of the evaluation that the observations are from.
        model: The agent.
        observations: What its policy sees, shape (n, *observation shape).
        env: Knows the names of the features, or does not.
    """

    def write() -> None:
        changes = permutation_importance(model, observations)
        if changes is None:
            logger.info("the run goes on without feature importance: the observations are too large or too few")
            return
        names = feature_names(names_of_features(env), observations.shape[1:])
        log_importance(run, place, dict(zip(names, changes.tolist(), strict=True)))

    run.record("importance", write)


def permutation_importance(
    model: BaseAlgorithm, observations: NDArray[Any], *, seed: int = 0, seconds: float = _SECONDS
) -> NDArray[np.float64] | None:
    """Return how much the decision changes on average when one feature is exchanged between observations.

    For discrete actions that is the total variation distance of the two distributions, from 0.0 (the feature is
    ignored) to 1.0; for continuous ones the distance of the two mean actions, each component as a share of its range.
    It is the mean of up to five permutations, fewer if the time is up.

    Args:
        model: The agent.
        observations: What its policy sees, normalized as in training, shape (n, *observation shape).
        seed: Of the permutations.
        seconds: Time after which no feature is permuted again.

    Returns:
        Shape (features,), in the order of the flattened observation; None if there is too little or too much of it, or
        if the time did not suffice for one permutation of each feature.
    """
    flat = observations.reshape(len(observations), -1)
    if len(flat) < 2 or not 1 <= flat.shape[1] <= _MOST_FEATURES:
        return None
    random, deadline = np.random.default_rng(seed), time.monotonic() + seconds
    decide = _decision_of(model)
    before = decide(observations)
    changes: NDArray[np.float64] = np.zeros(flat.shape[1])
    for repeat in range(_REPEATS):
        now = np.zeros_like(changes)
        for feature in range(flat.shape[1]):
            if time.monotonic() > deadline:
                return changes / repeat if repeat else None
            changed = flat.copy()
            changed[:, feature] = random.permutation(changed[:, feature])
            after = decide(changed.reshape(observations.shape))
            now[feature] = np.abs(after - before).sum(axis=1).mean()
        changes += now
    return changes / _REPEATS


def feature_names(given: Sequence[Any] | None, shape: tuple[int, ...]) -> list[str]:
    """Return a name for each feature of an observation, in its flattened order.

    Args:
        given: Names that the environment has, of all features or of those of one row of a window; None if it has none.
        shape: Shape of an observation: (features,), or (rows, features) of a window, whose last row is the newest.
    """
    names = [str(name) for name in given] if given is not None else []
    size = int(np.prod(shape))
    if len(names) == size:
        return names
    if len(shape) == 1:
        return [f"feature {number}" for number in range(size)]
    rows, columns = shape[0], size // shape[0]
    if len(names) != columns:
        names = [f"feature {number}" for number in range(columns)]
    return [f"{name}, {rows - 1 - row} back" if row < rows - 1 else name for row in range(rows) for name in names]


def _decision_of(model: BaseAlgorithm) -> Decision:
    """Return what maps observations to numbers whose absolute differences add up to the distance of two decisions."""
    policy: Any = model.policy

    def decide(observations: NDArray[Any]) -> NDArray[np.float64]:
        with torch.no_grad():
            tensor, _ = policy.obs_to_tensor(observations)
            if hasattr(policy, "q_net"):
                return _one_hot(policy.q_net(tensor).argmax(dim=1).cpu().numpy(), policy.action_space.n) / 2.0
            if not hasattr(policy, "get_distribution") or hasattr(policy, "lstm_actor"):
                actions, _ = policy.predict(observations, deterministic=True)
                return _shares(np.asarray(actions, dtype=np.float64), model.action_space)
            distribution = policy.get_distribution(tensor).distribution
            parts = distribution if isinstance(distribution, list) else [distribution]
            if all(hasattr(part, "probs") for part in parts):
                numbers = np.concatenate(
                    [part.probs.cpu().numpy().reshape(len(observations), -1) for part in parts], axis=1
                )
                halves = 2.0 if isinstance(parts[0], torch.distributions.Categorical) else 1.0
                return np.asarray(numbers, dtype=np.float64) / halves / len(parts)
            means = distribution.mean.cpu().numpy()
            return _shares(np.asarray(means, dtype=np.float64), model.action_space)

    return decide


def _one_hot(actions: NDArray[Any], count: int) -> NDArray[np.float64]:
    chosen: NDArray[np.float64] = np.eye(count)[actions]
    return chosen


def _shares(actions: NDArray[np.float64], space: Any) -> NDArray[np.float64]:
    """Return actions as shares of the range of each component, where it has one, shape (n, components)."""
    flat = actions.reshape(len(actions), -1)
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None:
        return _one_hot(flat[:, 0].astype(int), int(getattr(space, "n", flat.max() + 1))) / 2.0
    span = (np.asarray(high, dtype=np.float64) - low).ravel()
    return flat / np.where(np.isfinite(span) & (span > 0), span, 1.0) / flat.shape[1]
