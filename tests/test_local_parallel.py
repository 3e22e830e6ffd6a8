"""Batches side by side: evenly divided, in order, with the answers and gradients of one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.threads import torch_threads
from support.tiny_models import FAMILIES, tiny_model, tiny_tokenizer

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local.data import Row  # noqa: E402
from distillctl_local.division import even, passes  # noqa: E402
from distillctl_local.encode import Encoder  # noqa: E402
from distillctl_local.generate import Generator  # noqa: E402
from distillctl_local.losses import next_token  # noqa: E402
from distillctl_local.parallel import each, threads_for  # noqa: E402
from distillctl_local.prefix import accumulate, side_by_side  # noqa: E402
from distillctl_local.scoring import LabelScorer  # noqa: E402
from distillctl_local.sharing import share_prefixes  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from test_local_training_prefix import adapted, assert_same, gradients, make_rows, reference  # noqa: E402

ENCODER = Encoder(tiny_tokenizer())
ROWS = [*share_prefixes(make_rows(), 7), *make_rows(5, seed=5)]
PROMPTS = [ENCODER.prompt([{"role": "user", "content": f"Say where to look: {'what is it, ' * count}"}])
           for count in (5, 1, 9, 2, 7, 3, 4)]


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with torch_threads(3):
        yield


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 8), st.integers(100, 2000))
def test_every_row_is_in_one_batch_and_a_batch_keeps_to_its_share(sizes: list[int], workers: int,
                                                                  most: int) -> None:
    batches = even(sizes, most, workers)
    assert sorted(number for batch in batches for number in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or sum(sizes[number] for number in batch) <= most // workers
               for batch in batches)


@pytest.mark.parametrize(("rows", "workers", "batches"), [
    (64, 2, [32, 32]), (64, 1, [64]), (4, 2, [2, 2]), (2, 2, [1, 1]), (1, 2, [1]),
    (250, 2, [42, 42, 42, 42, 42, 40])])
def test_workers_have_equally_much_to_do(rows: int, workers: int, batches: list[int]) -> None:
    assert [len(batch) for batch in even([48] * rows, 4096, workers)] == batches


def test_what_is_found_comes_in_the_batches_order_and_the_threads_are_what_they_were() -> None:
    def slow_first(number: int) -> tuple[int, int]:
        time.sleep(0.05 if number == 0 else 0)
        return number, torch.get_num_threads()

    assert each(slow_first, range(6), 3) == [(number, 1) for number in range(6)]
    assert torch.get_num_threads() == 3


def test_fewer_batches_than_threads_share_them_all() -> None:
    assert each(lambda _: torch.get_num_threads(), [0], 3) == [3]


def test_an_error_in_one_batch_is_raised_and_the_threads_are_what_they_were() -> None:
    def fails(number: int) -> None:
        if number == 1:
            raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        each(fails, range(3), 3)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("tokens", "threads"), [(1, 1), (127, 1), (128, 2), (10_000, 3)])
def test_few_tokens_are_computed_on_few_threads(tokens: int, threads: int) -> None:
    with threads_for(tokens):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_plain_ones(family: str) -> None:
    wrapped, model = adapted(family)
    loss = reference(model, ROWS)
    wanted = gradients(wrapped)
    assert all(len(kind.batches) > 1 for kind in passes(ROWS, 100_000, 3))
    assert accumulate(model, ROWS, 100_000, next_token) == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(wrapped), wanted)


def test_gradients_do_not_depend_on_who_was_first() -> None:
    def found(late: int) -> torch.Tensor:
        def loss(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
            time.sleep(0.2 if len(rows[0].ids) % 3 == late else 0)
            return next_token(logits, rows)

        wrapped, model = adapted("llama")
        accumulate(model, ROWS, 100_000, loss)
        return gradients(wrapped)

    first = found(0)
    assert all(torch.equal(found(late), first) for late in (1, 2))


def test_every_weight_or_dropout_is_trained_batch_by_batch() -> None:
    model = tiny_model("llama")
    assert side_by_side(model.requires_grad_(), 10, 1000) == 1
    drops = LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear")
    dropping = get_peft_model(tiny_model("llama"), drops)
    assert side_by_side(dropping.get_base_model(), 10, 1000) == 1
    assert side_by_side(adapted("llama")[1], 10, 1000) == 3


def test_long_rows_are_not_computed_side_by_side_beyond_what_is_allowed_at_once() -> None:
    _, model = adapted("llama")
    assert [side_by_side(model, 500, most) for most in (400, 1000, 1499, 1500, 9000)] == [1, 2, 2, 3, 3]


def test_where_positions_are_scaled_by_the_length_batches_follow_each_other() -> None:
    scaled = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    _, model = adapted("llama", rope_parameters=scaled)
    assert side_by_side(model, 10, 1000) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_have_the_scores_that_one_thread_gives_them(family: str) -> None:
    model = tiny_model(family)
    answers = [ENCODER.completion(label) for label in ("code", "docs", "yesterday")]
    found = LabelScorer(model, answers).log_probabilities(PROMPTS)
    torch.set_num_threads(1)
    assert torch.allclose(found, LabelScorer(model, answers).log_probabilities(PROMPTS), atol=1e-4, rtol=1e-5)
    assert model.config._attn_implementation == "eager"


def test_generated_answers_are_those_of_one_thread() -> None:
    model = tiny_model("llama")
    found = Generator(model, [ENCODER.end_id]).answer(PROMPTS, [12] * 7)
    torch.set_num_threads(1)
    alone = Generator(model, [ENCODER.end_id]).answer(PROMPTS, [12] * 7)
    assert [one.ids for one in found] == [one.ids for one in alone]
