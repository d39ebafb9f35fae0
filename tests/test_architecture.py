"""The rules of the house, enforced by reading the source.

Every rule is a function from source text to a list of complaints, so that the same function reads
the library (no complaint) and a planted offence (exactly that complaint).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "mmfuse"

#: Rooms, floor by floor. A module imports from lower floors and from its own room, nothing else.
FLOORS = (
    ("types", "_activation", "_checks", "_precision"),
    (
        "_contrast",
        "_contrast_chunks",
        "_expert_groups",
        "_expert_loop",
        "_processes",
        "_routing",
        "_transformer",
    ),
    ("_contrast_pairs",),
    ("losses", "layers"),
    ("_history", "projection", "gating", "experts", "graph"),
    ("fusion",),
    ("functional", "testing", "diagnostics"),
    ("",),  # mmfuse/__init__.py
)
FAMILIES = ("projection", "gating", "experts", "graph", "fusion", "losses", "layers")

#: Other people's packages that the library may import; the lazy ones inside a function only.
EAGER = ("torch", "einops")
LAZY = ("torch_geometric", "matplotlib")
HEAVY = ("torch_geometric", "lightning", "matplotlib", "pandas", "polars")

MAX_LINES_A_FILE = 300
MAX_CODE_LINES_A_FUNCTION = 40

Rule = Callable[[str, str], list[str]]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


# -- what there is ---------------------------------------------------------------------------------


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


SOURCES = {name_of(path): read(path) for path in sorted(LIBRARY.rglob("*.py"))}
ROOMS = sorted({name.split(".")[1] for name in SOURCES if "." in name})
DOORS = {"mmfuse", *(f"mmfuse.{room}" for room in ROOMS if not room.startswith("_"))}


def exported(module: str) -> list[str]:
    return list(importlib.import_module(module).__all__)


def users() -> Iterator[tuple[str, str]]:
    """Everything outside the library that shows or uses it: (where, code)."""
    for folder in ("examples", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), read(path)
    for page in [*sorted((ROOT / "docs").glob("*.rst")), ROOT / "README.md"]:
        yield str(page.relative_to(ROOT)), code_of_page(read(page))


def code_of_page(text: str) -> str:
    """The Python that a page shows: doctest lines, ``code-block`` bodies and fenced blocks."""
    prompts = re.findall(r"^ *(?:>>>|\.\.\.) ?(.*)$", text, re.MULTILINE)
    fences = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?: {3}.*\n|\n)+)", text, re.MULTILINE)
    return "\n".join(["\n".join(prompts), *fences, *map(inspect.cleandoc, blocks)])


# -- imports ---------------------------------------------------------------------------------------


class Import(NamedTuple):
    line: int
    module: str
    name: str | None  # of ``from module import name``
    at_load: bool  # false inside a function and under TYPE_CHECKING


def imports(source: str) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, alias.name, None, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            where = "." * node.level + (node.module or "")
            found.extend(Import(node.lineno, where, a.name, at_load) for a in node.names)
        later = isinstance(node, FunctionNode | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            visit(child, at_load and not later)

    visit(ast.parse(source), True)
    return found


def targets(source: str) -> Iterator[tuple[Import, str]]:
    """Each import of mmfuse, and the module that it reaches."""
    for item in imports(source):
        if item.module.split(".")[0] == "mmfuse":
            inner = f"{item.module}.{item.name}"
            yield item, inner if inner in SOURCES else item.module


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor_of(module: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room_of(module) in rooms)


def imports_point_down(module: str, source: str) -> list[str]:
    return [
        f"{module}:{item.line} imports {target}"
        for item, target in targets(source)
        if room_of(target) != room_of(module) and floor_of(target) >= floor_of(module)
    ]


def foreign_imports_are_few(module: str, source: str) -> list[str]:
    allowed = {*sys.stdlib_module_names, *EAGER, "mmfuse"}
    return [
        f"{module}:{item.line} imports {item.module or '.'}"
        for item in imports(source)
        if (package := item.module.split(".")[0]) not in allowed
        and not (package in LAZY and not item.at_load)
    ]


def cycle(sources: Mapping[str, str]) -> list[str]:
    """One circle of modules that need each other at load, or nothing."""
    graph = {
        module: {target for item, target in targets(source) if item.at_load}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def loaded(statement: str, packages: Iterable[str]) -> list[str]:
    """Those of the packages that a statement loads in a fresh interpreter."""
    code = f"import sys; {statement}; print(*(p for p in {tuple(packages)} if p in sys.modules))"
    run = [sys.executable, "-c", code]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()


# -- files and functions ---------------------------------------------------------------------------


def all_names_are_listed(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    listed: list[str] | None = None
    bound: set[str] = set()
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            places = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {place.id for place in places if isinstance(place, ast.Name)}
            if "__all__" in names and node.value is not None:
                listed = list(ast.literal_eval(node.value))
            bound |= names
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, FunctionNode | ast.ClassDef):
            bound.add(node.name)
            defined.add(node.name)
    if listed is None:
        return [f"{module} has no __all__"]
    public = {name for name in defined if not name.startswith("_")}
    return [
        *(f"{module} lists {name} twice" for name in sorted(set(listed)) if listed.count(name) > 1),
        *(f"{module} lists {name}, which is not there" for name in sorted(set(listed) - bound)),
        *(f"{module} does not list {name}" for name in sorted(public - set(listed))),
    ]


def functions(tree: ast.AST) -> Iterator[FunctionNode]:
    return (node for node in ast.walk(tree) if isinstance(node, FunctionNode))


def files_and_functions_are_short(module: str, source: str) -> list[str]:
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            code.update(range(token.start[0], token.end[0] + 1))
    found = []
    lines = len(source.splitlines())
    if lines > MAX_LINES_A_FILE:
        found.append(f"{module} has {lines} lines")
    for function in functions(ast.parse(source)):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        first, last = (body[0].lineno, body[-1].end_lineno or 0) if body else (1, 0)
        count = len(code & set(range(first, last + 1)))
        if count > MAX_CODE_LINES_A_FUNCTION:
            found.append(f"{module}:{function.lineno} {function.name} has {count} lines of code")
    return found


def public_names_are_described(module: str, source: str) -> list[str]:
    """Ruff's D rules with one exception: torch's own page describes ``extra_repr``."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{module} has no docstring"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, FunctionNode | ast.ClassDef) or node.name.startswith("_"):
                continue
            if node.name != "extra_repr" and ast.get_docstring(node) is None:
                found.append(f"{module}:{node.lineno} {prefix}{node.name} has no docstring")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")

    visit(tree.body, "")
    return found


