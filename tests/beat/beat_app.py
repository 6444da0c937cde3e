"""What `celery -A tests.beat.beat_app beat` runs in real processes: our application with one quick entry, sent to the default queue."""

from __future__ import annotations

from orchestrator.celery import app

app.conf.beat_schedule = {"tock": {"task": "tock", "schedule": 0.4}}
