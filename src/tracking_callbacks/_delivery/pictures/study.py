"""Optuna's own pictures of a study: the history of its values, the front of several, what its params contribute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["study_figures"]

_MOST_TRIALS = 2_000  # that importances are computed from; their cost grows with the number


def study_figures(content: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the pictures by name; those that the trials do not suffice for are left out.

    Args:
        content: The ``directions`` of a study and its ``trials``, as `OptunaCallback` logs them.
    """
    import matplotlib as mpl
    import optuna
    from optuna.visualization import matplotlib as plots

    mpl.use("agg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    complete = [trial for trial in content["trials"] if trial["state"] == "COMPLETE"]
    # With the others too, because a study counts its trials.
    study = optuna.create_study(directions=content["directions"])
    study.add_trials([_trial(one) for one in content["trials"]])
    objectives = len(content["directions"])
    if not complete:
        return {}
    axes: dict[str, Any] = {}
    if objectives == 1:
        axes["optimization_history"] = plots.plot_optimization_history(study)
    elif objectives <= 3:
        axes["pareto_front"] = plots.plot_pareto_front(study)
    varied = {name for trial in complete for name in trial["params"]}
    if objectives == 1 and varied and len({trial["values"][0] for trial in complete}) > 1:
        latest = optuna.create_study(directions=content["directions"])
        latest.add_trials([_trial(one) for one in complete[-_MOST_TRIALS:]])
        axes["param_importances"] = plots.plot_param_importances(latest)
    figures: dict[str, Figure] = {name: one.figure for name, one in axes.items()}
    for figure in figures.values():
        figure.set_layout_engine("tight")
    return figures


def _trial(content: Mapping[str, Any]) -> Any:
    import optuna
    from optuna.distributions import json_to_distribution

    if content["state"] != "COMPLETE":
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)
    return optuna.trial.create_trial(
        values=[float(value) for value in content["values"]],
        params=content["params"],
        distributions={name: json_to_distribution(text) for name, text in content["distributions"].items()},
    )
