"""What may come home as a student: the files that its reference names, and nothing that could be code."""

from __future__ import annotations

from pathlib import Path

from distillctl.backend import StudentRef
from distillctl.errors import BackendError, Problem
from distillctl.store.files import digest_file, safe_join

NEVER_IN_A_STUDENT = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".py", ".so"})


def check_student(student: StudentRef, folder: Path, backend: str) -> None:
    """Refuse a student of `backend` whose files in `folder` are not what its reference says, or could be
    code. Raises BackendError."""
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.suffix.lower() in NEVER_IN_A_STUDENT:
            problems.append(Problem("a student may hold no links, pickles or code", where=str(path)))
    root = safe_join(folder, student.path or ".")
    named = [(safe_join(root, name), digest) for name, digest in student.files.items()]
    named += [(safe_join(folder, name), digest) for name, digest in student.answers.items()]
    for path, digest in named:
        if not path.is_file():
            problems.append(Problem("is missing", where=str(path)))
        elif digest_file(path) != digest:
            problems.append(Problem("has another digest than its reference says", where=str(path)))
    if student.backend != backend:
        problems.append(Problem(f"the reference must name backend {backend!r}", value=student.backend))
    if problems:
        raise BackendError.of(problems)
