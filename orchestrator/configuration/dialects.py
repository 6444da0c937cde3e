"""What a file says in its own words -> settings and agents in ours; law: nothing is dropped silently.

Four worlds write configuration, and one walk reads them all, for they differ in names only (`keys`):

    ours                            sections of settings, and `agents`
    plugins                         [plugins.<label>], each the program of a child
    agents.config.json              `agents` and `runtime` in camelCase; what it does not know is a warning there
    management_api.yaml, agent_manager.yaml    `service`, `database`, `nats`
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from orchestrator.configuration.documents import Document, Steps
from orchestrator.configuration.keys import AGENT_KEYS, ALIASES, CAMEL, KEYS, KINDS, NOT_USED, SECTIONS
from orchestrator.configuration.sentences import meant, shown
from schemas.configuration import Origin, Problem

AGENTS_MAX = 10_000
NATS_INSTEAD = "redis://localhost:6379/0"
SPAWNED = "agent"  # the plugin_type of what is started
OTHER_SECTIONS = ("environment", "agents", "plugins", "service", "nats", "core")
ENTRY_POINT_OF_CLASS = re.compile(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")
TLS_SCHEMES = {"rediss", "amqps"}


@dataclass(frozen=True)
class Setting:
    """A value for a field of Settings; a weak one gives way to any other."""

    field: str
    value: Any
    origin: Origin
    weak: bool = False


@dataclass(frozen=True)
class Entry:
    """An agent as it was written down: values by fields of AgentSpec, and where each of them stands."""

    values: dict[str, Any]
    origin: Origin
    places: dict[str, Origin]
    problems: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Its id, as far as it has one."""
        return str(self.values.get("id", ""))


@dataclass
class Draft:
    """What one file says, not yet checked for types."""

    settings: list[Setting] = field(default_factory=list)
    agents: list[Entry] = field(default_factory=list)
    mistakes: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def translate(document: Document, name: str) -> Draft:
    """The draft of a file that messages call `name`."""
    return _Translation(document, name).draft


