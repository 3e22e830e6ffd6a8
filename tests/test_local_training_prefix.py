"""Training with a shared prefix: the gradients are the plain computation's, and where they would not be
it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from distillctl_local import lora, prefix
from distillctl_local.data import Row
from distillctl_local.losses import LabelChoice, next_token
from distillctl_local.models import facts_of
from distillctl_local.prefix import accumulate, differs
from distillctl_local.sharing import expected_ratio, share_prefixes, tokens_per_step, why_not_shared
from peft import LoraConfig, get_peft_model
from support.tiny_models import FAMILIES, tiny_model
from torch.nn.functional import cross_entropy

ALL = 100_000  # tokens: everything in one micro-batch


def make_rows(count: int = 7, shared: int = 40, kinds: int = 1, seed: int = 0) -> list[Row]:
    """Rows of different lengths that begin alike within their kind, and all with the same five tokens."""
    draw = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(4, 512, (length,), generator=draw).tolist()

    start = ids(5)
    begins = [start + ids(shared - 5) for _ in range(kinds)]
    rows = []
    for number in range(count):
        completion = [*ids(1 + number % 3), 2]
        rows.append(Row(begins[number % kinds] + ids(3 + 4 * number) + completion, completion))
    return rows


def adapted(family: str, **changes: object):
    """A tiny model with an adapter that already does something, in PEFT's own code, and what it wraps."""
    model = tiny_model(family, **changes)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return wrapped.train(), model


def gradients(wrapped: torch.nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in wrapped.parameters() if p.requires_grad])
    wrapped.zero_grad()
    return found


def reference(model: torch.nn.Module, rows: list[Row]) -> float:
    """The same loss row by row through the model's own forward, all positions through its head."""
    total = sum(len(row.completion) for row in rows)
    loss = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids[:-1]]), use_cache=False).logits[0]
        part = cross_entropy(logits[-len(row.completion):], torch.tensor(row.completion), reduction="sum")
        (part / total).backward()
        loss += part.item() / total
    return loss


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
class TestGradientsAreThePlainOnes:
    def check(self, family: str, rows: list[Row], micro_tokens: int, fused: bool) -> None:
        wrapped, model = adapted(family)
        loss = reference(model, rows)
        wanted = gradients(wrapped)
        if fused:
            assert lora.fuse(wrapped) > 0
        assert accumulate(model, rows, micro_tokens, next_token) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(wrapped), wanted)

    def test_with_one_prefix(self, family: str) -> None:
        rows = share_prefixes(make_rows(), 7)
        assert {row.prefix for row in rows} == {40}
        self.check(family, rows, ALL, fused=False)

    def test_in_micro_batches_with_fused_layers(self, family: str) -> None:
        self.check(family, share_prefixes(make_rows(), 7), 50, fused=True)

    def test_with_whole_rows(self, family: str) -> None:
        self.check(family, make_rows(), 150, fused=True)


class TestGradientsInOtherShapes:
    def test_with_a_prefix_for_each_of_two_kinds(self) -> None:
        rows = share_prefixes(make_rows(12, kinds=2), 12)
        assert len({tuple(row.ids[:row.prefix]) for row in rows}) == 2
        wrapped, model = adapted("llama")
        loss = reference(model, rows)
        wanted = gradients(wrapped)
        assert accumulate(model, rows, ALL, next_token) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(wrapped), wanted)

    def test_with_kinds_that_share_and_rows_that_do_not(self) -> None:
        rows = [*share_prefixes(make_rows(), 7), *make_rows(3, seed=5)]
        wrapped, model = adapted("llama")
        reference(model, rows)
        wanted = gradients(wrapped)
        accumulate(model, rows, ALL, next_token)
        assert_same(gradients(wrapped), wanted)

    @pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
    def test_through_the_memory_saving_attention(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefix, "MANY_SCORES", 0)
        rows = share_prefixes(make_rows(), 7)
        wrapped, model = adapted(family)
        reference(model, rows)
        wanted = gradients(wrapped)
        accumulate(model, rows, ALL, next_token)
        assert_same(gradients(wrapped), wanted)

    def test_of_a_prompt_that_is_nothing_but_the_prefix(self) -> None:
        rows = make_rows(3)
        rows.append(Row([*rows[0].ids[:40], 9, 2], [9, 2]))
        shared = share_prefixes(rows, 4)
        assert {row.prefix for row in shared} == {39}
        wrapped, model = adapted("llama")
        reference(model, shared)
        wanted = gradients(wrapped)
        accumulate(model, shared, ALL, next_token)
        assert_same(gradients(wrapped), wanted)

    @pytest.mark.parametrize(("family", "scaled"), [("granite", {"logits_scaling": 4.0}),
                                                    ("cohere", {"logit_scale": 0.25})])
    def test_of_families_that_scale_their_logits(self, family: str, scaled: dict[str, float]) -> None:
        rows = share_prefixes(make_rows(), 7)
        wrapped, model = adapted(family, **scaled)
        loss = reference(model, rows)
        wanted = gradients(wrapped)
        assert accumulate(model, rows, ALL, next_token) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(wrapped), wanted)

    def test_the_model_is_left_as_it_was(self) -> None:
        _, model = adapted("llama")
        accumulate(model, share_prefixes(make_rows(), 7), ALL, next_token)
        assert model.config._attn_implementation == "eager"


