"""Configuration files as values, with the line of each key; law: what cannot be read is told in one sentence, and never shows a line of the file.

TOML, YAML and JSON, known by the ending of the name. YAML is imported when the first such file is read.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

BYTES_MAX = 4 * 1024 * 1024
NODES_MAX = 200_000
"""Values in one file, with what its aliases repeat."""
DEPTH_MAX = 50
ENDINGS = (".toml", ".yaml", ".yml", ".json")

Steps = tuple[str | int, ...]
"""The way to a value: keys, and places in lists."""


class Unreadable(Exception):
    """A file cannot be read; `line` says where, if anything in it is to blame."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Document:
    """A file that was read."""

    path: Path
    text: str
    content: dict[str, Any]

    def line(self, steps: Steps) -> int | None:
        """The line of a key, or of the nearest thing around it that has one; None if that cannot be told."""
        if self.path.suffix == ".toml":
            return _toml_line(self.text, steps)
        for end in range(len(steps), 0, -1):
            if steps[:end] in self._lines:
                return self._lines[steps[:end]]
        return None

    @cached_property
    def _lines(self) -> dict[Steps, int]:
        # JSON is YAML, but for tabs.
        try:
            return _yaml(self.text.expandtabs() if self.path.suffix == ".json" else self.text)[1]
        except Unreadable:
            return {}


def read(path: Path) -> Document:
    """The file as a table; raises Unreadable."""
    if path.suffix not in ENDINGS:
        raise Unreadable(f"the name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, so that one knows what is in it")
    try:
        if path.stat().st_size > BYTES_MAX:
            raise Unreadable(f"is larger than {BYTES_MAX:,} bytes, which is no configuration")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8 text") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or type(error).__name__}") from None
    try:
        content = _parsed(path.suffix, text)
    except RecursionError:
        raise Unreadable(f"is nested more than {DEPTH_MAX} deep") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise Unreadable("must be a table of keys and values")
    return Document(path, text, content)


def _parsed(suffix: str, text: str) -> Any:  # noqa: ANN401 - whatever the file says
    if suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
            message = str(error)[: place.start()] if place else str(error).removesuffix(" (at end of document)")
            raise Unreadable(f"is not valid TOML: {message}", int(place[1]) if place else None) from None
    if suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise Unreadable(f"is not valid JSON: {error.msg}", error.lineno) from None
    return _yaml(text)[0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unreadable(f"has the key {twice!r} twice in one table")
    return content


def _no_constant(name: str) -> Any:  # noqa: ANN401 - json wants a value and gets none
    raise Unreadable(f"is not valid JSON: {name} is no number")


def _yaml(text: str) -> tuple[Any, dict[Steps, int]]:
    yaml: Any = import_module("yaml")  # costs 20 ms, which only those who write YAML shall pay
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = None
    try:
        _measure(yaml, yaml.parse(text, kind))
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Steps, int] = {}
        _walk(yaml, node, (), lines, [NODES_MAX])
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark, begun = error.problem_mark or error.context_mark, error.context_mark
        where = f", in what begins in line {begun.line + 1}" if mark and begun and begun.line != mark.line else ""
        raise Unreadable(f"is not valid YAML: {error.problem or error.context}{where}", mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow; a date that is none
        reason = getattr(error, "reason", "") or (str(error) if isinstance(error, ValueError) else type(error).__name__)
        raise Unreadable(f"is not valid YAML: {reason}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _measure(yaml: Any, events: Iterable[Any]) -> None:  # noqa: ANN401 - PyYAML's events
    """Refuse what is nested so deeply that composing it would overflow the stack, which in C is a crash."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            raise Unreadable(f"is nested more than {DEPTH_MAX} deep", event.start_mark.line + 1)


def _walk(yaml: Any, node: Any, steps: Steps, lines: dict[Steps, int], left: list[int]) -> None:  # noqa: ANN401 - PyYAML's nodes
    """Note the line of every key, and refuse keys that stand twice and aliases that explode."""
    left[0] -= 1
    if len(steps) > DEPTH_MAX:  # an alias of something around it
        raise Unreadable(f"is nested more than {DEPTH_MAX} deep", node.start_mark.line + 1)
    if left[0] < 0:
        raise Unreadable(f"has more than {NODES_MAX:,} values, which is no configuration")
    if isinstance(node, yaml.SequenceNode):
        for at, child in enumerate(node.value):
            lines[*steps, at] = child.start_mark.line + 1
            _walk(yaml, child, (*steps, at), lines, left)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, child in node.value:
            name = key.value
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge":
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    raise Unreadable(f"has a key that is not text{f': {name}' if isinstance(name, str) else ''}; put it in quotes", line)
                if name in seen:
                    raise Unreadable(f"has the key {name!r} twice in one table", line)
                seen.add(name)
                lines[*steps, name] = line
            _walk(yaml, child, (*steps, name), lines, left)


def _toml_line(text: str, steps: Steps) -> int | None:
    """Where a key stands, found by searching for its words one after the other; the headers of a list of tables are counted."""
    at, found = 0, None
    for place, step in enumerate(steps):
        if isinstance(step, int):
            header = re.compile(rf"^\s*\[\[\s*{re.escape(str(steps[place - 1]))}\s*\]\]", re.MULTILINE)
            headers = list(header.finditer(text))
            match = headers[step] if step < len(headers) else None
        else:
            match = re.compile(rf"(?:^|(?<=[\s\[.\"'])){re.escape(step)}(?=[\"']?\s*[=.\]])", re.MULTILINE).search(text, at)
        if match is None:
            break
        at, found = match.start(), match.end()
    return None if found is None else text.count("\n", 0, found) + 1
