"""What settings are called in configuration files; law: each setting has one canonical key, other systems' names for it are aliases.

A key is `section.name`. Settings that are not in the table below are `engine.<their name>`.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.agents import AgentSpec
from schemas.settings import Settings

_NAMED: Mapping[str, str] = {
    "environment": "environment",
    "api.name": "api_name",
    "api.version": "api_version",
    "api.host": "api_host",
    "api.port": "api_port",
    "api.log_level": "api_log_level",
    "manager.name": "manager_name",
    "manager.manager_url": "manager_url",
    "manager.log_level": "log_level",
    "manager.discovery_interval_s": "discovery_interval_s",
    "manager.monitoring_interval_s": "monitoring_interval_s",
    "manager.cleanup_interval_s": "cleanup_interval_s",
    "manager.heartbeat_timeout_s": "heartbeat_timeout_s",
    "manager.heartbeat_retention_s": "heartbeat_retention_s",
    "manager.registry_ttl_s": "registry_ttl_s",
    "manager.package_folders": "package_folders",
    "manager.package_skip": "package_skip",
    "manager.package_enabled": "package_enabled",
    "manager.deterministic_ports": "deterministic_ports",
    "manager.agent_port_base": "agent_port_base",
    "bus.broker_url": "broker_url",
    "bus.result_backend": "result_backend",
    "bus.visibility_timeout_s": "visibility_timeout_s",
    "bus.restore_interval_s": "restore_interval_s",
    "bus.restore_throttle": "restore_throttle",
    "database.url": "database_url",
    "database.pool_size": "database_pool_size",
    "database.max_overflow": "database_max_overflow",
    "business_database.url": "business_database_url",
    "auth.mode": "auth_mode",
    "auth.manager_token": "manager_token",
    "auth.jwt_secret": "jwt_secret",
    "auth.jwt_ttl_s": "jwt_ttl_s",
    "runtime.log_directory": "log_directory",
    "runtime.fleet_queue": "fleet_queue",
    "runtime.drain_timeout_s": "agent_drain_s",
    "runtime.drain_override_s": "drain_override_s",
    "runtime.terminate_grace_s": "terminate_grace_s",
    "runtime.start_timeout_s": "start_timeout_s",
    "runtime.restart_mode": "restart_mode",
    "runtime.max_restarts": "restarts_max",
    "runtime.restart_window_s": "restart_window_s",
    "runtime.tick_interval_s": "host_tick_s",
    "runtime.flush_timeout_s": "flush_timeout_s",
    "runtime.execute_wait_s": "execute_wait_s",
    "runtime.remote_control_s": "remote_control_s",
    "runtime.console_heartbeats": "console_heartbeats",
    "runtime.agent_secrets": "agent_secrets",
    "idempotency.cache_max_size": "idempotency_cache_max",
    "idempotency.cache_ttl_s": "idempotency_cache_s",
    "idempotency.retention_s": "idempotency_retention_s",
}

KEYS: Mapping[str, str] = {
    **_NAMED,
    **{f"engine.{name}": name for name in Settings.model_fields if name not in {*_NAMED.values(), "config"}},
}
"""Canonical key -> field of Settings."""

SECTIONS: tuple[str, ...] = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS if "." in key))

ALIASES: Mapping[str, str] = {
    "runtime.managerUrl": "manager.manager_url",
    "runtime.logDirectory": "runtime.log_directory",
    "runtime.drainTimeout": "runtime.drain_timeout_s",
    "runtime.drainTimeoutSeconds": "runtime.drain_timeout_s",
    "runtime.agent_drain_s": "runtime.drain_timeout_s",
    "manager.discovery_interval": "manager.discovery_interval_s",
    "manager.monitoring_interval": "manager.monitoring_interval_s",
    "manager.cleanup_interval": "manager.cleanup_interval_s",
    "idempotency.lease_s": "engine.lease_s",
}
"""What other systems call them, with `service` of their files already read as `api` or `manager`."""

NOT_USED: Mapping[str, str] = {
    "manager.version": "the version of the package is told instead",
    "core": "reflexes have a file of their own",
}
"""Keys of other systems that are accepted and change nothing, with the reason."""

AGENT_ALIASES: Mapping[str, str] = {
    "agent_id": "id",
    "agent_type": "type",
    "agent_flush_interval_s": "flush_interval_s",
    "entryPoint": "entry_point",
    "serviceUrl": "service_url",
    "drainTimeout": "drain_timeout_s",
    "drainTimeoutSeconds": "drain_timeout_s",
}
AGENT_KEYS: Mapping[str, str] = {**{name: name for name in AgentSpec.model_fields}, **AGENT_ALIASES}
"""What the entry of an agent may say -> field of AgentSpec."""

KINDS: Mapping[str, str] = {"celery": "native", "jlp": "child"}
"""What other systems call the kinds of agents."""

CAMEL = {key.rpartition(".")[2] for key in (*ALIASES, *AGENT_ALIASES) if key.lower() != key}
"""Keys by which a file is known to come from the world of `agents.config.json`."""