# -- what a library does not do --------------------------------------------------------------------


def root_of(node: ast.expr) -> str | None:
    """``self`` of ``self.a[0].b``; nothing for a plain name."""
    if not isinstance(node, ast.Attribute | ast.Subscript):
        return None
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def stored(node: ast.AST) -> list[ast.expr]:
    """Places that a statement writes to or deletes."""
    if isinstance(node, ast.Assign | ast.Delete):
        places = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        places = [node.target]
    else:
        return []
    flat: list[ast.expr] = []
    for place in places:
        flat.extend(place.elts if isinstance(place, ast.Tuple | ast.List) else [place])
    return flat


def forward_stores_nothing(module: str, source: str) -> list[str]:
    found = []
    for function in functions(ast.parse(source)):
        if function.name != "forward":
            continue
        for node in ast.walk(function):
            by_statement = any(root_of(place) == "self" for place in stored(node))
            by_setattr = (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).split(".")[-1] in ("setattr", "__setattr__")
                and any(ast.unparse(argument) == "self" for argument in node.args)
            )
            if by_statement or by_setattr:
                found.append(f"{module}:{getattr(node, 'lineno', 0)} forward stores on self")
    return found


def nothing_is_hidden(module: str, source: str) -> list[str]:
    """No print, no named device, no global statement."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        method = node.attr if isinstance(node, ast.Attribute) else ""
        text = node.value if isinstance(node, ast.Constant) else ""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            found.append(f"{where} prints")
        elif method == "cuda" or re.fullmatch(r"(cuda|mps)(:\d+)?", str(text)):
            found.append(f"{where} names a device")
        elif isinstance(node, ast.Global):
            found.append(f"{where} writes a global")
    return found


def modules_hold_no_state(module: str, source: str) -> list[str]:
    """A table at module level is a tuple, a frozenset, or annotated as a Mapping."""
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = {"list", "dict", "set", "defaultdict", "OrderedDict", "Counter", "deque"}
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        names = [ast.unparse(place) for place in stored(node)]
        frozen = isinstance(node, ast.AnnAssign) and "Mapping[" in ast.unparse(node.annotation)
        maker = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
        changes = isinstance(node.value, mutable) or maker.split(".")[-1] in makers
        if changes and not frozen and names != ["__all__"]:
            found.append(f"{module}:{node.lineno} {', '.join(names)} can change")
    return found


# -- what a user may touch -------------------------------------------------------------------------


def only_public_names_are_used(where: str, source: str) -> list[str]:
    """Users enter by the doors (``mmfuse``, ``mmfuse.gating``, ...) and take what is listed."""
    found = []
    for item in imports(source):
        if item.module.split(".")[0] != "mmfuse":
            continue
        if item.module not in DOORS:
            found.append(f"{where}:{item.line} enters by {item.module}")
        elif (
            item.name is not None
            and f"{item.module}.{item.name}" not in DOORS
            and item.name not in exported(item.module)
        ):
            found.append(f"{where}:{item.line} takes {item.name} of {item.module}")
    for node in ast.walk(ast.parse(source)):
        private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
        if private and root_of(node) == "mmfuse" and node.attr != "__version__":
            found.append(f"{where}:{node.lineno} takes {ast.unparse(node)}")
    return found


# -- the rules, on the library and on planted offences ---------------------------------------------

RULES: tuple[tuple[Rule, str, str, str], ...] = (
    (
        imports_point_down,
        "mmfuse.gating.new",
        "from mmfuse.experts import Experts",
        "imports mmfuse.experts",
    ),
    (
        imports_point_down,
        "mmfuse.layers.new",
        "def f():\n    from mmfuse.fusion.concat import ConcatFusion",
        "imports mmfuse.fusion.concat",
    ),
    (imports_point_down, "mmfuse.losses.new", "from mmfuse import types", ""),
    (imports_point_down, "mmfuse.losses.new", "import mmfuse", "imports mmfuse"),
    (imports_point_down, "mmfuse.types", "import mmfuse.layers", "imports mmfuse.layers"),
    (foreign_imports_are_few, "mmfuse.graph.new", "import torch_geometric.nn", "torch_geometric"),
    (foreign_imports_are_few, "mmfuse.graph.new", "def f():\n    import torch_geometric.nn", ""),
    (foreign_imports_are_few, "mmfuse.layers.new", "def f():\n    import lightning", "lightning"),
    (foreign_imports_are_few, "mmfuse.layers.new", "from .masking import mask_absent", "masking"),
    (all_names_are_listed, "m", "x = 1", "has no __all__"),
    (all_names_are_listed, "m", "__all__ = ['f']\ndef f(): ...\ndef g(): ...", "not list g"),
    (all_names_are_listed, "m", "__all__ = ['f']", "lists f, which is not there"),
    (all_names_are_listed, "m", "__all__ = ['f', 'f']\ndef f(): ...", "lists f twice"),
    (files_and_functions_are_short, "m", "x = 1\n" * 301, "has 301 lines"),
    (files_and_functions_are_short, "m", "def f():\n" + "    x = 1\n" * 41, "41 lines of code"),
    (files_and_functions_are_short, "m", "def f():\n" + "    # why\n" * 41 + "    x = 1", ""),
    (public_names_are_described, "m", "x = 1", "has no docstring"),
    (
        public_names_are_described,
        "m",
        "'''M.'''\nclass A:\n    '''A.'''\n    def f(self): ...",
        "A.f",
    ),
    (public_names_are_described, "m", "'''M.'''\ndef _f(): ...", ""),
    (forward_stores_nothing, "m", "class A:\n  def forward(self, x):\n    self.x = x", "stores"),
    (
        forward_stores_nothing,
        "m",
        "class A:\n  def forward(self, x):\n    self.n[0] += 1",
        "stores",
    ),
    (forward_stores_nothing, "m", "class A:\n  def forward(self, x):\n    y, self.x = x", "stores"),
    (
        forward_stores_nothing,
        "m",
        "class A:\n  def forward(self, x):\n    object.__setattr__(self, 'x', x)",
        "stores",
    ),
    (forward_stores_nothing, "m", "class A:\n  def __init__(self, x):\n    self.x = x", ""),
    (nothing_is_hidden, "m", "print('here')", "prints"),
    (nothing_is_hidden, "m", "x = x.cuda()", "names a device"),
    (nothing_is_hidden, "m", "x = x.to('cuda:0')", "names a device"),
    (nothing_is_hidden, "m", "def f():\n    global x", "writes a global"),
    (modules_hold_no_state, "m", "LOSSES = []", "LOSSES can change"),
    (modules_hold_no_state, "m", "seen: set[int] = set()", "seen can change"),
    (modules_hold_no_state, "m", "NAMES: Mapping[str, int] = {'a': 1}", ""),
    (only_public_names_are_used, "u", "from mmfuse._checks import check_shape", "enters by"),
    (only_public_names_are_used, "u", "from mmfuse.gating.softmax import SoftmaxGate", "enters by"),
    (only_public_names_are_used, "u", "from mmfuse.gating import _hidden", "takes _hidden"),
    (
        only_public_names_are_used,
        "u",
        "import mmfuse\nmmfuse._checks.check_shape()",
        "takes mmfuse",
    ),
    (only_public_names_are_used, "u", "from mmfuse.gating import SoftmaxGate", ""),
)
LIBRARY_RULES = sorted(
    {rule for rule, *_ in RULES} - {only_public_names_are_used}, key=lambda rule: rule.__name__
)


@pytest.mark.parametrize("rule", LIBRARY_RULES, ids=lambda rule: rule.__name__)
def test_library_keeps_the_rule(rule: Rule) -> None:
    complaints = [complaint for name, text in SOURCES.items() for complaint in rule(name, text)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(("rule", "module", "source", "complaint"), RULES)
def test_rule_notices_an_offence(rule: Rule, module: str, source: str, complaint: str) -> None:
    complaints = rule(module, source)
    assert len(complaints) == bool(complaint)
    assert complaint in "".join(complaints)


def test_users_take_public_names_only() -> None:
    complaints = [
        text for where, code in users() for text in only_public_names_are_used(where, code)
    ]
    assert not complaints, "\n".join(complaints)


def test_code_of_pages_is_read() -> None:
    prompt = ">>> a\n... b\n\n"
    fence = "```python\nc\n```\n\n"
    block = ".. code-block:: python\n\n   d\n\nno code\n"
    assert code_of_page(prompt + fence + block).split() == ["a", "b", "c", "d"]


def test_no_circular_imports() -> None:
    assert not cycle(SOURCES)


def test_circular_imports_are_noticed() -> None:
    there, back = "mmfuse.gating.softmax", "mmfuse.gating.category"
    planted = {there: f"import {back}", back: f"import {there}"}
    assert set(cycle(planted)) == {there, back}
    planted[back] = f"def late():\n    import {there}"
    assert not cycle(planted)


def test_every_room_has_a_floor() -> None:
    known = {room for floor in FLOORS for room in floor}
    assert set(ROOMS) <= known


def test_import_is_light() -> None:
    assert not loaded("import mmfuse, mmfuse.functional, mmfuse.testing, mmfuse.diagnostics", HEAVY)


def test_heavy_imports_are_noticed() -> None:
    assert loaded("import json", ("json", "lightning")) == ["json"]


def undeclared(source: str, declared: Iterable[str]) -> set[str]:
    """Packages that an example imports and no dependency of the project provides."""
    own = {*sys.stdlib_module_names, "mmfuse", "cammsr"}
    names = {re.split(r"[\[<>=]", line)[0].replace("-", "_") for line in declared}
    provided = {"yaml" if name == "pyyaml" else name for name in names}
    return {item.module.split(".")[0] for item in imports(source)} - own - provided


def test_examples_declare_what_they_import() -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["examples"], *extras["tune"]]
    for path in (ROOT / "examples").rglob("*.py"):
        assert not undeclared(read(path), declared), path


def test_undeclared_imports_are_noticed() -> None:
    assert undeclared("import yaml, torch.nn, scipy", ["pyyaml>=6", "torch>=2.6"]) == {"scipy"}


# -- one idea, one file, one test, one page --------------------------------------------------------


def missing_tests(modules: Iterable[str], files: Iterable[str]) -> list[str]:
    """``mmfuse.gating.softmax`` is tested in ``gating/test_softmax.py``."""
    there = set(files)
    found = []
    for module in modules:
        *folders, idea = module.split(".")[1:]
        wanted = "/".join([*folders, f"test_{idea.lstrip('_')}.py"])
        if wanted not in there:
            found.append(f"tests/{wanted}")
    return found


def test_every_idea_has_its_tests() -> None:
    ideas = [name for name in SOURCES if name.count(".") == 2]
    files = [str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")]
    assert not missing_tests(ideas, files)


def test_missing_tests_are_noticed() -> None:
    ideas = ["mmfuse.gating.softmax", "mmfuse.gating.new"]
    assert missing_tests(ideas, ["gating/test_softmax.py"]) == ["tests/gating/test_new.py"]


def family_of(module: str) -> str:
    return module.rsplit(".", 1)[0]


@pytest.mark.parametrize("idea", [name for name in SOURCES if name.count(".") == 2])
def test_a_family_exports_what_its_ideas_export(idea: str) -> None:
    assert set(exported(idea)) <= set(exported(family_of(idea)))


def test_functional_lists_every_public_function() -> None:
    public = {
        name
        for room in ROOMS
        if room in FAMILIES
        for name in exported(f"mmfuse.{room}")
        if inspect.isfunction(getattr(importlib.import_module(f"mmfuse.{room}"), name))
    }
    assert set(exported("mmfuse.functional")) == public


def test_top_level_names_come_from_the_families() -> None:
    families = {name for room in ROOMS if room in FAMILIES for name in exported(f"mmfuse.{room}")}
    assert set(exported("mmfuse")) <= families | {"__version__", *ROOMS}


def undocumented(index: str, rooms: Iterable[str]) -> set[str]:
    """Public rooms without a line in the API index; their names' pages come from ``__all__``."""
    public = {room for room in rooms if not room.startswith("_")}
    return public - set(re.findall(r"^ {3}mmfuse\.(\w+)$", index, re.MULTILINE))


