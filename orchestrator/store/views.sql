CREATE VIEW workflow_runs AS
SELECT r.workflow_id, r.run_id, r.type, r.queue, r.status, {time r.started_at} AS started_at, {time r.closed_at} AS closed_at,
       r.turn AS turns, r.history_events, r.attempt, r.priority, r.ready, r.parent_id, r.parent_run_id, r.continued_from, p.continued_as,
       r.first_run_id, {time r.deadline_at} AS deadline_at, r.turn_failures, CASE WHEN r.turn_failures > 0 THEN p.stuck END AS stuck,
       p.memo, p.search_attributes, p.result, p.failure
FROM runs r LEFT JOIN run_payloads p ON p.run_id = r.run_id;

CREATE VIEW workflow_events AS
SELECT r.workflow_id, t.run_id, t.turn, e.key AS position, {time t.at} AS at, e.value ->> 'kind' AS kind, e.value AS event, t.worker, t.build
FROM turns t JOIN runs r ON r.run_id = t.run_id CROSS JOIN {each t.events};

CREATE VIEW pending_activities AS
SELECT a.workflow_id, a.run_id, a.seq, a.workflow_type, a.type, a.queue, a.state, a.attempt, a.task, a.priority, {time a.scheduled_at} AS scheduled_at,
       {time a.started_at} AS started_at, {time a.due_at} AS due_at, {time a.deadline_at} AS deadline_at, a.worker,
       {time a.heartbeat_at} AS heartbeat_at, a.heartbeat_details, a.last_failure, a.losses, a.cancel_requested
FROM activities a;

CREATE VIEW pending_timers AS
SELECT r.workflow_id, t.run_id, t.kind, t.seq, {time t.fire_at} AS fire_at
FROM timers t JOIN runs r ON r.run_id = t.run_id
WHERE t.kind <> 'ready';

CREATE VIEW agent_status AS
SELECT a.agent_id, a.type, a.kind, a.status, a.desired, a.registered, {time a.registered_at} AS registered_at, a.reason, a.node, a.pid,
       {time v.last_heartbeat_at} AS last_heartbeat_at, v.current_work, v.metrics, v.resources, {time v.last_flush_at} AS last_flush_at,
       {time v.last_summary_at} AS last_summary_at, v.flush_timeouts, v.flush_overdue, a.restarts,
       {time a.drain_deadline_at} AS drain_deadline_at, {time a.started_at} AS started_at
FROM agents a LEFT JOIN agent_vitals v ON v.agent_id = a.agent_id;
