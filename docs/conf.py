"""Configuration of the manual: ``python -m sphinx -W -n docs docs/_build/html``."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from docutils.nodes import Element
from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import autosummary
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import mmfuse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

project = "mmfuse"
author = "The mmfuse authors"
copyright = author
version = release = mmfuse.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

# -- API pages: everything comes from the modules' own __all__ ----------------

autosummary_ignore_module_all = False
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)  # a summary does not end at "(Eq. 5)"
autodoc_inherit_docstrings = False  # only what mmfuse itself says, not nn.Module's pages
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# -- references -----------------------------------------------------------------


class AuthorYearLabels(BaseLabelStyle):
    """Labels of the list of references that read like the citations in the text."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        for entry in sorted_entries:
            names = [" ".join(p.prelast_names + p.last_names) for p in entry.persons["author"]]
            short = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            yield f"{short}, {entry.fields['year']}"


class AuthorYearStyle(Style):
    """Plain entries under author-year labels."""

    default_label_style = AuthorYearLabels


register_plugin("pybtex.style.formatting", "author_year", AuthorYearStyle)
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = bibtex_reference_style = "author_year"
nitpicky = True
# The build passes without a network, where names of other projects cannot be looked up.
# MMFUSE_DOCS_ONLINE=1 turns them into links.
if os.environ.get("MMFUSE_DOCS_ONLINE"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|collections|typing)\..*"),  # other projects' objects, see above
    (r"py:class", r"bool|dict|float|int|list|str|tuple"),  # Python's own, see above
    (r"py:class", r"Tensor"),  # torch.Tensor, as a field of a NamedTuple spells it
    (r"py:class", r"Axes"),  # matplotlib's, which is imported for type checkers only
    (r"py:class", r"Data|HeteroData"),  # torch_geometric's, likewise
    (r"py:(class|exc)", r"[A-Z]\w+(Error|Warning)"),  # Python's own, see above
]

# -- pages ------------------------------------------------------------------------

html_theme = "furo"
html_title = f"mmfuse {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0f5e6b",
        "color-brand-content": "#0b7285",
    },
    "dark_css_variables": {
        "color-brand-primary": "#66d9e8",
        "color-brand-content": "#3bc9db",
    },
}
pygments_style = "friendly"
pygments_dark_style = "native"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

logger = logging.getLogger(__name__)

#: Modules whose public names have a page each. A name's home is the first of them that exports it.
HOMES = re.findall(r"^ {3}mmfuse\.(\w+)$", (ROOT / "docs/api/index.rst").read_text(), re.MULTILINE)
HOMES.remove("functional")  # lists names that live elsewhere


def home_of(path: str) -> str | None:
    """Return where an object is documented, given any dotted path that leads to it."""
    head, *rest = path.split(".")
    if head != "mmfuse":
        return None
    found: object = mmfuse
    for done, part in enumerate(rest, 1):
        found = getattr(found, part, None)
        for room in HOMES:
            module = importlib.import_module(f"mmfuse.{room}")
            if part in module.__all__ and getattr(module, part) is found:
                return ".".join([module.__name__, part, *rest[done:]])
    return None


def link_to_home(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element
) -> Element | None:
    """Resolve ``mmfuse.Name`` and ``mmfuse.family.file.Name`` to the page of ``Name``."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    home = home_of(target) or home_of(f"{node.get('py:module')}.{target}")
    if home is None:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, contnode)


def check_complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn, and so fail under -W, where a public name has no page."""
    for room in HOMES:
        for name in importlib.import_module(f"mmfuse.{room}").__all__:
            if f"mmfuse.{room}.{name}" not in env.domains.python_domain.objects:
                logger.warning("mmfuse.%s.%s is public but has no page", room, name)


def show_no_constructor(
    app: Sphinx, what: str, name: str, obj: object, *_: object
) -> tuple[str, None] | None:
    """A protocol is not constructed: its ``__call__`` is what its page is about."""
    return ("", None) if getattr(obj, "_is_protocol", False) else None


def make_shape_a_field(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Set a docstring's Shape section like its neighbours: parameters, returned value."""
    lines[:] = [re.sub(r"^( *)Shape:$", r"\1:Shape:", line) for line in lines]


def describe_constant(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Take a constant's ``#:`` comment from the file that defines it, not int's own docstring."""
    family, _, constant = name.rpartition(".")
    if what != "data":
        return
    for idea in pkgutil.iter_modules(importlib.import_module(family).__path__):
        comments = ModuleAnalyzer.for_module(f"{family}.{idea.name}").find_attr_docs()
        lines[:] = comments.get(("", constant), lines)


def read_changelog(app: Sphinx, docname: str, content: list[str]) -> None:
    """Fill the page from CHANGELOG.md: headings, code, links and lists are all that it uses."""
    if docname != "changelog":
        return
    source = ROOT / "CHANGELOG.md"
    app.env.note_dependency(source)
    text = re.sub(r"`([^`]+)`", r"``\1``", source.read_text())
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"`\1 <\2>`__", text)
    content[0] = re.sub(
        r"^(#+) (.+)$",
        lambda heading: f"{heading[2]}\n{'=-~'[len(heading[1]) - 1] * len(heading[2])}",
        text,
        flags=re.MULTILINE,
    )


def fill_cheat_sheet(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the tables of fusions, which are read from the code, into their page."""
    if docname == "fusions":
        from cheat_sheet import cheat_sheet  # noqa: PLC0415 - found by the path set above

        for kind in ("rows", "sequences"):
            content[0] = content[0].replace(f".. {kind}\n", cheat_sheet(kind) + "\n")


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("missing-reference", link_to_home)
    app.connect("env-check-consistency", check_complete)
    app.connect("autodoc-process-signature", show_no_constructor)
    app.connect("autodoc-process-docstring", make_shape_a_field, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", describe_constant)
    app.connect("source-read", read_changelog)
    app.connect("source-read", fill_cheat_sheet)
