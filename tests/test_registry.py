"""Backends are found by name through entry points, and a broken one is told from an absent one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.entry_points import register

from distillctl import registry
from distillctl.backend import BackendEnv
from distillctl.errors import BackendError, MissingExtra, RecipeError
from distillctl.recipe.load import load_recipe

STRANGER = Path(__file__).parent / "stranger_backend"
GOOD = """
from typing import ClassVar
from distillctl.backend import API_VERSION, Capabilities
from distillctl.recipe.models import Strict

class S(Strict):
    size: int = 1
    colour: str = "red"

class B:
    name = "acme"
    api_version = API_VERSION
    capabilities = Capabilities(task_kinds=frozenset({"text"}))
    Settings = S
    def __init__(self, settings, env): self.settings = settings
    def preflight(self, job): ...
    def stage(self, job): ...
    def submit(self, job, staged, token): ...
    def find(self, token): ...
    def poll(self, handle, cursor): ...
    def cancel(self, handle): ...
    def collect(self, handle, into): ...
    def open(self, student, folder, task, how): ...
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a module with this code as the backend `acme` of the distribution `acme-backend`."""
    def put(code: str, module: str, **metadata) -> None:
        site = tmp_path / module
        register(site, "acme-backend", acme=f"{module}:B", **metadata)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(site)
    return put


@pytest.fixture
def env(tmp_path):
    return BackendEnv(tmp_path, lambda name: None, lambda: 0.0)


def test_listing_imports_no_backend():
    code = ("import sys; from distillctl import registry\n"
            "print(*[info.name for info in registry.installed()])\n"
            "print(*[name for name in sys.modules if name.startswith('distillctl_') or name == 'sklearn'])")
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           check=True).stdout.split("\n")
    assert {"linear", "local"} <= set(lines[0].split())
    assert lines[1] == ""


def test_a_backend_is_loaded_by_its_name():
    assert registry.load("linear").name == "linear"


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean `linear`\?.*installed: .*linear, local"):
        registry.load("linaer")


def test_a_missing_package_is_named_with_the_command_for_its_extra(install):
    install("import surely_not_installed", "acme_extra", extras=("acme",))
    with pytest.raises(MissingExtra, match=r"(?s)surely_not_installed.*pip install 'acme-backend\[acme\]'"):
        registry.load("acme")


def test_a_missing_package_without_an_extra_is_named_itself(install):
    install("import surely_not_installed.deep", "acme_plain")
    with pytest.raises(MissingExtra, match=r"pip install surely_not_installed$"):
        registry.load("acme")


def test_a_missing_module_of_the_backend_s_own_is_its_fault(install):
    install("import acme_own.gone", "acme_own")
    with pytest.raises(BackendError, match="fails when it is imported"):
        registry.load("acme")


def test_a_crash_at_import_shows_the_chain_of_causes(install):
    install("""
        try:
            {}["key"]
        except KeyError as error:
            raise RuntimeError("no table") from error
        """, "acme_crash")
    with pytest.raises(BackendError, match="RuntimeError: no table; because of KeyError: 'key'"):
        registry.load("acme")


def test_a_class_that_is_not_there_is_the_backend_s_fault(install):
    install("", "acme_empty")
    with pytest.raises(BackendError, match="has no attribute 'B'"):
        registry.load("acme")


@pytest.mark.parametrize(("old", "new", "said"), [
    ('name = "acme"', 'name = "other"', "`name`: must be the entry point's name"),
    ("api_version = API_VERSION", "api_version = 99", "`api_version`: this distillctl speaks version 1"),
    ('capabilities = Capabilities(task_kinds=frozenset({"text"}))', "", "`capabilities`: must be"),
    ("Settings = S", "Settings = dict", "`Settings`: must be a pydantic model"),
    ("class S(Strict):", "from pydantic import BaseModel\nclass S(BaseModel):",
     "`Settings`: must refuse unknown keys"),
    ("    def find(self, token): ...\n", "", "`find`: is missing"),
    ("def poll(self, handle, cursor)", "def poll(self, handle)",
     r"`poll`: must take \(self, handle, cursor\)"),
    ("def cancel(self, handle)", "def cancel(self, handle, reason)", r"`cancel`: must take"),
    ("def stage(self, job)", "async def stage(self, job)", "`stage`: must not be async"),
    ("def __init__(self, settings, env): self.settings = settings", "", "`__init__`: is missing"),
    ("class B:", "def B():", "must name a class"),
])
def test_what_does_not_fit_the_contract_is_refused(install, request, old, new, said):
    module = f"acme_{abs(hash(request.node.name))}"
    assert old in GOOD
    install(GOOD.replace(old, new), module)
    with pytest.raises(BackendError, match=said):
        registry.load("acme")


def test_more_parameters_with_defaults_fit_the_contract(install):
    install(GOOD.replace("def cancel(self, handle)", "def cancel(self, handle, *, hard=False)"), "acme_more")
    assert registry.load("acme").name == "acme"


def test_all_misfits_are_named_at_once(install):
    install(GOOD.replace('name = "acme"', "").replace("def find(self, token)", "def find(self)"), "acme_many")
    with pytest.raises(BackendError) as caught:
        registry.load("acme")
    assert [problem.field for problem in caught.value.problems] == ["name", "find"]


def test_two_packages_with_one_name_are_both_named(tmp_path, monkeypatch):
    for owner in ("acme-one", "acme-two"):
        monkeypatch.syspath_prepend(register(tmp_path / owner, owner, acme="anything:B"))
    with pytest.raises(BackendError, match=r"acme-(one|two) 1.0 and acme-(one|two) 1.0"):
        registry.load("acme")


def test_settings_reach_the_backend_checked(install, env):
    install(GOOD, "acme_settings")
    assert registry.open_backend("acme", {"size": 3}, env).settings.size == 3


def test_every_problem_of_the_settings_is_named(install, env):
    install(GOOD, "acme_wrong")
    with pytest.raises(RecipeError) as caught:
        registry.open_backend("acme", {"size": "3", "color": "blue"}, env)
    assert {problem.field for problem in caught.value.problems} == {
        "backends.acme.size", "backends.acme.color"}


def test_problems_of_the_settings_have_their_line_in_the_recipe(env):
    loaded = load_recipe(Path("recipes/routing.yaml"), ["backends.linear.c=-1"])
    with pytest.raises(RecipeError, match=r"--set backends\.linear\.c"):
        registry.open_backend("linear", loaded.recipe.backends["linear"], env, loaded)


def test_needs_names_what_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    problem, = registry.needs("linear", "sklearn", "json")
    assert "sklearn" in problem.what
    assert "json" not in problem.what
    assert problem.hint == "pip install 'distillctl[linear]'"


def test_needs_is_empty_when_all_is_there():
    assert registry.needs("linear", "json", "importlib.metadata") == ()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A stranger's package, built and installed by pip into a folder of its own."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                    "--no-index", "--disable-pip-version-check", "--target", str(site), str(STRANGER)],
                   check=True, capture_output=True, text=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def test_a_stranger_s_backend_is_listed_and_loaded(stranger):
    code = ("from distillctl import registry\n"
            "print([i for i in registry.installed() if i.name == 'nearest'][0].distribution)\n"
            "print(registry.load('nearest').__module__)")
    done = subprocess.run([sys.executable, "-c", code], env=stranger, capture_output=True, text=True)
    assert done.stdout.split() == ["nearest-backend", "nearest_backend"], done.stderr


def test_a_stranger_s_backend_passes_the_suite(stranger):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           str(STRANGER / "check_contract.py")], env=stranger, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
