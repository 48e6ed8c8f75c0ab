"""Pictures of a run, drawn from plain series and turned into PNG bytes without touching global state.

Every drawing function returns a ``matplotlib.figure.Figure``, or None if there is nothing to draw, and `png` turns it
into the content of a file. matplotlib is imported by the first drawing, not by importing this package. pyplot, the
backend and ``rcParams`` are left alone, so pictures can be drawn in any thread; `study_figures` alone uses pyplot.
"""

from tracking_callbacks._delivery.pictures.canvas import png
from tracking_callbacks._delivery.pictures.classifier import classifier_curves
from tracking_callbacks._delivery.pictures.confusion import confusion_matrix
from tracking_callbacks._delivery.pictures.episode_curves import episode_curves, sharpe_curve
from tracking_callbacks._delivery.pictures.equity import equity_curves
from tracking_callbacks._delivery.pictures.learning import learning_curves
from tracking_callbacks._delivery.pictures.series import read_columns
from tracking_callbacks._delivery.pictures.study import study_figures
from tracking_callbacks._delivery.pictures.tasks import regression_errors, score_bars
from tracking_callbacks._delivery.pictures.tear_sheet import importance_bars, sheet_figures, tear_sheet

__all__ = [
    "classifier_curves",
    "confusion_matrix",
    "episode_curves",
    "equity_curves",
    "importance_bars",
    "learning_curves",
    "png",
    "read_columns",
    "regression_errors",
    "score_bars",
    "sharpe_curve",
    "sheet_figures",
    "study_figures",
    "tear_sheet",
]