class TestTheModelsOwnForward:
    """What is trained is what the model computes, whatever its family does: tried before training."""

    def row(self, shared: bool) -> Row:
        row = share_prefixes(make_rows(), 7)[0]
        return row if shared else replace(row, prefix=0)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("shared", [True, False])
    def test_is_what_we_compute(self, family: str, shared: bool) -> None:
        assert differs(tiny_model(family), self.row(shared)) is None

    @pytest.mark.parametrize("shared", [True, False])
    def test_with_a_scale_that_is_not_known_here_differs(self, shared: bool) -> None:
        model = tiny_model("llama")

        def scale(module: torch.nn.Module, given: object, output: dict) -> None:
            output["logits"] = output["logits"] / 8

        model.register_forward_hook(scale)
        assert differs(model, self.row(shared)) == "by 700.0%"

    def test_of_a_family_that_keeps_its_attention_apart_does_not_suit_a_shared_prefix(self) -> None:
        model = tiny_model("stablelm", num_hidden_layers=2)
        assert differs(model, self.row(shared=False)) is None
        assert differs(model, self.row(shared=True)).startswith("by ")  # it sees no mask


class TestLabelChoice:
    LABELS = ((5, 6, 2), (5, 7, 8, 2), (9, 2), (5, 6, 7, 2))

    def rows(self) -> list[Row]:
        return [Row([11, 12, *label], list(label)) for label in self.LABELS]

    def test_is_the_likelihood_among_the_labels_plus_a_share_of_the_rest(self) -> None:
        """Against the sum over the labels' whole sequences, each step restricted to what labels allow."""
        logits = torch.randn(sum(map(len, self.LABELS)), 20, generator=torch.Generator().manual_seed(0))
        wanted = at = 0
        for label in self.LABELS:
            for number, token in enumerate(label):
                possible = sorted({other[number] for other in self.LABELS
                                   if other[:number] == label[:number] and len(other) > number})
                log_p = logits[at].log_softmax(-1)
                inside = log_p[possible].logsumexp(0)
                wanted += (inside - log_p[token]) - LabelChoice.OTHERS * inside
                at += 1
        assert LabelChoice(self.LABELS)(logits, self.rows()) == pytest.approx(float(wanted), rel=1e-5)

    def test_gradients_with_a_shared_prefix_are_those_without(self) -> None:
        rows = [Row([*range(100, 130), number + 20, *label], list(label))
                for number, label in enumerate(self.LABELS)]
        wrapped, model = adapted("llama")
        loss = LabelChoice(self.LABELS)
        whole = accumulate(model, rows, ALL, loss)
        wanted = gradients(wrapped)
        assert accumulate(model, share_prefixes(rows, 4), ALL, loss) == pytest.approx(whole, rel=1e-5)
        assert_same(gradients(wrapped), wanted)


class TestRefusals:
    def test_gradient_checkpointing_is_refused(self) -> None:
        _, model = adapted("llama")
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="checkpointing"):
            accumulate(model, share_prefixes(make_rows(), 7), ALL, next_token)

    @pytest.fixture
    def shared(self) -> list[Row]:
        return share_prefixes(make_rows(), 7)

    def test_nothing_stands_against_a_plain_transformer(self, shared: list[Row]) -> None:
        for family in FAMILIES:
            assert why_not_shared(facts_of(tiny_model(family).config), shared, 0.0) is None, family

    def test_dropout(self, shared: list[Row]) -> None:
        assert "dropout" in why_not_shared(facts_of(tiny_model("llama").config), shared, 0.1)

    def test_a_window_shorter_than_the_longest_row(self, shared: list[Row]) -> None:
        facts = facts_of(tiny_model("gemma2", sliding_window=32).config)
        assert "32 tokens back" in why_not_shared(facts, shared, 0.0)

    def test_layers_that_keep_a_state(self, shared: list[Row]) -> None:
        facts = replace(facts_of(tiny_model("llama").config), linear_attention=True)
        assert "state" in why_not_shared(facts, shared, 0.0)

    def test_learnt_tokens_in_the_prefix(self, shared: list[Row]) -> None:
        all_learnt = [replace(row, completion=row.ids[10:]) for row in shared]
        assert "learnt" in why_not_shared(facts_of(tiny_model("llama").config), all_learnt, 0.0)

    def test_prompts_that_do_not_begin_alike(self) -> None:
        rows = [Row([number, 7, 8, 2], [8, 2]) for number in range(4, 9)]
        assert "alike" in why_not_shared(facts_of(tiny_model("llama").config), share_prefixes(rows, 5), 0.0)


class TestKinds:
    def test_one_prefix_where_a_second_saves_too_little(self) -> None:
        rows = make_rows(12)
        extra = [7, 7, 7]  # half of the rows go on alike for three more tokens
        rows = [Row([*row.ids[:40], *extra, *row.ids[40:]], row.completion) if number % 2 else row
                for number, row in enumerate(rows)]
        assert {row.prefix for row in share_prefixes(rows, 12)} == {40}

    def test_rare_kinds_keep_the_common_prefix(self) -> None:
        rows = [*make_rows(60), *make_rows(1, seed=3)]
        rows[-1] = replace(rows[-1], ids=rows[0].ids[:20] + rows[-1].ids)
        prefixes = [row.prefix for row in share_prefixes(rows, 8)]
        assert prefixes == [40] * 60 + [20]

    def test_the_ratio_counts_every_prefix_once_a_step(self) -> None:
        rows = share_prefixes([Row([*range(100, 200), 4, 5, 2], [5, 2])] * 10, 10)
        assert tokens_per_step(rows, 10) == rows[0].prefix + 10 * rows[0].rest
        assert expected_ratio(rows, 10) == pytest.approx(10 * 102 / (100 + 10 * 2))
