"""The documentation site: the guides, and the reference from the docstrings."""

project = "jaxnet"
author = "The jaxnet developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_google_docstring = True
myst_heading_anchors = 3
