"""What is known of a base model without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillctl.errors import Problem, StudentError, UsageError

_ATTENTION = {"full_attention", "sliding_attention"}
_OF_EACH_LAYER = {"per_layer_config", "global_head_dim"}  # of Gemma 4: they give layers sizes of their own


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a base model without loading it; None is unknown.

    parameters: count, tied ones once. context, sliding_window: tokens. linear_attention: it has layers
    that keep a state instead of keys and values. source: see `models.source_of`.
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

    Raises StudentError where it is not a causal LM's, or its layers have several sizes.
    """
    text = getattr(config, "text_config", None) or config  # a multimodal model keeps its language part there
    kinds = set(getattr(text, "layer_types", None) or ())
    try:
        if of_each := sorted(_OF_EACH_LAYER & vars(text).keys()):
            raise RuntimeError(f"its config has {of_each[0]}")
        inner = getattr(text, "intermediate_size", None)
        hidden, heads = text.hidden_size, text.num_attention_heads
        return ModelFacts(
            family=text.model_type, hidden_size=hidden,
            intermediate_size=(max(inner) if isinstance(inner, list) else inner) or 4 * hidden,
            layers=text.num_hidden_layers, heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or hidden // heads, vocab=text.vocab_size,
            context=_context(text),
            sliding_window=(getattr(text, "sliding_window", None)
                            if getattr(text, "use_sliding_window", True) else None),
            linear_attention=bool(kinds - _ATTENTION) or any(
                name.startswith(("mamba_", "ssm_", "linear_num")) for name in vars(text)), **known)
    except RuntimeError as error:  # transformers', where each layer has what is asked of the whole model
        raise StudentError(Problem(
            f"its layers have several sizes, which is not known here: {str(error).split('. ')[0]}",
            field="student.model", value=text.model_type, hint="take a student of another family")) from None
    except AttributeError as error:
        raise StudentError(Problem(f"not the config of a causal LM that is known here: {error}")) from None
