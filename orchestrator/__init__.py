"""Durable workflows and agent fleets on Celery: the engine, its services and its commands.

Who may import whom, from the ground up; imports point down or sideways, never up, and stand at the top of a module:

    schemas                                       the words; imports nothing of ours
    errors, clock, crashpoints                    what can go wrong; time and chance; where a test may kill us
    core                                          pure decisions: no I/O, no clock, no SQL, no Celery
    store, workflow, activity, agent, telemetry, servers, development_servers
    settings, dispatch
    client, fleet, ingest                         services
    celery, canvas, backend                       where Celery is met
    workers, beat                                 processes; they do not know each other
    api, cli, testing, dev                        the roof

`workflow`, `activity` and `agent` are what authors import: they need neither a database nor a broker. Each outside thing has one door
(SQL: `store`; time: `clock`; the environment: `settings`; and so on). `tests/test_architecture.py` holds the table and enforces it.
"""
