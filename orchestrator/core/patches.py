"""Changes of workflow code that open runs survive; law: a run takes one side of a change, once and for good, and its history says which.

`patched(id)` is true in a turn that is taken now, and leaves a mark; in a replay it is true if the mark is there. Who is sure that no open run
is older than the change says `deprecate_patch(id)`, and deletes that too once no open run has a mark without it.

| in a replay, the history has | `patched`      | `deprecate_patch` | no call    |
|------------------------------|----------------|-------------------|------------|
| no mark                      | false, for good | fine              | fine       |
| a mark                       | true           | fine              | divergence |
| a mark of a deprecated patch | true           | fine              | fine       |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from orchestrator.errors import InvalidArgument
from schemas.history import Close, Command, PatchMarked

PATCHES_MAX = 1_000  # that one run may ask for


class Owner(Protocol):
    """What patches ask of the run they belong to."""

    commands: dict[tuple[str, int | str], Command]
    replaying: bool


class Patches:
    """The patches of one run: those its history has marks of, and what was answered."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._marked: set[str] = set()
        self._answers: dict[str, bool] = {}

    def recall(self, commands: Iterable[Command | Close]) -> None:
        """A turn that is about to be replayed has these marks."""
        self._marked.update(command.id for command in commands if isinstance(command, PatchMarked))

    def ask(self, patch_id: str, *, deprecated: bool = False) -> bool:
        """Whether this run takes the new side; leaves a mark if it does."""
        if patch_id not in self._answers:
            if len(self._answers) >= PATCHES_MAX:
                message = f"one run can ask for {PATCHES_MAX:,} patches; an id must not be made from what changes"
                raise InvalidArgument(message)
            answer = self._answers[patch_id] = not self._owner.replaying or patch_id in self._marked
            if answer:
                self._owner.commands["patch", patch_id] = PatchMarked(patch_id, deprecated)
        return self._answers[patch_id]


def expected(then: Sequence[Command | Close], found: Sequence[Command]) -> list[Command | Close]:
    """The commands of a recorded turn without the marks of deprecated patches that the code does not mention any more."""
    mentioned = {command.id for command in found if isinstance(command, PatchMarked)}
    return [c for c in then if not (isinstance(c, PatchMarked) and c.deprecated and c.id not in mentioned)]
