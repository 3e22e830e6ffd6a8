"""Finds backends: the entry-point group `distillctl.backends`, the same road for ours and a stranger's.

Listing reads package metadata and imports nothing; one backend is imported when it is asked for by name.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from distillctl.backend import API_VERSION, Backend, BackendEnv, Capabilities
from distillctl.errors import BackendError, DistillctlError, MissingExtra, Problem, RecipeError

if TYPE_CHECKING:
    from distillctl.recipe.load import LoadedRecipe

GROUP = "distillctl.backends"
METHODS = ("__init__", "preflight", "stage", "submit", "find", "poll", "cancel", "collect", "open")


@dataclass(frozen=True)
class BackendInfo:
    """A backend that is installed, as its package's metadata says; its code was not looked at."""

    name: str
    distribution: str
    version: str
    value: str  # "module:Class"


def installed() -> list[BackendInfo]:
    """Every registered backend, by name; one that two packages register is there twice."""
    return sorted((_info(point) for point in entry_points(group=GROUP)),
                  key=lambda info: (info.name, info.distribution))


def load(name: str) -> type[Backend]:
    """The backend class registered as `name`, imported and checked.

    Raises RecipeError (no such name), MissingExtra (a package it needs is not installed), BackendError
    (its own code fails, two packages claim the name, or it does not fit the contract).
    """
    points = list(entry_points(group=GROUP, name=name))
    if not points:
        raise RecipeError(_unknown(name))
    if len(points) > 1:
        owners = " and ".join(f"{info.distribution} {info.version}" for info in map(_info, points))
        raise BackendError(Problem("two packages register a backend under one name", field="backend",
                                   value=name, hint=f"uninstall one of {owners}"))
    info = _info(points[0])
    try:
        found = points[0].load()
    except ModuleNotFoundError as error:
        if _is_own(error.name, info):
            raise _crashed(info, error) from error
        raise MissingExtra(_missing(name, info, [error.name or "?"])) from error
    except Exception as error:
        raise _crashed(info, error) from error
    problems = check(found, name)
    if problems:
        raise BackendError.of(problems)
    return found


def settings() -> dict[str, type[BaseModel]]:
    """The settings of each installed backend that can be imported, by name."""
    found = {}
    for name in dict.fromkeys(info.name for info in installed()):
        with suppress(DistillctlError):  # `backends` tells
            found[name] = load(name).Settings
    return found


def check(found: object, name: str) -> list[Problem]:
    """What keeps `found` from being the backend `name`; empty when it fits the contract."""
    where = f"backend {name!r} ({getattr(found, '__module__', '?')})"
    if not inspect.isclass(found):
        return [Problem("the entry point must name a class", where=where, value=found)]

    def wrong(field: str, what: str) -> Problem:
        return Problem(what, where=where, field=field, value=getattr(found, field, None))

    problems = []
    if getattr(found, "name", None) != name:
        problems.append(wrong("name", f"must be the entry point's name, {name!r}"))
    if getattr(found, "api_version", None) != API_VERSION:
        problems.append(wrong("api_version", f"this distillctl speaks version {API_VERSION}"))
    if not isinstance(getattr(found, "capabilities", None), Capabilities):
        problems.append(wrong("capabilities", "must be a distillctl.backend.Capabilities"))
    settings = getattr(found, "Settings", None)
    if not (inspect.isclass(settings) and issubclass(settings, BaseModel)):
        problems.append(wrong("Settings", "must be a pydantic model"))
    elif settings.model_config.get("extra") != "forbid":
        problems.append(wrong("Settings", "must refuse unknown keys (extra='forbid')"))
    for method in METHODS:
        if what := _signature_problem(found, method):
            problems.append(Problem(what, where=where, field=method))
    return problems


def open_backend(name: str, settings: Mapping[str, Any], env: BackendEnv,
                 loaded: LoadedRecipe | None = None) -> Backend:
    """The backend `name` with its `backends.<name>` block checked; `loaded` gives errors their file:line.

    Raises what `load` raises, and RecipeError with every problem of the block.
    """
    found = load(name)
    try:
        checked = found.Settings.model_validate(dict(settings))
    except ValidationError as error:
        raise RecipeError.of(_settings_problems(error, loaded, found)) from None
    return found(checked, env)


def needs(name: str, *modules: str) -> tuple[Problem, ...]:
    """A problem for those of `modules` that are not installed, with the command that mends it.

    For a backend's `preflight`, and for `MissingExtra` where there is none; imports nothing.
    """
    absent = [module for module in modules if not _importable(module)]
    if not absent:
        return ()
    infos = [info for info in installed() if info.name == name]
    return (_missing(name, infos[0] if infos else None, absent),)


def _info(point: EntryPoint) -> BackendInfo:
    dist = point.dist
    return BackendInfo(point.name, dist.name if dist else "?", dist.version if dist else "?", point.value)


def _unknown(name: str) -> Problem:
    known = sorted({info.name for info in installed()})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"installed: {', '.join(known) or 'none'}"
    return Problem("no such backend", field="backend", value=name,
                   hint=f"did you mean `{near[0]}`? {hint}" if near else hint)


def _is_own(module: str | None, info: BackendInfo) -> bool:
    """Whether a module that was not found belongs to the plugin itself, or to distillctl."""
    top = (module or "").partition(".")[0]
    return top in ("distillctl", info.value.partition(":")[0].partition(".")[0])


def _crashed(info: BackendInfo, error: BaseException) -> BackendError:
    chain = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 5:
        chain.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return BackendError(Problem(
        "the backend's own code fails when it is imported: " + "; because of ".join(chain),
        where=f"backend {info.name!r} ({info.value})",
        hint=f"this is a fault of {info.distribution} {info.version}, not of the recipe"))


def _missing(name: str, info: BackendInfo | None, modules: list[str]) -> Problem:
    extra = None
    if info is not None:
        try:
            offered = metadata(info.distribution).get_all("Provides-Extra") or []
        except PackageNotFoundError:
            offered = []
        extra = name if name in offered else None
    command = f"pip install '{info.distribution}[{extra}]'" if info and extra else (
        "pip install " + " ".join(module.partition(".")[0] for module in modules))
    return Problem(f"needs {', '.join(modules)}, not installed here", where=f"backend {name!r}",
                   hint=command)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


def _signature_problem(found: type, method: str) -> str | None:
    """Why `found.method` cannot be called as the contract calls it, or None."""
    function = inspect.getattr_static(found, method, None)
    if method == "__init__" and function is object.__init__:
        function = None
    if not inspect.isfunction(function):
        return "is missing, or is not a plain method"
    if inspect.iscoroutinefunction(function):
        return "must not be async"
    wanted = list(inspect.signature(getattr(Backend, method)).parameters)
    given = list(inspect.signature(function).parameters.values())
    names = [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]
    surplus = [p for p in given if p.name not in wanted and p.default is p.empty
               and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if names[:len(wanted)] != wanted or surplus:
        return f"must take ({', '.join(wanted)}), it takes ({', '.join(p.name for p in given)})"
    return None


def _settings_problems(error: ValidationError, loaded: LoadedRecipe | None,
                       found: type[Backend]) -> list[Problem]:
    prefix = f"backends.{found.name}"
    if loaded is not None:
        from distillctl.recipe.load import settings_problems

        return settings_problems(error, loaded, prefix, found.Settings)
    return [Problem(item["msg"], field=".".join([prefix, *map(str, item["loc"])]), value=item["input"])
            for item in error.errors()]
