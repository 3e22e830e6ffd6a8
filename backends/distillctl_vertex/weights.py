"""An open model's tuned weights: from its folder in Cloud Storage to a student on this machine.

They lie under the job's output folder, where Google has put them in `postprocess/node-0/checkpoints/final`;
what is looked for is a folder that holds safetensors beside their configuration.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from distillctl.errors import BackendError, Problem
from distillctl.store.files import SAFE_NAME, digest_file, read_json
from distillctl_vertex.storage import Objects, Stored

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_BESIDE_WEIGHTS = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja"})
_MOST_BESIDE = 64 << 20  # bytes: read into memory as they are. Large vocabularies' tokenizer.json have 35 MB
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def bring(objects: Objects, where: str, prefix: str, into: Path) -> tuple[str, dict[str, str]]:
    """Fetch the student below `prefix` into the folder `into`: its kind, "adapter" or "model", and the
    digest of each file by name.

    where: the output folder, for messages. Only safetensors and the JSON and text beside them are fetched,
    never pickles. Raises BackendError, Rejected, Unreachable.
    """
    kind, wanted = _choose(_folders(objects.under(prefix), prefix, where), where)
    _fits(wanted, into, where)
    for stale in into.iterdir():
        if stale.name not in wanted:
            stale.unlink()
    for name, stored in wanted.items():
        objects.fetch(stored, into / name)
    return kind, {name: digest_file(into / name) for name in sorted(wanted)}


def base_named(into: Path) -> str | None:
    """The base that an adapter says it was made for, where that is a Hub id: a folder of this machine is
    not for an adapter to name."""
    config = read_json(into / ADAPTER[0])
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return named if isinstance(named, str) and _HUB_ID.fullmatch(named) else None


def _fits(wanted: Mapping[str, Stored], into: Path, where: str) -> None:
    """Refuse files that no student has, or that this disk has no room for, before one is fetched."""
    colliding = [name for name, times in Counter(map(str.casefold, wanted)).items() if times > 1]
    if colliding:
        raise BackendError(Problem("holds names that differ in capitals alone", where=where,
                                   value=colliding[:20]))
    for name, stored in wanted.items():
        if not name.endswith(".safetensors") and stored.size > _MOST_BESIDE:
            raise BackendError(Problem(f"has {stored.size} bytes, no such file of a student has over "
                                       f"{_MOST_BESIDE}", where=where, value=name))
    needed, free = sum(stored.size for stored in wanted.values()), shutil.disk_usage(into).free
    if needed > free:
        raise BackendError(Problem(
            f"the student has {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free", where=str(into),
            hint="make room, or put the workspace on another disk"))


def _folders(found: list[Stored], prefix: str, where: str) -> dict[str, dict[str, Stored]]:
    """The objects by folder and name. A name that leaves its folder is refused, not skipped."""
    folders: dict[str, dict[str, Stored]] = defaultdict(dict)
    for stored in found:
        relative = stored.name.removeprefix(prefix)
        if relative.endswith("/"):
            continue  # a folder's own marker
        pieces = relative.split("/")
        if not stored.name.startswith(prefix) or "\\" in relative or "\0" in relative or any(
                piece in ("", ".", "..") for piece in pieces):
            raise BackendError(Problem("an object's name leaves its folder; nothing was fetched", where=where,
                                       value=stored.name))
        folders["/".join(pieces[:-1])][pieces[-1]] = stored
    return folders


def _choose(folders: Mapping[str, Mapping[str, Stored]], where: str) -> tuple[str, dict[str, Stored]]:
    """The final checkpoint's folder and what of it is fetched."""
    candidates = {folder: found for folder, names in folders.items() if (found := _student(names))}
    final = {folder: found for folder, found in candidates.items() if "final" in PurePosixPath(folder).parts}
    best = final or candidates
    if not best:
        seen = sorted({Path(name).suffix or name for names in folders.values() for name in names})
        raise BackendError(Problem(
            "holds no student: no folder has safetensors beside a config.json or an adapter_config.json",
            where=where, value=seen[:20]))
    if len(best) > 1 and not final:
        raise BackendError(Problem("holds several checkpoints and none is called final", where=where,
                                   value=sorted(best)[:20]))
    return best[min(best, key=lambda folder: (folder.count("/"), folder))]


def _student(names: Mapping[str, Stored]) -> tuple[str, dict[str, Stored]] | None:
    if "config.json" in names and any(name.endswith(".safetensors") and name != ADAPTER[1]
                                      for name in names):
        return "model", {name: stored for name, stored in names.items() if SAFE_NAME.fullmatch(name) and (
            name in _BESIDE_WEIGHTS or (name.endswith(".safetensors") and name != ADAPTER[1]))}
    if all(name in names for name in ADAPTER):
        return "adapter", {name: names[name] for name in ADAPTER}
    return None
