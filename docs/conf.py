"""The documentation site: the guides, and the reference from the docstrings."""

import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[i]) for i in (0, 1)]  # links.py and programs.py; benchmarks

project = "jaxnet"
author = "The jaxnet developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "links",
    "programs",
    "benchmarks.pages",
]
autosummary_generate = False
programs = ["index", "learn/*", "sharp-bits", "precision", "nan", "own-kernels", "own-table"]
html_theme = "furo"
html_title = "jaxnet"
html_static_path = ["sounds", "style"]
html_css_files = ["site.css", "programs.css"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_google_docstring = True
myst_heading_anchors = 3
napoleon_use_ivar = True


def escape_bars(app, what, name, obj, options, lines):
    """|x| in a docstring is a magnitude, not a reStructuredText substitution; literal blocks stay as they are."""
    literal = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            lines[i] = re.sub(r"(``.*?``|:math:`.*?`)|\|", lambda found: found[1] or r"\|", line)
            if line.rstrip().endswith("::"):
                literal = indent


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_bars)
