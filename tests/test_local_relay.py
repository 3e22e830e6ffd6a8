"""A short prefix computed beside the batches behind it: the plain gradients, whoever is first, and no
waiting for what will not come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest
from support.threads import torch_threads
from support.tiny_models import FAMILIES, tiny_model

from distillctl.errors import UsageError

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local import parallel, relay  # noqa: E402
from distillctl_local.data import Row  # noqa: E402
from distillctl_local.losses import next_token  # noqa: E402
from distillctl_local.prefix import GROUP, accumulate, compute_once  # noqa: E402
from distillctl_local.sharing import share_prefixes  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from test_local_training_prefix import (  # noqa: E402
    ALL,
    adapted,
    assert_same,
    gradients,
    make_rows,
    reference,
)

ROWS = share_prefixes(make_rows(), 7)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


@pytest.fixture
def relayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches went beside each prefix."""
    seen: list[int] = []
    plain = relay.beside

    def beside(prefix: relay.PrefixPass, batches: Sequence[object], *others: object) -> Iterator[object]:
        seen.append(len(batches))
        return plain(prefix, batches, *others)

    monkeypatch.setattr(relay, "beside", beside)
    return seen


def check(wrapped: torch.nn.Module, model: torch.nn.Module, micro_tokens: int = ALL, layers: int = 0,
          rows: list[Row] = ROWS) -> None:
    loss = reference(model, rows)
    wanted = gradients(wrapped)
    known = compute_once(model, rows, layers, micro_tokens)
    assert known.layers == layers
    found = accumulate(model, rows, micro_tokens, next_token, known=known)
    assert found == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(wrapped), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_plain_ones(family: str, relayed: list[int]) -> None:
    check(*adapted(family))
    assert relayed == ([] if family == "gemma4_text" else [2])  # whose layers give to more than themselves


def test_of_more_batches_than_threads(relayed: list[int]) -> None:
    check(*adapted("llama"), micro_tokens=80)
    assert relayed == [4]


def test_of_batches_in_which_several_groups_of_rows_look_at_the_prefix(relayed: list[int]) -> None:
    rows = share_prefixes(make_rows(5 * GROUP), 5 * GROUP)
    check(*adapted("llama"), rows=rows)
    assert relayed == [2]


def test_with_an_adapter_on_the_upper_layers_alone(relayed: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=4)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[2, 3])).train()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    check(wrapped, model, layers=2)
    assert relayed == [2]


def test_with_an_adapter_on_the_embedding_too(relayed: list[int]) -> None:
    """The prefix's gradient goes on below its lowest layer."""
    model = tiny_model("llama", tie_word_embeddings=False)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["embed_tokens", "k_proj"])).train()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    check(wrapped, model)
    assert relayed == [2]


def test_where_the_last_layer_alone_is_adapted_and_not_its_keys(relayed: list[int]) -> None:
    """Nothing is learnt in the prefix, whose keys and values have no gradient."""
    model = tiny_model("llama")
    wrapped = get_peft_model(model, LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1],
        init_lora_weights=False)).train()
    check(wrapped, model)
    assert relayed == [2]


def test_a_prefix_worth_all_threads_is_computed_on_them_all(relayed: list[int],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH", 20)
    check(*adapted("llama"))
    assert relayed == []


def test_a_family_that_names_its_layers_otherwise_is_trained_with_a_prefix_too(relayed: list[int]) -> None:
    model = tiny_model("gpt2", n_layer=2, n_embd=32, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                       attn_pdrop=0.0)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=True)).train()
    check(wrapped, model)
    assert relayed == []


@pytest.mark.parametrize("slow", ["prefix", "batches"])
def test_gradients_do_not_depend_on_who_was_first(slow: str) -> None:
    def found(late: str | None) -> torch.Tensor:
        wrapped, model = adapted("llama")

        def wait(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            of_prefix = args[0].shape[1] == ROWS[0].prefix
            time.sleep(0.05 if late is not None and of_prefix == (late == "prefix") else 0)

        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(wait)
        accumulate(model, ROWS, 80, next_token)
        return gradients(wrapped)

    assert torch.equal(found(slow), found(None))


def test_an_error_in_a_batch_is_raised_and_nobody_waits() -> None:
    def loss(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        raise ValueError("no such row")

    _, model = adapted("llama")
    forwards = [layer.forward for layer in model.model.layers]
    with pytest.raises(ValueError, match="no such row"):
        accumulate(model, ROWS, ALL, loss)
    assert [layer.forward for layer in model.model.layers] == forwards
    assert torch.get_num_threads() == 2


def test_an_error_in_the_prefix_is_raised_and_nobody_waits() -> None:
    _, model = adapted("llama")

    def fail(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] == ROWS[0].prefix:
            raise ValueError("no such layer")

    model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no such layer"):
        accumulate(model, ROWS, ALL, next_token)


def test_where_layers_get_more_that_is_learnt_it_is_refused() -> None:
    """Its gradient would be lost: here a learnt scale of the positions."""
    _, model = adapted("llama")
    rotary = model.model.rotary_emb
    scale = torch.nn.Parameter(torch.ones(()))
    rotary.register_forward_hook(lambda _, __, found: tuple(scale * part for part in found))
    with pytest.raises(UsageError, match="use off"):
        accumulate(model, ROWS, ALL, next_token)
