"""`shared_prefix: frozen`: what prompts begin with is computed by the base alone, the rest with the adapter.

Such a student needs its base for ever: an adapter that is merged would be in the prefix too. Needs no torch.
"""

from __future__ import annotations

from distillctl.backend import StudentRef
from distillctl.errors import Problem, StudentError

IN_JOB = "frozen.json"  # what the trainer leaves in its folder: the prefixes' token ids
IN_STUDENT = "frozen_prefixes"  # the same in `StudentRef.data`


def prefixes_in(student: StudentRef, vocabulary: int, context: int) -> list[list[int]]:
    """The token ids of the prefixes that the base alone computes. Raises StudentError where they are none."""
    found = student.data.get(IN_STUDENT, [])
    if not isinstance(found, list) or not all(
            isinstance(ids, list) and 0 < len(ids) < context
            and all(isinstance(token, int) and 0 <= token < vocabulary for token in ids) for ids in found):
        raise StudentError(Problem("are no lists of the base's tokens", field=f"student.{IN_STUDENT}",
                                   hint="train it again"))
    return found


def refuse(student: StudentRef, what: str) -> None:
    """Raises StudentError for a student whose prompts begin with what the base alone computes."""
    if student.data.get(IN_STUDENT):
        raise StudentError(Problem(
            f"{what}: the base alone computes what its prompts begin with (backends.local.shared_prefix: "
            "frozen)", hint="use predict or serve, or train it again with shared_prefix: auto"))
