"""Files that come with a student are data: read as such, checked before anything is loaded from them.

An adapter folder may hold `adapter_model.safetensors` and `adapter_config.json`, beside a model card and
tokenizer files that are never read. Pickle, code and templates are refused, not ignored.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillctl.errors import Problem, StudentError
from distillctl.store.files import digest_file

if TYPE_CHECKING:
    from distillctl_local.facts import ModelFacts

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_MAX_HEADER = 100 * 2**20  # the format's own cap
_MAX_CONFIG = 2**20
_MAX_ALPHA = 1_000_000
_MOST_FILES = 2000  # the largest models lie in some hundreds
_NAMED = 10  # problems that one error tells
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_UNREAD = {"README.md", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json"}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, from its header alone (format: huggingface.co/docs/
    safetensors). Every byte of the file must belong to exactly one tensor. Raises StudentError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, size - 8):
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise _bad_file(path, str(error)) from None
    if not isinstance(header, dict):
        raise _bad_file(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    end = 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            info = TensorInfo(entry["dtype"], tuple(entry["shape"]))
            start, stop = entry["data_offsets"]
            if any(type(n) is not int or n < 0 for n in (*info.shape, start, stop)):
                raise ValueError(f"{name}: sizes that are no whole numbers from 0")
            if start != end:
                raise ValueError(f"{name}: {'overlaps with' if start < end else 'leaves a gap after'} "
                                 "the tensor before it")
            if stop - start != info.count * _BYTES[info.dtype]:
                raise ValueError(f"{name}: {stop - start} bytes do not hold {info.dtype} {list(info.shape)}")
            tensors[name], end = info, stop
    except (KeyError, TypeError, ValueError) as error:
        raise _bad_file(path, f"unknown or missing {error}" if isinstance(error, KeyError) else str(error)
                        ) from None
    if end != size - 8 - length:
        raise _bad_file(path, f"its tensors need {end} bytes, {size - 8 - length} are there")
    return tensors


def check_digests(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse a student's folder that does not hold exactly these files ("sha256:..." by name)."""
    found = {path.name: path for path in _listed(folder)}
    problems = [Problem("is missing", where=str(folder / name)) for name in sorted(set(files) - set(found))]
    problems += [Problem("is not among the files of this student", where=str(found[name]),
                         hint="delete or move it") for name in sorted(set(found) - set(files))]
    problems += [Problem("is not as it was when the student was collected", where=str(found[name]),
                         hint="run the recipe again, or fetch the student again")
                 for name in sorted(set(found) & set(files)) if found[name].is_file()
                 and digest_file(found[name]) != files[name]]
    if problems:
        raise StudentError(*problems[:_NAMED])


def check_adapter(folder: Path, files: Mapping[str, str], base: ModelFacts) -> None:
    """Refuse an adapter that is not the student's own (`files`: digests), unsafe, damaged, or made for
    another base. Raises StudentError."""
    check_adapter_folder(folder, base)
    check_digests(folder, files)


def check_adapter_folder(folder: Path, base: ModelFacts) -> None:
    """Refuse a LoRA adapter folder that is unsafe, damaged or made for another base.

    Reads headers and values, runs nothing from the folder. Raises StudentError with every reason that was
    found at the first stage that found any: files, configuration, shapes, values.
    """
    for problems in (_check_files, _check_config, _check_shapes, _check_values):
        if found := problems(folder, base):
            raise StudentError(*found[:_NAMED])


