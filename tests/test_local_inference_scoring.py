"""Label scores: exact for any label set and in any batch, with the shared beginning computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.threads import torch_threads
from support.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from support.tiny_students import STATEFUL

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local import scoring  # noqa: E402
from distillctl_local.encode import Encoder  # noqa: E402
from distillctl_local.scoring import LabelScorer, build_trie, plain_scores  # noqa: E402

ENCODER = Encoder(tiny_tokenizer())
APART = ("code", "docs", "skip")
NESTED = ("yes", "yesterday", "no", "nobody", "n", "yes.")
QUESTIONS = ("why?", "where is the file that reads the settings, and who calls it?", "what", "who is it",
             "which of them")


def prompts(texts: tuple[str, ...] = QUESTIONS, about: str = "Say where to look it up: ") -> list[list[int]]:
    return [ENCODER.prompt([{"role": "user", "content": about + text}]) for text in texts]


def answers(labels: tuple[str, ...]) -> list[list[int]]:
    return [ENCODER.completion(label) for label in labels]


def plainly(model, rows: list[list[int]], labels: tuple[str, ...]) -> torch.Tensor:
    return torch.stack([plain_scores(model, row, answers(labels)) for row in rows]).log_softmax(-1)


@contextmanager
def counted(model) -> Iterator[list[int]]:
    """How many tokens each pass through the model has."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True)
    yield sizes
    hook.remove()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [APART, NESTED], ids=["apart", "nested"])
def test_scores_are_those_of_each_label_computed_by_itself(family: str, labels: tuple[str, ...]) -> None:
    model = tiny_model(family)
    assert close(LabelScorer(model, answers(labels)).log_probabilities(prompts()),
                 plainly(model, prompts(), labels))


@pytest.mark.parametrize("family", STATEFUL)
def test_a_model_that_keeps_a_state_scores_right(family: str) -> None:
    model = tiny_model(family, **STATEFUL[family])
    assert close(LabelScorer(model, answers(NESTED)).log_probabilities(prompts()),
                 plainly(model, prompts(), NESTED))


@pytest.mark.parametrize("family", ["stablelm", "nemotron", "opt"])
def test_a_family_that_keeps_its_attention_to_itself_scores_right(family: str) -> None:
    model = tiny_model(family, word_embed_proj_dim=32)
    assert close(LabelScorer(model, answers(NESTED)).log_probabilities(prompts()),
                 plainly(model, prompts(), NESTED))


def test_probabilities_add_up_to_one() -> None:
    found = LabelScorer(tiny_model("llama"), answers(NESTED)).log_probabilities(prompts())
    assert close(found.exp().sum(-1), torch.ones(len(found)))


def test_a_prompt_scores_alone_as_in_a_batch() -> None:
    scorer = LabelScorer(tiny_model("llama"), answers(APART))
    together = scorer.log_probabilities(prompts())
    alone = torch.cat([scorer.log_probabilities([one]) for one in prompts()])
    assert close(together, alone)
    assert (together.argmax(-1) == alone.argmax(-1)).all()


def test_many_short_passes_score_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    whole = LabelScorer(model, answers(APART)).log_probabilities(prompts())
    monkeypatch.setattr(scoring, "LOGITS", 1)
    assert close(LabelScorer(model, answers(APART)).log_probabilities(prompts()), whole)


def test_what_prompts_share_is_computed_once() -> None:
    model = tiny_model("llama")
    scorer = LabelScorer(model, answers(APART))
    shared = len(ENCODER.prompt([{"role": "user", "content": "Say where to look it up: "}])) // 2
    with counted(model) as sizes:
        scorer.log_probabilities(prompts())
        first = sum(sizes)
        scorer.log_probabilities(prompts())
    assert sum(sizes) - first <= first - shared


def test_single_prompts_find_out_what_they_share() -> None:
    model = tiny_model("llama")
    scorer = LabelScorer(model, answers(APART))
    rows = prompts(("why?", "who?", "how?"))
    scorer.log_probabilities(rows[:1])
    scorer.log_probabilities(rows[1:2])
    with counted(model) as sizes:
        found = scorer.log_probabilities(rows[2:])
    assert sum(sizes) < len(rows[2]) // 2 + build_trie(answers(APART)).nodes
    assert close(found, plainly(model, rows[2:], APART))


def test_kinds_of_prompts_that_alternate_keep_what_each_shares() -> None:
    model = tiny_model("llama")
    scorer = LabelScorer(model, answers(APART))
    other = prompts(about="A wholly different task with a long beginning of its own: ")
    for rows in (prompts(), other):
        scorer.log_probabilities(rows)
    mixed = [*prompts(), *other]
    with counted(model) as sizes, torch_threads(1):  # of several each would have a batch of its own
        found = scorer.log_probabilities(mixed)
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]  # the rests alone, which are the same questions
    assert close(found, plainly(model, mixed, APART))


def test_kinds_of_prompts_that_take_turns_one_by_one_keep_what_each_shares() -> None:
    model = tiny_model("llama")
    scorer = LabelScorer(model, answers(APART))
    start = "Both kinds begin like this, with a long sentence that says nothing. "
    kinds = [prompts(about=start + about) for about in (
        "Code: say what the function does and who calls it, please. ",
        "Docs: find the page that describes this setting in the manual. ")]
    turns = [row for pair in zip(*kinds, strict=True) for row in pair]
    for row in turns[:8]:
        scorer.log_probabilities([row])
    with counted(model) as sizes:
        found = torch.cat([scorer.log_probabilities([row]) for row in turns[8:]])
    assert max(sizes) < 40
    assert close(found, plainly(model, turns[8:], APART))


def test_a_prompt_asked_again_is_computed_again() -> None:
    model = tiny_model("llama")
    scorer = LabelScorer(model, answers(APART))
    scorer.log_probabilities(prompts())
    with counted(model) as sizes:
        for _ in range(3):
            scorer.log_probabilities(prompts()[1:2])
    assert len(set(sizes)) == 1
    assert sizes[0] > len(QUESTIONS[1])


def test_prompts_with_nothing_in_common_are_scored_whole() -> None:
    model = tiny_model("llama")
    rows = [[5, 6, 7], [8, 9, 10, 11], [12]]
    assert close(LabelScorer(model, answers(APART)).log_probabilities(rows), plainly(model, rows, APART))


def test_a_prompt_that_is_the_beginning_of_another_is_scored() -> None:
    model = tiny_model("llama")
    rows = [[*range(5, 25)], [*range(5, 45)]]
    assert close(LabelScorer(model, answers(APART)).log_probabilities(rows), plainly(model, rows, APART))


def test_a_window_shorter_than_the_prompts_is_respected() -> None:
    model = tiny_model("gemma2", sliding_window=16)
    assert close(LabelScorer(model, answers(APART)).log_probabilities(prompts()),
                 plainly(model, prompts(), APART))


def test_labels_of_equal_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        LabelScorer(tiny_model("llama"), answers(("yes", "yes")))
