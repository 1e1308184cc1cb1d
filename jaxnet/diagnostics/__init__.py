"""Training diagnosed (4.2.1, 4.6.2, 4.6.3): what every layer does, what the curves say, and what to try next."""

from jaxnet.diagnostics.layer_report import LayerReport, layer_report

__all__ = ["LayerReport", "layer_report"]
