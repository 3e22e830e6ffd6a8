"""What the stages of one run share: the recipe, where things lie, and what determines each part.

The `*_parts` are what stage keys are made of. What only changes how fast or how carefully something is
done (concurrency, rate limits, time-outs) is not in them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distillctl import registry, secrets
from distillctl.backend import Backend, BackendEnv
from distillctl.budget import Budget
from distillctl.progress import Reporter, Silent
from distillctl.recipe.load import LoadedRecipe
from distillctl.recipe.models import Recipe, RecordedTeacher, SplitFiles, TrainSpec
from distillctl.store.files import digest_file, digest_json, digest_tree, read_jsonl
from distillctl.store.ledger import Ledger
from distillctl.store.rundir import RunDir
from distillctl.store.workspace import Workspace, slug
from distillctl.task import Task
from distillctl.types import JSON, Example, Prediction, Split

LearnerRole = str
"""Who is trained: "student", "baseline", or a variant of the student (`variants.py`)."""
_NOT_IDENTITY = {"batch", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout",
                 "max_failures"}
# fields that came later, by provider: where they say nothing, a run keeps the name that it had before them
_LATER: dict[str, dict[str, JSON]] = {"openai": {"collection": None},
                                      "anthropic": {"collection": None, "structured_output": False}}


@dataclass(frozen=True)
class Learner:
    """Something that is trained in this run: the student, a variant of it, or the baseline beside it."""

    role: LearnerRole
    backend: str
    settings: Mapping[str, Any]
    model: str
    train: TrainSpec
    version: int  # of the backend's training
    aside: frozenset[str] = frozenset()  # settings that do not change what training gives
    answers_in_job: bool = False  # whether its job is to answer dev and test too
    revision: str | None = None  # of the model on the Hub

    def parts(self) -> dict[str, JSON]:
        """What determines the trained model, beside its training rows."""
        settings = {name: value for name, value in self.settings.items() if name not in self.aside}
        return {"backend": self.backend, "settings": settings, "model": self.model,
                "train": self.train.model_dump(mode="json", exclude={"seeds"}),
                "training version": self.version, **({"revision": self.revision} if self.revision else {})}


class Detached(Exception):
    """The run was left on purpose while paid work goes on; the message says how to come back."""


@dataclass(frozen=True)
class Options:
    """How a run is to go on, beside its recipe.

    offline: send nothing. detach: leave once a teacher's batch or the training job is submitted. resubmit:
    make a new job where the service lost the old one.
    """

    offline: bool = False
    detach: bool = False
    resubmit: bool = False


@dataclass
class Context:
    """One run being worked on."""

    loaded: LoadedRecipe
    workspace: Workspace
    options: Options = Options()
    reporter: Reporter = field(default_factory=Silent)
    sharing: tuple[str, ...] = ()
    """The other runs of a sweep, which share this one's budget."""

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def task(self) -> Task:
        return self.loaded.task

    @cached_property
    def rundir(self) -> RunDir:
        return self.workspace.run_dir(self.recipe.name, self.run_name)

    @cached_property
    def run_name(self) -> str:
        """The run's folder: what the recipe and its data name, unless the run was found on disk."""
        return self.name_of_recipe()

    def name_of_recipe(self) -> str:
        """`<backend>-<model>-<digest>`: of everything that determines the student, so that new
        thresholds or another report go on in the same run, and another student gets its own."""
        learner = self.learner("student")
        identity = digest_json({"data": self.data_parts(), "teacher": self.teacher_parts(),
                                "student": learner.parts()})
        model = "" if learner.model == learner.backend else f"{slug(learner.model)}-"
        return f"{learner.backend}-{model}{identity.removeprefix('sha256:')[:8]}"

    @property
    def run_id(self) -> str:
        """The run's name in the ledger."""
        return f"{self.recipe.name}/{self.run_name}"

    @cached_property
    def ledger(self) -> Ledger:
        return self.workspace.ledger()

    def budget(self) -> Budget:
        """What may still be spent, here and in the runs that share the budget."""
        return Budget.of(self.ledger, (self.run_id, *self.sharing), self.recipe.budget.max_usd)

    # --- learners and their backends ---

    def learner(self, role: LearnerRole) -> Learner:
        recipe = self.recipe
        backend = recipe.baseline if role == "baseline" else recipe.backend
        if backend is None:
            raise ValueError(f"the recipe has no {role}")
        seed = int(role.removeprefix("seed-")) if role.startswith("seed-") else recipe.train.seed
        train = recipe.train.model_copy(update={"seed": seed, "seeds": []})
        settings = recipe.backends.get(backend, {})
        can = registry.load(backend).capabilities
        own = settings.get("model") or not can.untrained_answers  # not the recipe's student
        model = str(settings.get("model") or backend) if own else recipe.student.model
        answers = bool(can.answers_setting and settings.get(can.answers_setting))
        return Learner(role, backend, settings, model, train, can.training_version, can.settings_aside,
                       answers, None if own else recipe.student.revision)

    def roles(self) -> tuple[LearnerRole, ...]:
        """Who is trained in this run, variants of the student aside."""
        return ("student", "baseline") if self.recipe.baseline else ("student",)

    @cached_property
    def _backends(self) -> dict[str, Backend]:
        return {}

    def backend(self, role: LearnerRole) -> Backend:
        """The learner's backend, opened once. Raises RecipeError, MissingExtra, BackendError."""
        name = self.learner(role).backend
        if name not in self._backends:
            env = BackendEnv(workspace=self.workspace.private / name, secret=secrets.value,
                             clock=time.time, offline=self.options.offline, run=self.run_id,
                             tell=self.reporter.note, budget_left=self.budget_left)
            self._backends[name] = registry.open_backend(
                name, self.recipe.backends.get(name, {}), env, self.loaded)
        return self._backends[name]

    def budget_left(self) -> float:
        """US dollars that may still be spent."""
        return self.budget().left

    @property
    def has_base(self) -> bool:
        """Whether the student starts from a language model that can answer untrained."""
        return registry.load(self.recipe.backend).capabilities.untrained_answers

    # --- what determines a stage ---

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        return {}

    def _digest(self, relative: str) -> str:
        if relative not in self._file_digests:
            path = self.loaded.resolve(relative)
            self._file_digests[relative] = digest_file(path) if path.is_file() else "missing"
        return self._file_digests[relative]

    def data_parts(self) -> dict[str, JSON]:
        data = self.recipe.data
        files = data.examples
        names = list(files.model_dump().values()) if isinstance(files, SplitFiles) else [files]
        if isinstance(data.split, str):
            names.append(data.split)
        return {"task": self.recipe.task.model_dump(mode="json"),
                "data": data.model_dump(mode="json", exclude={"pii"}),
                "files": [self._digest(name) for name in names], **self._embedder()}

    def _embedder(self) -> dict[str, JSON]:
        """The files of a local embedding model, which scores the answers."""
        folder = Path(getattr(self.recipe.task, "embedding_model", None) or "")
        return {"embedder": digest_tree(folder)} if folder.name and folder.is_dir() else {}

    def teacher_parts(self) -> dict[str, JSON]:
        teacher = self.recipe.teacher
        spec = teacher.model_dump(mode="json", exclude=_NOT_IDENTITY)
        parts: dict[str, JSON] = {"teacher": {
            name: value for name, value in spec.items()
            if name not in _LATER.get(teacher.provider, {}) or value != _LATER[teacher.provider][name]}}
        if isinstance(teacher, RecordedTeacher):
            parts["recording"] = self._digest(teacher.outputs)
        return parts

    def answering_parts(self) -> dict[str, JSON]:
        only_scoring = {"base", "cascade", "judge", "slices"}
        return {"evaluate": self.recipe.evaluate.model_dump(mode="json", exclude=only_scoring)}

    def judge_parts(self) -> dict[str, JSON]:
        judge = self.recipe.evaluate.judge
        return {"judge": judge and judge.model_dump(
            mode="json", exclude={*_NOT_IDENTITY, "api_key_env", "min_agreement", "price"})}

    def scoring_parts(self) -> dict[str, JSON]:
        recipe = self.recipe
        judge = recipe.evaluate.judge
        return {**({"judge": judge.min_agreement} if judge else {}),
                "verdict": recipe.verdict.model_dump(mode="json"),
                "evaluate": recipe.evaluate.model_dump(mode="json", include={"cascade", "slices"}),
                "economics": recipe.economics.model_dump(mode="json")}

    # --- what earlier stages left ---

    def path(self, name: str) -> Path:
        return self.rundir.path / name

    def examples(self, split: Split) -> list[Example]:
        return [Example.from_json(row) for row in read_jsonl(self.path(f"data/{split}.jsonl"))]

    def predictions(self, who: str, split: Split) -> list[Prediction]:
        rows = read_jsonl(self.path(f"predictions/{who}.{split}.jsonl"))
        return [Prediction.from_json(row) for row in rows]


def machine() -> str:
    """The machine in words, for beside a latency: processor, cores, GPU where there is one."""
    from distillctl.doctor import gpu_name, processor_name

    words = f"{processor_name()}, {os.cpu_count()} cores"
    gpu = gpu_name()
    return f"{words}, {gpu}" if gpu else words
