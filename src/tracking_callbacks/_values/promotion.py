"""When a newly registered version takes over an alias such as ``champion``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tracking_callbacks._values.checking import check_fields, struct_from
from tracking_callbacks._values.names import check_aliases, safe_name
from tracking_callbacks.errors import ConfigError

__all__ = ["Promotion", "is_greater_better"]

# Words in names of metrics: those of scikit-learn's and evaluate's, and of this package's statistics.
_LOWER = re.compile(
    r"loss|error|err|mae|mse|rmse|mape|perplexity|ppl|wer|cer|ter|brier|ece|nll|deviance|hamming|latency"
)
_HIGHER = re.compile(
    r"accuracy|acc|f1|precision|recall|auc|auroc|roc|ap|map|ndcg|mrr|mcc|matthews|kappa|iou|dice|jaccard|r2|bleu|rouge"
    r"|meteor|chrf|pearson|spearman|reward|return|sharpe|sortino|calmar|success|score"
)

Name = Annotated[str, Meta(pattern=r"\S", description="a text that is not empty")]


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let an alias move to the new version only if a figure of it is better than that of the version that holds it.

    Delivery compares the figures once the version is registered: the new one's at the step of its model, the other's as
    it was compared before, both measured on the same data. Where one of them or the data is unknown or differs, the
    alias stays where it is; the version's tags and description say what was compared.

    Attributes:
        alias: The alias. It goes to the new version if no version holds it.
        by: Name of the metric that is compared, as the run has it: ``"eval/f1"``, ``"eval/sharpe_ratio"``.
        greater_is_better: Whether the higher value is the better one; by default the name of the metric tells.
        minimum_gain: How much better the new version must be at least, in units of the metric.
        challenger: Alias for the version that loses the comparison; None gives it none.
        data: Your own name for the data that the metric is measured on: versions with the same name are compared. By
            default it is the digest of the evaluation's dataset, or what makes the environment.

    Raises:
        ConfigError: A value cannot be used, or `greater_is_better` is left out and the name does not tell.
    """

    alias: Name
    by: Name
    greater_is_better: Annotated[bool, Meta(description="true or false")] | None = None
    minimum_gain: Annotated[float, Meta(ge=0, description="a number, 0 or more")] = 0.0
    challenger: Name | None = None
    data: Name | None = None

    def __post_init__(self) -> None:
        check_fields(self, "Promotion")
        for name in ("alias", "challenger"):
            if (given := getattr(self, name)) is not None:
                check_aliases((given,), name)
        if self.alias == self.challenger:
            raise ConfigError(
                f"Promotion: challenger: expected another alias than {self.alias!r}", setting="challenger"
            )
        msgspec.structs.force_setattr(self, "by", safe_name(self.by))
        if self.greater_is_better is None:
            greater = is_greater_better(self.by)
            if greater is None:
                raise ConfigError(
                    f"Promotion: greater_is_better: expected True or False, because the name {self.by} does not tell",
                    setting="greater_is_better",
                )
            msgspec.structs.force_setattr(self, "greater_is_better", greater)

    @classmethod
    def from_argument(cls, given: Any) -> Promotion | None:
        """Return what an argument `promote` says: a Promotion, a mapping of its fields, or None.

        Raises:
            ConfigError: It is something else, or a field cannot be used.
        """
        if given is None or isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(f"promote: expected a Promotion or its fields, got {given!r}", setting="promote")
        return struct_from(cls, given, "promote", {})


def is_greater_better(metric: str) -> bool | None:
    """Return whether a higher value of `metric` is the better one, as far as its name tells; None if it does not.

    ``eval/loss`` and ``eval/news/rmse`` are better when lower, ``eval/f1_macro`` and ``eval/sharpe_ratio`` when higher.
    """
    words = re.split(r"[\W_]+", metric.rpartition("/")[2].lower())
    if any(map(_LOWER.fullmatch, words)):
        return False
    return True if any(map(_HIGHER.fullmatch, words)) else None
