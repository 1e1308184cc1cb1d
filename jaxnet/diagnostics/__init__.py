"""Training diagnosed (4.2.1, 4.6.2, 4.6.3): what every layer does, what the curves say, and what to try next."""

from jaxnet.diagnostics import pictures
from jaxnet.diagnostics.curves_report import curves_report
from jaxnet.diagnostics.dead_units import DeadUnits, born_dead_probability, dead_units
from jaxnet.diagnostics.diagnose import Diagnosis, diagnose
from jaxnet.diagnostics.layer_report import LayerReport, layer_report
from jaxnet.diagnostics.noise_scale import NoiseScale, noise_scale
from jaxnet.diagnostics.rate_range_test import RateRange, rate_range_test
from jaxnet.diagnostics.suspect_labels import suspect_labels
from jaxnet.diagnostics.verdict import Remedy, Verdict

__all__ = [
    "DeadUnits",
    "Diagnosis",
    "LayerReport",
    "NoiseScale",
    "RateRange",
    "Remedy",
    "Verdict",
    "born_dead_probability",
    "curves_report",
    "dead_units",
    "diagnose",
    "layer_report",
    "noise_scale",
    "pictures",
    "rate_range_test",
    "suspect_labels",
]