def test_every_public_name_is_documented() -> None:
    assert not undocumented(read(ROOT / "docs/api/index.rst"), ROOMS)
    template = read(ROOT / "docs/_templates/autosummary/family.rst")
    assert re.search(r":toctree:.*{% for name in members %}\s+{{ name }}", template, re.DOTALL)
    assert "autosummary_ignore_module_all = False" in read(ROOT / "docs/conf.py")


def test_undocumented_rooms_are_noticed() -> None:
    assert undocumented("   mmfuse.gating\n", ["gating", "experts", "_checks"]) == {"experts"}


def unknown_citations(text: str, bibliography: str) -> set[str]:
    cited = {
        key for keys in re.findall(r":cite(?::\w+)?:`([^`]+)`", text) for key in keys.split(",")
    }
    return {key.strip() for key in cited} - set(re.findall(r"^@\w+{([^,]+),", bibliography, re.M))


def test_citations_are_in_the_bibliography() -> None:
    bibliography = read(ROOT / "docs/references.bib")
    assert not unknown_citations("\n".join(SOURCES.values()), bibliography)


def test_unknown_citations_are_noticed() -> None:
    assert unknown_citations(":cite:`a2020b` :cite:t:`c2020d`", "@misc{a2020b,\n") == {"c2020d"}


def unknown_settings(text: str, config: object) -> set[str]:
    """Settings such as ``model.dim`` that a page names and the recommender does not have."""
    named = set(re.findall(r"``((?:model|objective|categories|training)\.\w+)``", text))
    pairs = [path.split(".") for path in named]
    return {f"{part}.{name}" for part, name in pairs if not hasattr(getattr(config, part), name)}


def test_settings_in_the_manual_exist() -> None:
    text = read(ROOT / "docs/reproduction.rst") + read(ROOT / "docs/recommender.rst")
    assert not unknown_settings(text, importlib.import_module("cammsr.config").Config())


def test_unknown_settings_are_noticed() -> None:
    config = SimpleNamespace(model=SimpleNamespace(dim=64))
    assert unknown_settings("``model.dim`` and ``model.width``", config) == {"model.width"}


# -- what the README says --------------------------------------------------------------------------


def test_readme_code_runs() -> None:
    code = re.findall(r"^```python\n(.*?)^```", read(ROOT / "README.md"), re.M | re.S)
    assert code
    for block in code:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
