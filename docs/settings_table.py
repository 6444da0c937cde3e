"""Writes the tables of configuration.md from the models, or says with --check that they are out of step; law: a setting is described once, in its model."""

from __future__ import annotations

import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from orchestrator.configuration.keys import AGENT_ALIASES, ALIASES, KEYS
from orchestrator.settings import OTHER_NAMES, PREFIX
from schemas.agents import AgentSpec
from schemas.settings import Settings

PAGE = Path(__file__).with_name("configuration.md")
MARK = "<!-- {edge} of the table of {name}; python docs/settings_table.py writes it -->"


def settings() -> str:
    """All settings, section by section."""
    other = {name: variable for variable, name in OTHER_NAMES.items()}
    lines: list[str] = []
    section = None
    for key, name in KEYS.items():
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines += ["", f"### {section}", "", "| key | variable | default | meaning |", "|---|---|---|---|"]
        variables = [f"`{PREFIX}{name.upper()}`", *([f"`{other[name]}`"] if name in other else [])]
        aliases = [f"`{alias}`" for alias, canonical in ALIASES.items() if canonical == key]
        keys = ", ".join([f"`{key}`", *aliases])
        lines.append(
            f"| {keys} | {', '.join(variables)} | {default(Settings.model_fields[name])} | {meaning(Settings.model_fields[name])} |"
        )
    return "\n".join(lines).lstrip()


def agents() -> str:
    """What the entry of an agent may say."""
    lines = ["| key | also | default | meaning |", "|---|---|---|---|"]
    for name, field in AgentSpec.model_fields.items():
        aliases = ", ".join(f"`{alias}`" for alias, canonical in AGENT_ALIASES.items() if canonical == name)
        lines.append(f"| `{name}` | {aliases} | {'its id' if name == 'type' else default(field)} | {meaning(field)} |")
    return "\n".join(lines)


def default(field: FieldInfo) -> str:
    """The default as one would write it."""
    if field.is_required():
        return "must be given"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    if value is None or value in ("", {}):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) and value < 1e6 else f"`{value}`"


def meaning(field: FieldInfo) -> str:
    """What the model says of it."""
    return (field.description or "").replace("|", "\\|")


def page(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in (("settings", settings()), ("agents", agents())):
        begin, end = (MARK.format(edge=edge, name=name) for edge in ("begin", "end"))
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, found=(begin, table, end): "\n\n".join(found), text, flags=re.DOTALL
        )  # type: ignore[misc]
    return text


def main() -> int:
    """Exit code 1 if --check finds the page out of step."""
    text = PAGE.read_text()
    wanted = page(text)
    if "--check" in sys.argv[1:]:
        return int(wanted != text)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
