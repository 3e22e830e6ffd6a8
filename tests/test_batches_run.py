"""`teacher.batch: true` at the command line: planned, run, left, found again, cancelled, gone on with."""

import json

import pytest
from click.testing import CliRunner
from support.chat import KEY
from support.recipe import GOOD

from distillctl.cli.main import cli
from distillctl.errors import BackendError, RecipeError, UsageError
from distillctl.recipe.load import load_recipe
from distillctl.store.files import read_jsonl
from distillctl.testing.batch_server import BatchServer
from distillctl.testing.chat_server import Reply

EXAMPLES, TIMED = 40, 4
TEACHER = """\
teacher:
  provider: {provider}
  base_url: {url}
  model: some-model
  api_key_env: BATCH_TEST_KEY
  max_tokens: 16
  price: {{input: 1, output: 2}}
  batch: {batch}
evaluate: {{base: false, latency: {{items: 3, warmup: 1}}}}
backend: linear
"""


@pytest.fixture(params=["openai", "anthropic"])
def place(request, tmp_path, monkeypatch):
    """A recipe whose teacher answers at the loopback provider, in a workspace of its own."""
    monkeypatch.setenv("BATCH_TEST_KEY", KEY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/examples.jsonl").write_text("".join(
        json.dumps({"id": f"row-{n}", "text": f"{('So', 'Why')[n % 2]} {n * 7919}", "label": LABELS[n % 2]})
        + "\n" for n in range(EXAMPLES)))
    with BatchServer(lambda asked: Reply(LABELS["Why" in asked.prompt]), key=KEY, slow=0) as server:
        yield Place(tmp_path, server, request.param)


LABELS = ("no", "yes")


class Place:
    def __init__(self, root, server, provider):
        self.root, self.server, self.provider = root, server, provider
        self.recipe = root / "recipe.yaml"
        self.write()

    def write(self, batch="true"):
        url = self.server.anthropic_url + ("/v1" if self.provider == "openai" else "")
        own = TEACHER.format(provider=self.provider, url=url, batch=batch)
        recorded = "teacher:\n  provider: recorded\n  outputs: data/teacher.jsonl\n"
        self.recipe.write_text(GOOD.replace(recorded, own))

    def call(self, command, *arguments):
        result = CliRunner().invoke(cli, [command, *arguments, "--workspace", str(self.root)],
                                    standalone_mode=False)
        if result.exception:
            raise result.exception
        return result.output

    def run(self, *arguments):
        return self.call("run", str(self.recipe), "--until", "teacher", "--yes", *arguments)

    def plan(self):
        (row,) = (row for row in json.loads(self.call("plan", str(self.recipe), "--json"))["rows"]
                  if row["stage"] == "teacher")
        return row

    @property
    def run_name(self):
        (folder,) = (self.root / "runs/tiny").iterdir()
        return folder.name

    def spent(self):
        return json.loads(self.call("status", self.run_name, "--json"))[0]["spent"]


def test_plan_says_what_goes_in_batches_at_what_price_and_how_long_it_takes(place):
    with_batches = place.plan()
    place.write(batch="false")
    without = place.plan()
    assert with_batches["calls"] == without["calls"] == EXAMPLES
    assert without["usd"] / 2 < with_batches["usd"] < without["usd"] * 0.56
    notes = " ".join(with_batches["notes"])
    assert f"{EXAMPLES - TIMED} prompts go in batches at half the price" in notes
    assert "24 h" in notes
    assert f"{TIMED} are asked by themselves first" in notes


def test_a_run_takes_its_answers_from_batches_and_its_latency_from_calls(place):
    place.run()
    (batch,) = place.server.batches
    assert len(batch.requests) == EXAMPLES - TIMED
    assert place.server.answered.total() == EXAMPLES
    folder = place.root / "runs/tiny" / place.run_name
    timings = json.loads((folder / "timings/teacher.json").read_text())
    assert (timings["source"], len(timings["latencies_s"])) == ("measured", 3)
    rows = [row for split in ("train", "dev", "test")
            for row in read_jsonl(folder / f"predictions/teacher.{split}.jsonl")]
    assert len(rows) == EXAMPLES
    assert {row["answer"]["finish"] for row in rows} == {"stop"}
    assert place.spent()["unknown"] == 0
    assert place.spent()["usd"] == pytest.approx(sum(row["answer"]["cost_usd"] for row in rows))


def test_a_run_can_be_left_seen_and_gone_on_with(place):
    place.server.slow = 10
    left = place.run("--detach")
    (batch,) = place.server.batches
    assert f"come back with: distillctl attach tiny/{place.run_name}" in left
    assert f"{place.provider}-batch job {batch.id}: " in place.call("status", place.run_name)
    row = place.plan()
    assert row["calls"] == 0
    assert f"{EXAMPLES - TIMED} prompts are in batch {batch.id} already" in " ".join(row["notes"])
    place.server.slow = 0
    place.run()
    assert (place.server.creates, place.server.answered.total()) == (1, EXAMPLES)


def test_a_run_can_be_cancelled_and_started_again(place):
    place.server.slow = 10
    place.run("--detach")
    assert f"asked for the end of {place.server.batches[0].id}" in place.call("cancel", place.run_name)
    with pytest.raises(BackendError, match="cancelled"):
        place.run()
    place.server.slow = 0
    place.run()
    assert (len(place.server.batches), place.server.answered.total()) == (2, EXAMPLES)


def test_without_batches_a_run_does_not_pay_again_for_what_is_in_one(place):
    place.server.slow = 10
    place.run("--detach")
    place.write(batch="false")
    with pytest.raises(UsageError, match="would be paid twice"):
        place.run()
    assert place.server.answered.total() == TIMED


def test_a_recording_has_nothing_to_ask_in_batches(tmp_path):
    (tmp_path / "data").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GOOD.replace("provider: recorded\n", "provider: recorded\n  batch: true\n"))
    with pytest.raises(RecipeError, match="recording costs nothing"):
        load_recipe(recipe)