def check_student_model_folder(folder: Path) -> None:
    """Refuse a whole model's folder that holds anything but weights, JSON, the text files of a tokenizer, its
    chat template and a model card. The template is the student's own and runs as every base's: see
    `templates`."""
    found = [problem for path in _listed(folder) if (problem := _unwanted(
        path, path.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model")
        or path.name == "README.md"))]
    if found:
        raise StudentError(*found[:_NAMED])


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name. Raises StudentError where that is far too much."""
    found = sorted(islice(folder.iterdir(), _MOST_FILES + 1)) if folder.is_dir() else []
    if len(found) > _MOST_FILES:
        raise StudentError(Problem(f"holds more than {_MOST_FILES} files, and is no student's folder",
                                   where=str(folder)))
    return found


def _check_files(folder: Path, _: ModelFacts) -> list[Problem]:
    problems = [Problem("is missing", where=str(folder / name))
                for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    for path in _listed(folder):
        if problem := _unwanted(path, path.name in {WEIGHTS, CONFIG, *_UNREAD}):
            problems.append(problem)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and not tokenizer.is_symlink():
        settings = _read_object(tokenizer)
        if "auto_map" in settings:
            problems.append(Problem("names code to run (auto_map)", where=str(tokenizer)))
        if "chat_template" in settings:
            problems.append(_template(tokenizer))
    return problems


def _unwanted(path: Path, known: bool) -> Problem | None:
    where = str(path)
    if path.is_symlink() or not path.is_file():
        return Problem("only plain files belong beside weights", where=where)
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"):
        return Problem("is a pickle, which can run code when it is read", where=where,
                       hint="save the weights as safetensors")
    if path.suffix in (".py", ".so"):
        return Problem("is code; a student brings none", where=where)
    if path.name.startswith("chat_template") and not known:
        return _template(path)
    return None if known else Problem("is not part of a student", where=where, hint="delete or move it")


def _template(path: Path) -> Problem:
    return Problem("brings a chat template, and templates are code", where=str(path),
                   hint="delete it: prompts are made with the base model's own")


def _check_config(folder: Path, base: ModelFacts) -> list[Problem]:
    from distillctl_local.models import HUB_ID, source_of

    path = folder / CONFIG
    config = _read_object(path)
    problems = []

    def refuse(field: str, what: str, hint: str | None = None) -> None:
        problems.append(Problem(what, where=str(path), field=field, value=config.get(field), hint=hint))

    if config.get("peft_type") != "LORA":
        refuse("peft_type", "must be LORA")
    if type(config.get("r")) is not int or not 1 <= config["r"] <= 4096:
        refuse("r", "must be a whole number from 1 to 4096")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= _MAX_ALPHA:
        refuse("lora_alpha", f"must be a number above 0, at most {_MAX_ALPHA}")
    for field in ("auto_map", "auto_mapping", "use_dora", "modules_to_save", "trainable_token_indices",
                  "alora_invocation_tokens", "layer_replication", "megatron_config", "rank_pattern",
                  "alpha_pattern"):
        if config.get(field):
            refuse(field, "is not supported in a student")
    named = config.get("base_model_name_or_path")
    if isinstance(named, str) and base.source and HUB_ID.fullmatch(base.source):
        source = source_of(named)
        if HUB_ID.fullmatch(source) and source.casefold() != base.source.casefold():
            refuse("base_model_name_or_path", f"was made for another base than {base.source}")
    return problems


_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def _check_shapes(folder: Path, base: ModelFacts) -> list[Problem]:
    """Every tensor is one half of a pair of this rank that fits a layer of the base."""
    path = folder / WEIGHTS
    rank = _read_object(folder / CONFIG)["r"]
    problems: list[Problem] = []
    halves: dict[str, set[str]] = {}
    tensors = read_header(path)
    for name, info in tensors.items():
        match = _LORA.fullmatch(name)
        if not match or info.dtype not in _FLOATS or len(info.shape) != 2:
            problems.append(Problem("holds a tensor that is no LoRA weight", where=str(path), value=name))
            continue
        module, half = match["module"], match["half"]
        halves.setdefault(module, set()).add(half)
        if info.shape[half == "B"] != rank:
            problems.append(Problem(f"{name} has rank {info.shape[half == 'B']}, the configuration says "
                                    f"{rank}", where=str(path)))
        width = _width(module.rpartition(".")[2], half, base)
        if width is not None and info.shape[half == "A"] != width:
            problems.append(Problem(f"{name} is {info.shape[half == 'A']} wide, the base's layer {width}: "
                                    "the adapter was made for another base", where=str(path)))
        layer = _LAYER.search(f".{module}.")
        if layer and int(layer[1]) >= base.layers:
            problems.append(Problem(f"{name} belongs to layer {layer[1]}, the base has {base.layers}: the "
                                    "adapter was made for another base", where=str(path)))
    problems += [Problem(f"{module} has only one half of its pair", where=str(path))
                 for module, found in halves.items() if len(found) != 2]
    if not tensors:
        problems.append(Problem("holds no weights", where=str(path)))
    return problems


def _width(layer: str, half: str, base: ModelFacts) -> int | None:
    """Width of a layer's input (A) or output (B) in the families that name their layers so; None: unknown, as
    that of queries, which an output gate (Qwen 3.5) makes twice as wide."""
    query, key = (None, None) if base.several_sizes else (
        base.heads * base.head_dim, base.kv_heads * base.head_dim)
    widths = {"q_proj": (base.hidden_size, None), "k_proj": (base.hidden_size, key),
              "v_proj": (base.hidden_size, key), "o_proj": (query, base.hidden_size)}
    return widths[layer][half == "B"] if layer in widths else None


def _check_values(folder: Path, _: ModelFacts) -> list[Problem]:
    from safetensors import safe_open

    path = folder / WEIGHTS
    problems, moves = [], False
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            if not tensor.isfinite().all():
                problems.append(Problem(f"{name} holds NaN or infinity", where=str(path)))
            elif not tensor.any() and ".lora_A." in name:
                problems.append(Problem(f"{name} is zero throughout", where=str(path)))
            moves = moves or (".lora_B." in name and bool(tensor.any()))
    if not problems and not moves:
        problems.append(Problem("changes nothing: every lora_B is zero, as before training", where=str(path)))
    return problems


def _read_object(path: Path) -> Mapping[str, Any]:
    """A small JSON object. Raises StudentError."""
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"larger than {_MAX_CONFIG} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(Problem(f"cannot be read: {error}", where=str(path))) from None
    return value


def _bad_file(path: Path, why: str) -> StudentError:
    return StudentError(Problem(f"is no sound safetensors file: {why}", where=str(path),
                                hint="it is damaged or was not made for this: fetch or train it again"))
