"""A child agent to be copied: change the upper part of `agent.py`, and `agent.toml`."""
