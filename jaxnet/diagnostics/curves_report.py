"""What learning curves alone tell (4.6.2)."""

from jaxnet import _checks as checks
from jaxnet.diagnostics.facts import Curves
from jaxnet.diagnostics.rules import OF_CURVES
from jaxnet.diagnostics.verdict import Verdict
from jaxnet.errors import named
from jaxnet.training.history import History


@named("curves_report")
def curves_report(history: History, *, baseline: float | None = None, batch_size: int | None = None) -> list[Verdict]:
    """Reads over- and underfitting, divergence, plateaus, noise and a wrong rate off the learning curves.

    A curve that is flat and high is "underfitting", or "no_progress" above the baseline's loss, which no network is too
    small to reach; "plateau" if there is neither validation nor a baseline.

    Curves that are fine give the verdict "healthy". The thresholds are in `diagnostics.thresholds`, most of them
    ratios of losses: those must be positive. Steps that were skipped are no divergence while they are the fewer, since
    a loss scale of float16 makes some by design.

    Args:
      history: of at least three records, with "loss", and if there are any "validation_loss", "loss_deviation" and
        "skipped". A column "training_loss", the loss of the training set in evaluation, which a callback may add, is
        read instead of "loss"; where it is far larger than "loss", training and evaluation are of different networks.
      baseline: the loss of the best constant prediction, that of a network which has learned nothing; the first
        record's loss unless given, which is too low if much was learned in the first epoch.
      batch_size: of the run, to say which would be larger.

    Returns:
      Verdicts, the most certain first.

    Raises:
      DataError: fewer than three records, or losses below 0 or that start at 0.
      ConfigError: a ``baseline`` that is not positive, or a history without "loss".

    Example:
      >>> from jaxnet import diagnostics
      >>> from jaxnet.training import History
      >>> losses = [(1.0, 1.1), (0.3, 0.8), (0.1, 0.9), (0.02, 1.2)]
      >>> curves = History([{"epoch": i, "loss": a, "validation_loss": b} for i, (a, b) in enumerate(losses, 1)])
      >>> [verdict.name for verdict in diagnostics.curves_report(curves)]
      ['overfitting']

    Source: chapter 4.6.2.
    """
    if baseline is not None:
        baseline = checks.number("baseline", baseline, low=0, open_low=True)
    curves = Curves(history, baseline, batch_size)
    found = [verdict for rule in OF_CURVES if (verdict := rule(curves))]
    if not found:
        return [Verdict("healthy", 0.7, curves.ending, "Nothing in the curves is out of order")]
    return sorted(found, key=lambda verdict: -verdict.certainty)
