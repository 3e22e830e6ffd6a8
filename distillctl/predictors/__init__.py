"""Predictors: whatever answers prompts. SDKs are imported only where a recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillctl import secrets
from distillctl.errors import MissingExtra, Problem, UsageError
from distillctl.prices import PricePoint, halved, price_in_recipe, price_of
from distillctl.recipe.models import AnthropicTeacher, JudgeSpec, OpenAITeacher, Recipe, RecordedTeacher
from distillctl.recipe.provider_schema import openai_strict
from distillctl.secrets import Secret
from distillctl.types import Predictor

if TYPE_CHECKING:
    from distillctl.predictors.batch import BatchService

LiveTeacher = OpenAITeacher | AnthropicTeacher


def open_teacher(spec: LiveTeacher | RecordedTeacher, resolve: Callable[[str], Path],
                 json_schema: Mapping[str, Any] | None = None) -> Predictor:
    """The recipe's teacher; sends nothing yet. resolve: a path of the recipe, as it lies on disk.
    json_schema: of the task's answers, for a teacher with `structured_output`.

    Raises MissingExtra, UsageError (no key), DataError (a bad recording).
    """
    if isinstance(spec, RecordedTeacher):
        from distillctl.predictors.recorded import RecordedPredictor

        return RecordedPredictor(resolve(spec.outputs), spec.model)
    predictor = _live(spec, "teacher", json_schema if spec.structured_output else None)
    if spec.collection is not None:  # answers are kept by identity
        predictor.identity = {**predictor.identity, "collection": spec.collection}
    return predictor


def open_judge(spec: JudgeSpec) -> Predictor:
    """The recipe's judge; sends nothing yet. Raises MissingExtra, UsageError (no key)."""
    return _live(spec, "evaluate.judge", None)


def _live(spec: LiveTeacher | JudgeSpec, block: str, json_schema: Mapping[str, Any] | None) -> Predictor:
    _require(spec.provider, block)
    key = _key(spec, block)
    if spec.provider == "anthropic":
        from distillctl.predictors.anthropic_chat import AnthropicPredictor

        return AnthropicPredictor(
            spec.model, api_key=key, base_url=spec.base_url, temperature=spec.temperature,
            max_tokens=spec.max_tokens, timeout=spec.timeout, price=teacher_price(spec),
            json_schema=json_schema)
    from distillctl.predictors.openai_chat import OpenAIPredictor

    return OpenAIPredictor(
        spec.model, base_url=spec.base_url, api_key=key, temperature=spec.temperature,
        max_tokens=spec.max_tokens, seed=spec.seed, timeout=spec.timeout, price=teacher_price(spec),
        json_schema=json_schema)


def model_warnings(recipe: Recipe, json_schema: Mapping[str, Any] | None) -> list[str]:
    """What a user should know of how teacher and judge will be asked."""
    found = []
    teacher, judge = recipe.teacher, recipe.evaluate.judge
    if isinstance(teacher, OpenAITeacher) and teacher.structured_output and json_schema is not None:
        _, problems = openai_strict(json_schema)
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        if problems:
            found.append("teacher.structured_output: OpenAI's strict mode does not take the task's JSON "
                         "Schema, so it is sent as a wish, which answers may break: "
                         f"{'; '.join(problems[:5])}{more}")
    if judge and judge.model == teacher.model:
        found.append("evaluate.judge.model is the teacher's own: models tend to prefer their own texts")
    return found


def open_batches(spec: LiveTeacher, predictor: Predictor, folder: Path,
                 tokens: Callable[[], Mapping[str, str]]) -> BatchService:
    """The batches of a live teacher, opened as `predictor`; sends nothing yet. folder: where it keeps what
    it must know after a crash. tokens: those of the batches that the ledger knows, by the batches' ids."""
    price = teacher_price(spec, batch=True)
    key = None if spec.api_key_env is None else _key(spec, "teacher")
    if isinstance(spec, AnthropicTeacher):
        from distillctl.predictors.anthropic_batch import AnthropicBatches

        return AnthropicBatches(predictor, key, price, folder, tokens)
    from distillctl.predictors.openai_batch import OpenAIBatches

    return OpenAIBatches(predictor, key, price)


def teacher_price(spec: LiveTeacher | JudgeSpec, *, batch: bool = False) -> PricePoint | None:
    """The price of a live teacher or of a judge: the recipe's, else the table's, else None. batch: of what
    it is asked in batches."""
    if spec.price is not None:
        own = price_in_recipe(spec.price)
        return halved(own) if batch else own
    return price_of(spec.model, None if spec.base_url else spec.provider, spec.base_url, batch=batch)


def _require(package: str, block: str) -> None:
    if find_spec(package) is None:
        raise MissingExtra(Problem(
            f"`provider: {package}` needs the package {package}, which is not installed",
            field=f"{block}.provider", hint=f"pip install 'distillctl[{package}]'"))


def _key(spec: LiveTeacher | JudgeSpec, block: str) -> Secret | None:
    if spec.api_key_env is None:
        return None
    key = secrets.get(spec.api_key_env)
    if key is None:
        own = ", or `api_key_env: null` for a server of your own without a key" if (
            spec.provider == "openai") else ""
        without = ("; without any key, `provider: recorded` with `outputs: FILE.jsonl` replays answers that "
                   'you have ({"id", "output"} a line)') if block == "teacher" else ""
        raise UsageError(Problem(
            f"the environment variable {spec.api_key_env} is not set", field=f"{block}.api_key_env",
            hint=f"export {spec.api_key_env}=...{own}{without}"))
    return key
