"""A greeting that waits for approval: `orchestrator dev --include hello` in this folder, then `python hello.py` beside it."""

from __future__ import annotations

from datetime import timedelta

from orchestrator import activity, workflow
from orchestrator.client import Client


@activity.defn
def compose(name: str) -> str:
    """Side effects would go here."""
    return f"Hello {name}"


@workflow.defn
class Greeting:
    """Compose, wait for approval, answer."""

    def __init__(self) -> None:
        self.approved = False

    @workflow.run
    async def run(self, name: str) -> str:
        """Greet somebody."""
        text = await workflow.execute_activity(compose, name, start_to_close_timeout=timedelta(seconds=10))
        await workflow.wait_condition(lambda: self.approved)
        return text

    @workflow.signal
    def approve(self) -> None:
        """Let it go."""
        self.approved = True


def main() -> None:
    """Start one, approve it, print the result."""
    with Client() as client:
        handle = client.start_workflow(Greeting.run, "Ada")
        handle.signal(Greeting.approve)
        print(handle.result(timeout=30))


if __name__ == "__main__":
    main()
