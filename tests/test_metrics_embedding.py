"""Likeness by static embeddings: a tiny model of model2vec, saved and loaded as a real one is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from model2vec import StaticModel
from support.evaluating import predictions, text
from support.recipe import TEXT, write_recipe
from tokenizers import Tokenizer, models, pre_tokenizers

from distillctl.cli.main import cli
from distillctl.errors import RecipeError
from distillctl.evaluate import metrics
from distillctl.evaluate.text_scores import embedding, rouge_l
from distillctl.recipe.load import load_recipe

WORDS = {"[UNK]": (0, 0, 0), "big": (1, 0, 0), "large": (1, 0.05, 0), "dog": (0, 1, 0), "tax": (0, 0, 1),
         "tiny": (-1, 0, 0)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("static")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    StaticModel(np.array(list(WORDS.values()), np.float32), tokenizer).save_pretrained(folder)
    return str(folder)


def test_words_that_mean_the_same_are_alike(model: str) -> None:
    pair = ("big dog", "large dog")
    assert embedding(*pair, model) > 0.99
    assert rouge_l(*pair) == 0.5
    assert embedding("big dog", "tax", model) == 0.0


def test_likeness_stays_between_0_and_1(model: str) -> None:
    assert embedding("big", "tiny", model) == 0.0
    assert embedding("", "big", model) == 0.0
    assert embedding("big", "big", model) == pytest.approx(1.0)


def test_a_recipe_scores_by_it_and_the_mean_is_told(model: str) -> None:
    task = text(similarity="embedding", embedding_model=model, min_similarity=0.9)
    expected = [{"text": "large dog"}] * 4
    scored = metrics.score(task, predictions(task, ["big dog", "tax", None, "dog large"]), expected)
    assert scored.right == [True, False, False, True]
    found = metrics.text_scores(task, scored, expected, None).embedding
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert task.how_scored("text") == "a cosine of embeddings of at least 0.9"


@pytest.mark.parametrize("lines", ["  similarity: embedding\n", "  embedding_model: some/model\n"])
def test_similarity_and_model_need_each_other(tmp_path: Path, lines: str) -> None:
    with pytest.raises(RecipeError, match="need each other"):
        load_recipe(write_recipe(tmp_path, TEXT.replace("  kind: text\n", "  kind: text\n" + lines)))


def test_a_model_that_cannot_be_had_is_found_before_anything_is_asked(
        workspace: Path, model: str, tmp_path: Path) -> None:
    def problems(folder: str) -> list[str]:
        made = CliRunner().invoke(cli, [
            "plan", "recipes/query_rewriting.yaml", "--backend", "openai", "--json", "--set",
            "task.similarity=embedding", "--set", f"task.embedding_model={folder}"])
        return [one["field"] for one in json.loads(made.stdout)["problems"]]

    assert "task.embedding_model" in problems(str(tmp_path))
    assert "task.embedding_model" not in problems(model)


def test_a_task_without_it_is_named_as_it_was_before() -> None:
    assert "embedding_model" not in text().spec.model_dump()
