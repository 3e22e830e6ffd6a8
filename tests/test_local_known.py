"""What does not change from step to step is computed once, and the gradients stay the plain ones: the layers
below an adapter on the uppermost ones, and a prefix that the base alone computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.threads import torch_threads
from support.tiny_models import FAMILIES, tiny_model

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local import sharing  # noqa: E402
from distillctl_local.adapter import add_adapter  # noqa: E402
from distillctl_local.data import Row  # noqa: E402
from distillctl_local.losses import next_token  # noqa: E402
from distillctl_local.models import facts_of  # noqa: E402
from distillctl_local.prefix import accumulate, compute_once  # noqa: E402
from distillctl_local.settings import LocalSettings  # noqa: E402
from distillctl_local.sharing import bytes_below, share_prefixes  # noqa: E402
from test_local_training_prefix import ALL, assert_same, gradients, make_rows, reference  # noqa: E402

from distillctl.errors import UsageError  # noqa: E402
from distillctl.recipe.models import TrainSpec  # noqa: E402

LAYERS = 4  # of the models here
ROWS = [*share_prefixes(make_rows(), 7), *make_rows(5, seed=5)]


def adapted(family: str, layers: int | None):
    """A tiny model with an adapter on its uppermost layers that already does something, and what it wraps."""
    model = tiny_model(family, num_hidden_layers=LAYERS)
    wrapped = add_adapter(model, TrainSpec(), layers=layers)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return wrapped.train(), model


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch_threads(request.param):
        yield


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_tokens", [ALL, 120])
@pytest.mark.usefixtures("threads")
def test_gradients_are_the_plain_ones(family: str, micro_tokens: int) -> None:
    wrapped, model = adapted(family, 2)
    loss = reference(model, ROWS)
    wanted = gradients(wrapped)
    known = compute_once(model, ROWS, 2, micro_tokens)
    assert known.layers == (0 if family == "gemma4_text" else 2)  # its upper layers need more of the lower
    assert accumulate(model, ROWS, micro_tokens, next_token, known=known) == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(wrapped), wanted)


@pytest.mark.usefixtures("threads")
def test_gradients_are_the_plain_ones_where_nothing_is_kept() -> None:
    wrapped, model = adapted("llama", 2)
    loss = reference(model, ROWS)
    wanted = gradients(wrapped)
    assert accumulate(model, ROWS, 120, next_token) == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(wrapped), wanted)


def test_the_layers_below_are_not_computed_again() -> None:
    _, model = adapted("llama", 2)
    known = compute_once(model, ROWS, 2, ALL)
    seen = []
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: seen.append(number))
    accumulate(model, ROWS, ALL, next_token, known=known)
    assert set(seen) == {2, 3}


def test_the_model_is_left_as_it_was() -> None:
    _, model = adapted("llama", 2)
    ids = torch.tensor([ROWS[0].ids])
    before = model(input_ids=ids).logits
    accumulate(model, ROWS, ALL, next_token, known=compute_once(model, ROWS, 2, ALL))
    assert torch.equal(model(input_ids=ids).logits, before)


def test_what_is_kept_is_the_same_whenever_it_is_computed() -> None:
    _, model = adapted("llama", 2)
    first, second = (compute_once(model, ROWS, 2, 120) for _ in range(2))
    assert all(torch.equal(first.rests[key], second.rests[key]) for key in first.rests)


def test_it_sits_on_the_uppermost_layers_alone() -> None:
    wrapped, _ = adapted("llama", 1)
    assert {name.split("layers.")[1].split(".")[0] for name, parameter in wrapped.named_parameters()
            if parameter.requires_grad} == {str(LAYERS - 1)}


class TestWhatIsKept:
    facts = facts_of(tiny_model("llama", num_hidden_layers=LAYERS).config)

    def bytes_of(self, rows: list[Row] = ROWS, **settings: object) -> int:
        return bytes_below(rows, self.facts, LocalSettings(**settings), 4)

    def test_is_a_hidden_state_a_token_and_the_prefix_once(self) -> None:
        tokens = 40 + sum(row.rest for row in ROWS)
        assert self.bytes_of(layers=2) == tokens * self.facts.hidden_size * 4

    @pytest.mark.parametrize("settings", [{}, {"layers": LAYERS}, {"layers": 2, "devices": 2}])
    def test_is_nothing_without_layers_below_or_with_several_devices(self, settings: dict) -> None:
        assert self.bytes_of(**settings) == 0

    def test_is_nothing_where_it_would_be_too_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sharing, "MOST_KEPT", 1000)
        assert self.bytes_of(layers=2) == 0

    def test_more_layers_than_there_are_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"backends\.local\.layers.*the model has 4 layers"):
            self.bytes_of(layers=LAYERS + 1)
