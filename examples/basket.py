"""An order whose parcels are child workflows: `orchestrator dev --include basket` in this folder, then `python basket.py` beside it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from orchestrator import activity, workflow
from orchestrator.client import Client
from orchestrator.errors import ChildWorkflowError


@activity.defn
def ship(parcel: str) -> str:
    """Side effects would go here."""
    if parcel == "piano":
        raise ValueError("too heavy")
    return f"{parcel} shipped"


@workflow.defn
async def deliver(parcel: str) -> str:
    """One parcel: a workflow of its own, with its own history, which may take weeks."""
    return await workflow.execute_activity(
        ship, parcel, start_to_close_timeout=timedelta(seconds=10), retry_policy=workflow.RetryPolicy(maximum_attempts=2)
    )


@workflow.defn
class Basket:
    """All parcels at once; one that cannot be delivered does not hold up the others."""

    @workflow.run
    async def run(self, parcels: list[str]) -> list[str]:
        """Deliver, and say what became of each."""
        return await asyncio.gather(*(self.one(parcel) for parcel in parcels))

    async def one(self, parcel: str) -> str:
        """The child's result, or why there is none."""
        order = workflow.info().workflow_id
        try:
            # If this run closes early, its children are terminated: parent_close_policy says otherwise if you want that.
            return await workflow.execute_child_workflow(deliver, parcel, id=f"{order}/{parcel}")
        except ChildWorkflowError as error:
            return f"{parcel} came back: {error.cause}"


def main() -> None:
    """Start one and print what became of it."""
    with Client() as client:
        for line in client.execute_workflow(Basket.run, ["lamp", "piano", "shelf"]):
            print(line)


if __name__ == "__main__":
    main()
