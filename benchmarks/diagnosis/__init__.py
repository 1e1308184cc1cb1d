"""How often `diagnostics.diagnose` names a planted pathology first, and its first remedy makes the run train."""

from benchmarks.diagnosis.report import main as main