class _Translation:
    def __init__(self, document: Document, name: str) -> None:
        self._document = document
        self._name = name
        self._camel = document.path.name == "agents.config.json" or _camel(document.content)
        self.draft = Draft()
        for key, value in document.content.items():
            if value is not None:
                self._top(key, value)

    def _top(self, key: str, value: Any) -> None:  # noqa: ANN401 - whatever the file says
        match key:
            case "environment":
                self._setting(key, value, (key,))
            case "agents":
                self._agents(value)
            case "plugins":
                self._plugins(value)
            case _ if key in NOT_USED:
                self._warn((key,), f"{key} is not used: {NOT_USED[key]}")
            case "nats" if isinstance(value, dict):
                self._nats(value)
            case _:
                self._section(key, value)

    def _section(self, key: str, value: Any) -> None:  # noqa: ANN401 - whatever the file says
        section = self._service() if key == "service" else key
        if section not in SECTIONS and section != "nats":
            self._unknown((key,), f"{key} is no section of settings{_meant_section(key)}")
        elif not isinstance(value, dict):
            self._blame((key,), f"{key} must be a table of keys and values")
        else:
            for name, given in value.items():
                canonical = ALIASES.get(f"{section}.{name}", f"{section}.{name}")
                if given is None:
                    continue
                if canonical in NOT_USED:
                    self._warn((key, name), f"{key}.{name} is not used: {NOT_USED[canonical]}")
                elif canonical in KEYS:
                    self._setting(canonical, given, (key, name))
                else:
                    self._unknown((key, name), f"{key}.{name} is no setting{_meant_setting(section, name)}")

    def _setting(self, canonical: str, value: Any, steps: Steps) -> None:  # noqa: ANN401 - whatever the file says
        self.draft.settings.append(Setting(KEYS[canonical], value, self._origin(steps)))

    def _service(self) -> str:
        """Of which of the two services `service` speaks."""
        service = self._document.content["service"]
        keys = set(service) if isinstance(service, dict) else set()
        if keys & {"discovery_interval", "monitoring_interval", "cleanup_interval"} or "agent_manager" in self._document.path.name:
            return "manager"
        return "api"

    def _nats(self, nats: dict[str, Any]) -> None:
        names = ("url", "user", "password", "tls_verify")
        for name in nats:
            if name not in names:
                self._unknown(("nats", name), f"nats.{name} is no setting{meant(name, names)}")
        url = nats.get("url") or "nats://"
        origin = self._origin(("nats", "url"))
        if not isinstance(url, str):
            self._blame(("nats", "url"), "nats.url must be text")
        elif url.partition("://")[0] in {"nats", "tls", "ws", "wss"}:
            self._warn(
                ("nats",),
                f"nats.url becomes bus.broker_url = {NATS_INSTEAD}, unless another file or ORCHESTRATOR_BROKER_URL says otherwise: the bus is "
                "Celery's broker and not NATS; nats.user, nats.password and nats.tls_verify would be those of NATS and are not used",
            )
            self.draft.settings.append(Setting("broker_url", NATS_INSTEAD, origin, weak=True))
        else:
            try:
                broker_url = _broker_url(url, nats)
            except ValueError:
                self._blame(("nats", "url"), "nats.url is no URL that can be read")
                return
            self._warn(("nats",), "nats.url becomes bus.broker_url, with nats.user, nats.password and nats.tls_verify in it")
            self.draft.settings.append(Setting("broker_url", broker_url, origin, weak=True))

    def _agents(self, value: Any) -> None:  # noqa: ANN401 - whatever the file says
        if not isinstance(value, list):
            self._blame(("agents",), "agents must be a list, one entry an agent")
            return
        if len(value) > AGENTS_MAX:
            self._blame(("agents",), f"agents has {len(value):,} entries, more than {AGENTS_MAX:,}")
            return
        for at, entry in enumerate(value):
            self._agent(entry, ("agents", at), f"agents[{at}]")

    def _plugins(self, value: Any) -> None:  # noqa: ANN401 - whatever the file says
        if not isinstance(value, dict):
            self._blame(("plugins",), "plugins must be tables: [plugins.<label>]")
            return
        for label, entry in value.items():
            called = f"plugins.{label}"
            if not isinstance(entry, dict):
                self._agent(entry, ("plugins", label), called)
                continue
            kind = entry.get("plugin_type")
            rest = {"id": label, "kind": "child"} | {key: given for key, given in entry.items() if key != "plugin_type"}
            if kind is None:
                problem = f'has no plugin_type, which must be "{SPAWNED}" for a plugin that is to be started'
                self._agent(rest, ("plugins", label), called, problem)
            elif kind == SPAWNED:
                self._agent(rest, ("plugins", label), called)
            else:
                hint = meant(str(kind), [SPAWNED])
                self._warn(
                    ("plugins", label, "plugin_type"), f'{called} has the plugin_type {shown(kind)}, and only "{SPAWNED}" is started{hint}'
                )

    def _agent(self, entry: Any, steps: Steps, called: str, problem: str = "") -> None:  # noqa: ANN401 - whatever the file says
        if not isinstance(entry, dict):
            self.draft.agents.append(Entry({}, self._origin(steps), {}, (f"{called} must be a table of keys and values",)))
            return
        made = agent_values(entry, camel=self._camel)
        subject = f"agent {entry['id']!r}" if isinstance(entry.get("id"), str) else called
        places = {name: self._origin((*steps, key)) for name, key in made.keys.items()}
        problems = [f"{subject}: {text}" for text in ([problem] if problem else []) + made.problems]
        for text in made.warnings:
            self._warn(steps, f"{subject}: {text}")
        self.draft.agents.append(Entry(made.values, self._origin(steps), places, tuple(problems)))

    def _origin(self, steps: Steps) -> Origin:
        return Origin(self._name, self._document.line(steps), _dotted(steps))

    def _blame(self, steps: Steps, message: str) -> None:
        self.draft.mistakes.append(Problem(self._origin(steps), message))

    def _warn(self, steps: Steps, message: str) -> None:
        self.draft.warnings.append(Problem(self._origin(steps), message))

    def _unknown(self, steps: Steps, message: str) -> None:
        (self._warn if self._camel else self._blame)(steps, message)


