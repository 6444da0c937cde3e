"""All crash points of the product, found by reading its source; law: nobody keeps a list by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from schemas.history import CancelRequested, SignalReceived

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "workers", "beat")
COMPOSED = {"client.{arrival.kind}": ("client." + SignalReceived("").kind, "client." + CancelRequested().kind)}
READS = {"client.read"}  # purposes of transactions that only look
SENDS = {"send_task", "apply_async"}
AROUND = {"_publish": "_deliver"}  # a function that sends -> the one that calls it between two points


def sources(*words: str) -> Iterator[tuple[Path, ast.Module]]:
    """All files with one of these words in them."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            if "migrations" not in path.parts and any(word in text for word in words):
                yield path.relative_to(ROOT), ast.parse(text)


def all_points() -> list[str]:
    """Their names, sorted."""
    points: set[str] = set()
    for _, tree in sources("crashpoint(", "purpose="):
        for call in calls(tree):
            if called(call) == "crashpoint" and call.args and isinstance(call.args[0], ast.Constant):
                points.add(str(call.args[0].value))
            for purpose in purposes(call):
                points |= {f"{purpose}:before_commit", f"{purpose}:after_commit"}
    return sorted(points)


def purposes(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg != "purpose":
            continue
        if isinstance(keyword.value, ast.Constant):
            if keyword.value.value not in READS:
                yield str(keyword.value.value)
        elif isinstance(keyword.value, ast.JoinedStr):
            yield from COMPOSED[ast.unparse(keyword.value)[2:-1]]


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def nameless_commits() -> list[str]:
    """Transactions that write and do not say what for."""
    found = []
    for path, tree in sources("transaction("):
        for call in calls(tree):
            given = {keyword.arg for keyword in call.keywords}
            if called(call) == "transaction" and not given & {"purpose", "readonly", None}:
                found.append(f"{path}:{call.lineno}")
    return found


def bare_sends() -> list[str]:
    """Messages that are sent without a crash point before and behind, in the same function."""
    found = []
    for path, tree in sources(*SENDS):
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            inside = AROUND.get(function.name)
            lines = [call.lineno for call in calls(function) if called(call) == "crashpoint"]
            for call in calls(function):
                passed = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call)  # super().apply_async(...)
                if called(call) in SENDS and not inside and not passed and not (lines and min(lines) < call.lineno < max(lines)):
                    found.append(f"{path}:{call.lineno}")
    return found
