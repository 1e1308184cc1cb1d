"""What the site adds to Sphinx for the reference: public names in code style are links, and named tuples read well.

A docstring or a page that says `fit`, `training.fit` or `training.fit(...)` links to it; what is no public name stays
as it is.
"""

import importlib
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

MODULES = sorted(page.stem for page in (Path(__file__).parent / "reference").glob("*.md") if page.stem != "index")


def public() -> dict[str, tuple[str, str]]:
    """By every way to write a public name, its page and its full name; ``fit`` alone, if one module has that."""
    found: dict[str, tuple[str, str]] = {}
    alone: dict[str, list[tuple[str, str]]] = {}
    for module in MODULES:
        for name in importlib.import_module(f"jaxnet.{module}").__all__:
            place = (f"reference/{module}", f"jaxnet.{module}.{name}")
            found[f"{module}.{name}"] = found[f"jaxnet.{module}.{name}"] = place
            alone.setdefault(name, []).append(place)
    found |= {name: places[0] for name, places in alone.items() if len(places) == 1}
    return found | {f"jaxnet.{module}": (f"reference/{module}", f"module-jaxnet.{module}") for module in MODULES}


class LinkNames(SphinxPostTransform):
    """Every literal that is a public name, or a call of it, becomes a link to the reference.

    In docstrings single backquotes (the role "code") are for names, double ones for arguments and values.
    """

    default_priority = 400
    names = public()

    def run(self, **_):
        """Called by Sphinx, once a page."""
        here = self.env.docname
        module = f"{here.removeprefix('reference/')}." if here.startswith("reference/") else None
        for literal in list(self.document.findall(nodes.literal)):
            if _inside(literal, nodes.reference, addnodes.pending_xref, nodes.title, addnodes.desc_signature):
                continue
            name = re.sub(r"\(.*\)$", "", literal.astext(), flags=re.DOTALL)
            place = (module and self.names.get(module + name)) or self.names.get(name)
            called = module is None and literal.astext().endswith(")")  # on other pages a bare word may be an argument
            if place is None or not ("." in name or called or "code" in literal["classes"]):
                continue
            page, anchor = place
            uri = self.app.builder.get_relative_uri(here, page) if page != here else ""
            link = nodes.reference("", "", internal=True, refuri=f"{uri}#{anchor}")
            literal.replace_self(link)
            link += literal


def _inside(node: nodes.Node, *kinds: type) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def skip_fields(app, what, name, obj, skip, options):
    """A named tuple's field is told in the class's docstring; Python's own text of it says nothing."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else skip


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_fields)
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