@dataclass(frozen=True)
class AgentValues:
    """The entry of an agent in the words of AgentSpec; `keys` are the words of the file."""

    values: dict[str, Any]
    keys: dict[str, str]
    problems: list[str]
    warnings: list[str]


def agent_values(entry: dict[str, Any], *, camel: bool = False) -> AgentValues:
    """An entry of `agents`, a plugin or the file of a package; what it does not know is a problem, in the world of camelCase a warning."""
    made = AgentValues({}, {}, [], [])
    for key, value in entry.items():
        name = AGENT_KEYS.get(key)
        if key == "ack_policy":
            if value is not None and value != "late":
                made.problems.append(f"ack_policy must be 'late', but is {shown(value)}: work that was accepted is done, or told as failed")
        elif name is None:
            (made.warnings if camel else made.problems).append(f"{key} is nothing that an agent can say{meant(key, AGENT_KEYS)}")
        elif value is None or (name == "port" and value == 0 and value is not False):
            continue  # not said; port 0 is an ephemeral one, as is none
        elif name in made.values:
            made.problems.append(f"{key} and {made.keys[name]} are the same thing, said twice")
        else:
            made.values[name], made.keys[name] = value, key
    kind = made.values.get("kind", _kind(made.values, camel=camel))
    made.values["kind"] = KINDS.get(kind, kind) if isinstance(kind, str) else kind
    if "id" in made.values:
        made.values.setdefault("type", str(made.values["id"]))
    else:
        made.problems.append("has no id")
    return made


def _kind(values: dict[str, Any], *, camel: bool) -> str:
    entry_point = values.get("entry_point")
    if isinstance(entry_point, str) and ENTRY_POINT_OF_CLASS.fullmatch(entry_point):
        return "native"
    if camel or "service_url" in values:
        return "http"
    return "child" if "executable" in values else "native"


def _camel(content: Any) -> bool:  # noqa: ANN401 - whatever the file says
    """Does it use the words of agents.config.json?"""
    tables = [content.get("runtime"), *(content["agents"] if isinstance(content.get("agents"), list) else ())]
    return any(isinstance(table, dict) and CAMEL & set(table) for table in tables)


def _broker_url(url: str, nats: dict[str, Any]) -> str:
    parts = urlsplit(url)
    user, password = (quote(str(nats[name]), safe="") if nats.get(name) else "" for name in ("user", "password"))
    netloc = parts.netloc
    if "@" not in netloc and (user or password):
        netloc = f"{user}{f':{password}' if password else ''}@{netloc}"
    query = parts.query
    if nats.get("tls_verify") is False and parts.scheme in TLS_SCHEMES:
        query = "&".join(filter(None, (query, "ssl_cert_reqs=CERT_NONE")))
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


def _meant_section(key: str) -> str:
    if f"engine.{key}" in KEYS:
        return f"; did you mean 'engine.{key}'?"
    by_field = next((canonical for canonical, name in KEYS.items() if name == key), None)
    return f"; did you mean {by_field!r}?" if by_field else meant(key, (*SECTIONS, *OTHER_SECTIONS))


def _meant_setting(section: str, name: str) -> str:
    names = [known.partition(".")[2] for known in (*KEYS, *ALIASES) if known.startswith(f"{section}.")]
    elsewhere = next((known for known in KEYS if name in {known.partition(".")[2], KEYS[known]}), None)
    near = meant(name, names, cutoff=0.8)
    return near or (f"; did you mean {elsewhere!r}?" if elsewhere else meant(name, names))


def _dotted(steps: Steps) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
