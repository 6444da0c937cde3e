"""Whatever a file says, it is read or refused in sentences; nothing else ever comes out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.configuration import read
from orchestrator.configuration.keys import AGENT_KEYS, ALIASES, KEYS
from orchestrator.discovery import in_folders

WORDS = sorted(
    {part for key in (*KEYS, *ALIASES) for part in key.split(".")}
    | {*AGENT_KEYS, "agents", "plugins", "nats", "core", "service", "plugin_type"}
)
KEY = st.sampled_from(WORDS) | st.text(max_size=5)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["nats://x", "child", "agent"])
)
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=4), max_leaves=20)
FILE = st.dictionaries(KEY, VALUE, max_size=5)


@settings(max_examples=300)
@given(content=FILE)
@example(content={"nats": {"url": "redis://[", "user": "x"}})
@example(content={"nats": {"url": "redis://h:port"}})
@example(content={"agents": [{"id": "a", "ack_policy": []}]})
@example(content={"agents": [{"id": "a", "kind": {}}]})
@example(content={"plugins": {"a": {"plugin_type": ["agent"]}}})
@example(content={"plugins": {"": {"plugin_type": "agent", "executable": "x"}}})
def test_a_file_is_read_or_refused_in_sentences(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fleet.json", "agents.config.json", "agent_manager.yaml"):
            path = Path(folder) / name
            path.write_text(json.dumps(content))
            found = read([path])
            for problem in (*found.mistakes, *found.problems, *found.warnings):
                assert "\n" not in problem.sentence
                assert len(problem.sentence) < 1_000


@settings(max_examples=200)
@given(content=st.dictionaries(st.sampled_from(sorted(AGENT_KEYS)) | st.text(max_size=5), VALUE, max_size=6))
def test_a_package_is_read_or_refused_in_sentences(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package").mkdir()
        (Path(folder) / "package" / "agent.json").write_text(json.dumps(content))
        found = in_folders([Path(folder)], skip=())
        assert len(found.agents) + bool(found.problems) == 1


@settings(max_examples=300)
@given(text=st.text(alphabet="ab:[]{}&*!-,'\"#|>\n\t =.1\x00é", max_size=60))
def test_any_text_is_read_or_refused_in_sentences(text):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fleet.yaml", "fleet.toml", "fleet.json"):
            path = Path(folder) / name
            path.write_text(text)
            found = read([path])
            assert all("\n" not in problem.sentence for problem in (*found.mistakes, *found.problems, *found.warnings))
