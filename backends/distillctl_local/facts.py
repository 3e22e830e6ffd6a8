"""What is known of a base model without loading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distillctl.errors import Problem, StudentError, UsageError

_ATTENTION = {"full_attention", "sliding_attention"}
_OF_SOME_LAYERS = {"per_layer_config", "global_head_dim"}  # of Gemma 4's config.json: sizes of their own


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a base model without loading it; None is unknown.

    parameters: count, tied ones once. context, sliding_window: tokens. linear_attention: it has layers
    that keep a state instead of keys and values. shares_states: its upper layers attend to keys and values of
    lower ones. several_sizes: its layers differ in their attention's sizes; what is told of them is then
    their mean, because memory and time are sums over the layers; sliding_window is the shortest. source: see
    `models.source_of`.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    sliding_window: int | None = None
    linear_attention: bool = False
    shares_states: bool = False
    several_sizes: bool = False
    parameters: int | None = None
    source: str | None = None
    licence: str | None = None


def layers_below(facts: ModelFacts, adapted: int | None, block: str = "backends.local") -> int:
    """How many layers lie below an adapter on the `adapted` uppermost ones; None: on all. Raises UsageError
    where the model has fewer. block: where the setting stands in the recipe."""
    if adapted is not None and adapted > facts.layers:
        raise UsageError(Problem(f"the model has {facts.layers} layers", field=f"{block}.layers",
                                 value=adapted, hint="leave it out to adapt them all"))
    return 0 if adapted is None else facts.layers - adapted


def _context(text: Any) -> int:
    """Tokens that a model computes in one way. LongRoPE has other factors beyond the length it was first
    trained on, for all tokens of a row: what is shared by a short and a long one is no longer alike."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    longest = text.max_position_embeddings
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
        longest = (rope.get("original_max_position_embeddings")
                   or getattr(text, "original_max_position_embeddings", None) or longest)
    return longest


def facts_of(config: Any, **known: Any) -> ModelFacts:
    """Facts out of a transformers config, or of any object with the same names; `known` adds to them.

    Raises StudentError where it is not a causal LM's, and where only transformers can tell its layers' sizes.
    """
    text = getattr(config, "text_config", None) or config  # a multimodal model keeps its language part there
    kinds = set(getattr(text, "layer_types", None) or ())
    try:
        if untold := sorted(_OF_SOME_LAYERS & vars(text).keys()):
            raise AttributeError(f"its {untold[0]} needs a newer transformers")
        layers = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
        heads = [layer.num_attention_heads for layer in layers]
        kv_heads = [getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
                    for layer in layers]
        dims = [getattr(layer, "head_dim", None) or text.hidden_size // layer.num_attention_heads
                for layer in layers]
        windows = [window for layer in layers if getattr(layer, "use_sliding_window", True)
                   and (window := getattr(layer, "sliding_window", None))]
        return ModelFacts(
            family=text.model_type, hidden_size=text.hidden_size, intermediate_size=_inner_size(text, layers),
            layers=len(layers), heads=_mean(heads), kv_heads=_mean(kv_heads), head_dim=_mean(dims),
            several_sizes=len(set(zip(heads, kv_heads, dims, strict=True))) > 1,
            vocab=text.vocab_size, context=_context(text), sliding_window=min(windows, default=None),
            linear_attention=bool(kinds - _ATTENTION) or any(
                name.startswith(("mamba_", "ssm_", "linear_num")) for name in vars(text)),
            shares_states=bool(getattr(text, "num_kv_shared_layers", None)), **known)
    except (AttributeError, RuntimeError) as error:  # transformers' of what only a layer can be asked
        raise StudentError(Problem(f"not the config of a causal LM that is known here: {error}")) from None


def _inner_size(text: Any, layers: Sequence[Any]) -> int:
    """The feed-forward layers' width."""
    widths = [getattr(layer, "intermediate_size", None) or 4 * text.hidden_size for layer in layers]
    if isinstance(widths[0], list):  # Gemma 3n's, one for each layer
        widths = widths[0]
    if getattr(text, "use_double_wide_mlp", False):  # Gemma 4's, of the layers that share states
        single = len(layers) - text.num_kv_shared_layers
        widths[single:] = [2 * width for width in widths[single:]]
    return _mean(widths)


def _mean(sizes: Sequence[int]) -> int:
    return round(sum(sizes) / len(sizes))
