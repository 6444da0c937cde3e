"""The reference of settings: every one is in it, as its model describes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.agents import AgentSpec
from schemas.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_in_step_with_the_models():
    done = subprocess.run([sys.executable, "docs/settings_table.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "a setting has changed: run `python docs/settings_table.py`"


@pytest.mark.parametrize("model", [Settings, AgentSpec])
def test_every_setting_has_a_meaning(model):
    assert [name for name, field in model.model_fields.items() if not field.description] == []


@pytest.mark.req("S1-26")
def test_the_page_says_how_keys_are_changed():
    section = (ROOT / "docs" / "configuration.md").read_text().partition("## Secrets, and how to change them")[2].partition("\n## ")[0]
    assert re.search(r"MANAGER_TOKEN=new,old", section)
    assert "jwt_secret" in section
