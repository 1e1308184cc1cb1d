"""The reference has every public name once, and every docstring what a reader needs of it."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import jaxnet
from jaxnet import errors

PAGES = {
    page.stem: page.read_text()
    for page in sorted((Path(__file__).parents[1] / "docs" / "reference").glob("*.md"))
    if page.stem != "index"
}
FOLLOWS = re.compile(r"Args.*: as `|other arguments are those of `")
"""Where a function's arguments are said by another one's docstring."""

SECTION = re.compile(r"^((?:(?:Args|Attributes|Returns|Raises|Warns|Example|Source)(?:, )?)+):", re.MULTILINE)
FORMULA = re.compile(r"\.\. math::|::\n\n  +\S| (=|<-|~) ")
SHAPE = re.compile(r"\((\.\.\.|[*\w]+( [*/+-] \w+)*),[^)]*\)|\(\)|any shape|same shape|[Ss]calar")

LEARNING = ("activations", "initializers", "layers", "losses", "optimizers", "regularizers")
ASKED = {"an equation": LEARNING, "a Source": (*LEARNING, "kernels", "diagnostics")}
"""On which pages the functions are of an equation, and where there is one, of a chapter or a paper."""

EXEMPT = {
    "an equation": {
        "moves or chooses values": "layers.flatten layers.on_first layers.reshape initializers.reinitialize",
        "computes as the layer in it": "layers.frozen layers.merged layers.mixed_precision layers.raveled",
        "fed in pieces": "layers.stream_state layers.streaming",
        "what it computes is the user's": "layers.layer layers.stateless layers.watched",
        "looks only": "layers.summary regularizers.weights",
        "hands on what others compute": "optimizers.averaged optimizers.observe",
        "another layout, the same numbers": "optimizers.flat optimizers.ravel",
    },
    "a Source": {
        "plain": "initializers.constant initializers.normal initializers.ones initializers.uniform initializers.zeros",
        "counts": "initializers.fans_of_shape layers.summary",
        "moves or chooses values": "layers.flatten layers.on_first layers.reshape initializers.reinitialize",
        "composes": "layers.parallel layers.repeat",
        "of this library": "layers.frozen layers.layer layers.stateless layers.stream_state layers.streaming "
        "layers.watched regularizers.weights",
        "a layout": "kernels.conv_kernel_from_torch kernels.conv_kernel_to_torch "
        "kernels.conv_transpose_kernel_from_torch kernels.conv_transpose_kernel_to_torch",
    },
    "its shape": {
        "that of the layers in it": "layers.chain layers.mixed_precision layers.parallel",
        "takes a network": "layers.summary",
    },
    "what it Raises": {
        "JAX's errors alone": "initializers.ones initializers.zeros",
        "takes anything": "layers.Cell layers.watched paths.paths regularizers.weights",
        "no checks": "optimizers.conjugate",
    },
}
"""What is not asked of whom: for each reason the names."""

RAISED = {
    "ConfigError": "integer|number|flag|choice|function|takes|path|key|leaves|nothing",
    "DTypeError": "array|host_array|floating|floating_struct|shape_struct|structs|same_dtype",
    "ShapeError": "rank",
    "DataError": "unmasked",
    "CheckpointError": "",
    "NonFiniteError": "",
}
"""Each error of ours, and those of `_checks` that raise it."""


def module(page):
    return importlib.import_module(f"jaxnet.{page}")


def documented(page):
    """The public functions and classes of a page: no modules, no types that are spelled by other types."""
    for name in module(page).__all__:
        thing = getattr(module(page), name)
        if inspect.isroutine(thing) or isinstance(thing, type) or hasattr(thing, "__wrapped__"):
            yield name, thing


def test_there_is_a_page_for_every_module_with_public_names():
    modules = set(jaxnet.__all__) | {"paths", "diagnostics.pictures"}
    assert set(PAGES) == modules
    others = {m.name for m in pkgutil.iter_modules(jaxnet.__path__) if not m.name.startswith("_")} - modules
    assert not others


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_every_public_name_once(page):
    tables = re.findall(r"autosummary::\n   :nosignatures:\n\n(.*?)```", PAGES[page], re.DOTALL)
    listed = re.findall(r"^   (\w+)$", "".join(tables), re.MULTILINE)
    listed += re.findall(rf"^\.\. py:data:: jaxnet\.{re.escape(page)}\.(\w+)$", PAGES[page], re.MULTILINE)  # types
    names = [name for name in module(page).__all__ if not inspect.ismodule(getattr(module(page), name))]
    assert sorted(listed) == sorted(names)
    assert f".. automodule:: jaxnet.{page}\n   :members:" in PAGES[page]


def parts(text):
    """What stands before the sections of a docstring, and each section by its name: "Returns, Raises: as" is both."""
    before, *rest = SECTION.split(text)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return {"": before} | {name: said for names, said in pairs for name in names.split(", ")}


def lacks(page, name, thing):
    """What the docstring of a public thing does not say."""
    text = inspect.getdoc(thing) or ""
    first, said = text.split("\n\n")[0], parts(text)
    found = [] if first.rstrip(":").endswith((".", ")")) or "::" in text else ["a sentence to begin with"]
    sections = re.findall(r"^(\w+):$", text, re.MULTILINE)
    found += [f"one section {name}" for name in set(sections) if sections.count(name) > 1]
    of = of_class if isinstance(thing, type) else of_function
    found += of(page, name, thing, text, said)
    words = {word for line in re.findall(r"^ +([\w*, ]+):", text, re.MULTILINE) for word in re.findall(r"\w+", line)}
    return found + [f"what {argument} is" for argument in arguments(thing, text) if argument not in words]


def arguments(thing, text):
    if isinstance(thing, type):
        fields = getattr(thing, "_fields", None) or getattr(thing, "__dataclass_fields__", ())
        return [field for field in fields if not field.startswith("_")]
    return [] if FOLLOWS.search(text) else list(inspect.signature(thing).parameters)


def of_class(page, name, thing, text, said):
    """A class has an example, or names the function that makes it, which has one. One that users make raises."""
    methods = [m for m, f in vars(thing).items() if inspect.isfunction(f) and not m.startswith("_")]
    yield from (f"the method {m}" for m in methods if not inspect.getdoc(getattr(thing, m)))
    makers = [getattr(module(page), word, None) for word in re.findall(r"`(?:\w+\.)?(\w+)`", text)]
    if ">>> " not in text and not any(">>> " in (inspect.getdoc(maker) or "") for maker in makers):
        yield "an example, or the function that makes it"
    if f"{name}(" in said.get("Example", "") and "Raises" not in said:
        yield from unless_exempt("what it Raises", page, name)


def of_function(page, name, thing, text, said):
    signature = inspect.signature(thing)
    returned, taken = signature.return_annotation, [p.annotation for p in signature.parameters.values()]
    if ">>> " not in text:
        yield "an example"
    if returned not in (None, "None") and "Returns" not in said and not text.startswith("Returns "):
        yield "what it Returns"
    if signature.parameters and "Raises" not in said:
        yield from unless_exempt("what it Raises", page, name)
    elif not re.search("(as|where) `", said.get("Raises", "")):
        yield from (f"that it Raises {error}" for error in raised(thing) if error not in said.get("Raises", ""))
    of_arrays = any(re.search(r"\bArray\b|\.Layer\b|^Layer\b", str(one)) for one in (returned, *taken))
    shaped = "".join(said.get(section, "") for section in ("", "Args", "Returns"))
    if of_arrays and not SHAPE.search(shaped) and not FOLLOWS.search(text):
        yield from unless_exempt("its shape", page, name)
    for what, there in (("an equation", FORMULA.search(said[""])), ("a Source", "Source" in said)):
        if page in ASKED[what] and not there:
            yield from unless_exempt(what, page, name)


def raised(thing):
    """The errors that the text of a function itself raises, or its checks."""
    source = inspect.getsource(inspect.unwrap(thing))
    return [e for e, checks in RAISED.items() if re.search(rf"raise (errors\.)?{e}\(|checks\.({checks})\(", source)]


def unless_exempt(what, page, name):
    return [] if any(f"{page}.{name}" in names.split() for names in EXEMPT[what].values()) else [what]


@pytest.mark.parametrize("page", PAGES)
def test_docstrings_say_what_there_is_to_know(page):
    assert not {name: what for name, thing in documented(page) if (what := lacks(page, name, thing))}


def test_what_a_docstring_lacks_is_found():
    def nothing(a: jax.Array, b) -> jax.Array:
        """Says nothing

        Args:
          a: a number.
        """
        return a

    wanted = ["a sentence to begin with", "an example", "what it Returns", "what it Raises", "its shape"]
    assert lacks("layers", "nothing", nothing) == [*wanted, "an equation", "a Source", "what b is"]

    def little(x):
        """Refuses x (batch, ...).

        Raises:
          ConfigError: always.
        """
        raise errors.ShapeError("no")

    wanted = ["an example", "what it Returns", "that it Raises ShapeError", "what x is"]
    assert lacks("training", "little", little) == wanted


def test_exemptions_are_of_what_there_is(monkeypatch):
    exempt = [(what, one) for what, reasons in EXEMPT.items() for names in reasons.values() for one in names.split()]
    for what in EXEMPT:
        monkeypatch.setitem(EXEMPT, what, {})
    for what, full in exempt:
        page, name = full.rsplit(".", 1)
        assert what in lacks(page, name, getattr(module(page), name)), f"{full} needs no exemption from {what}"
