"""Which class an agent is of; law: its spec decides, else its type, and what cannot be found is told with what there is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from orchestrator.agent import AGENTS, Agent
from orchestrator.errors import SettingsError
from schemas.agents import AgentSpec


def agent_class(spec: AgentSpec) -> type[Agent]:
    """The class of an agent: that of its entry point, the one of its type that this process knows, or the one of a package that came with us."""
    if spec.entry_point:
        module_name, _, name = spec.entry_point.rpartition(":")
        found = getattr(_module(module_name or name), name, None) if module_name else AGENTS.get(spec.type)
        if not (isinstance(found, type) and issubclass(found, Agent)):
            raise SettingsError(f"the entry point {spec.entry_point!r} of agent {spec.id!r} is no subclass of orchestrator.agent.Agent")
        return found
    package = f"workers.packages.{spec.type.replace('-', '_')}"
    if spec.type not in AGENTS and spec.type.replace("-", "_").isidentifier() and importlib.util.find_spec(package) is not None:
        importlib.import_module(package)
    if spec.type not in AGENTS:
        known = ", ".join(sorted(AGENTS)) or "none"
        message = f"no class is known for agents of type {spec.type!r} (known: {known}). Name its module in ORCHESTRATOR_INCLUDE, or an entry_point."
        raise SettingsError(message)
    return AGENTS[spec.type]


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise SettingsError(f"the file {name!r} of an entry point cannot be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module
