"""Watches the machine that it runs on; a child agent."""
