"""Drift: a teacher that stayed, one that moved, and what is asked and paid to find out."""

from __future__ import annotations

import json
import random
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.chat import KEY
from support.evaluating import LABELLING, answers, examples, gold, predictions

from distillctl.cli.main import cli
from distillctl.drift import Noise, binomial_tail, compare_answers, detectable, drift_text, noise_of
from distillctl.errors import DistillctlError
from distillctl.testing.chat_server import Asked, ChatServer, Reply

RECIPES = Path(__file__).parents[1] / "recipes"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, standalone_mode=False)


def compared(n: int, changed: int, noise: float = 0.02, gold_there: bool = True):
    """The first `changed` answers moved to another label, all were right before."""
    wanted = gold(n)
    rows = examples(wanted if gold_there else [None] * n)
    now = answers(wanted, [i >= changed for i in range(n)])
    return compare_answers(LABELLING, rows, predictions(LABELLING, wanted), predictions(LABELLING, now),
                           Noise(noise, "test"))


# --- what counts as drift -------------------------------------------------------------------------------


def test_equal_answers_are_no_drift() -> None:
    found = compared(200, 0)
    assert not found.drifted
    assert (found.changed.k, found.moves, found.ids) == (0, [], [])


def test_changed_answers_beyond_noise_are_drift_and_the_moves_are_counted() -> None:
    found = compared(200, 20, gold_there=False)
    assert found.drifted
    assert [(move.before, move.now, move.count) for move in found.moves] == [
        ("code", "docs", 7), ("docs", "skip", 7), ("skip", "code", 6)]
    assert len(found.ids) == 20


def test_as_many_changes_as_the_teachers_own_noise_are_no_drift() -> None:
    assert not compared(200, 20, noise=0.1, gold_there=False).drifted


def test_a_loss_of_accuracy_is_drift_although_changes_are_within_noise() -> None:
    found = compared(200, 20, noise=0.2)
    assert found.p_changed > 0.9
    assert found.accuracy.lost == 20
    assert found.drifted


def test_without_gold_answers_accuracy_is_unknown() -> None:
    found = compared(50, 5, gold_there=False)
    assert found.accuracy is None
    assert found.p_accuracy is None


def test_an_alarm_without_a_change_is_as_rare_as_alpha_says() -> None:
    """2,000 checks of a teacher whose answers differ exactly as often as its noise, both directions alike."""
    dice = random.Random(7)
    wanted = gold(200)
    rows, before = examples([None] * 200), predictions(LABELLING, wanted)
    draws = [sum(dice.random() < 0.05 for _ in range(200)) for _ in range(2000)]
    by_count = {k: compare_answers(
        LABELLING, rows, before,
        predictions(LABELLING, answers(wanted, [i >= k for i in range(200)])),
        Noise(0.05, "test")).drifted for k in set(draws)}
    alarms = sum(by_count[k] for k in draws) / len(draws)
    assert 0.005 < alarms < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_detectable_share_is_detected_four_times_in_five() -> None:
    share = detectable(200, 0.02, 0.05)
    critical = next(k for k in range(201) if binomial_tail(k, 200, 0.02) < 0.05)
    assert binomial_tail(critical, 200, share) >= 0.8 > binomial_tail(critical, 200, share - 0.001)


def test_too_few_items_cannot_show_any_change() -> None:
    assert detectable(1, 0.1, 0.05) is None


def test_noise_is_what_was_measured_but_never_below_the_tolerance() -> None:
    assert noise_of({"measured": True, "agreement": 0.9, "items": 50}, 0.02).share == pytest.approx(0.1)
    assert noise_of({"measured": True, "agreement": 1.0, "items": 50}, 0.02).share == 0.02
    assert "not measured" in noise_of(None, 0.02).source


def test_the_text_says_first_whether_it_drifted_and_last_whether_labels_are_stale() -> None:
    lines = drift_text(compared(200, 20)).splitlines()
    assert lines[0].startswith("DRIFT")
    assert "stale" in lines[-1]


# --- against a newer recording --------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(RECIPES, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def newer(folder: Path, change: float) -> str:
    rows = [json.loads(line) for line in
            (folder / "recipes/data/routing.teacher.jsonl").read_text().splitlines()]
    for i in random.Random(3).sample(range(len(rows)), round(change * len(rows))):
        rows[i]["output"] = "hybrid" if rows[i]["output"] == "docs" else "docs"
    path = folder / "newer.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_unchanged_recording_exits_with_0(workspace: Path) -> None:
    done = call("drift", "recipes/routing.yaml", "--outputs", newer(workspace, 0))
    assert done.exit_code == 0
    assert "no drift" in done.output


def test_a_recording_with_a_tenth_changed_exits_with_1_and_names_the_labels(workspace: Path) -> None:
    done = call("drift", "recipes/routing.yaml", "--outputs", newer(workspace, 0.1), "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert {(move["before"], move["now"]) for move in found["moves"]} == {
        ("code", "docs"), ("hybrid", "docs"), ("skip", "docs"), ("docs", "hybrid")}
    assert found["labels_stale"]


def test_the_sample_holds_no_test_item_and_is_the_same_every_time(workspace: Path) -> None:
    from distillctl import api
    from distillctl.canary import Canary
    from distillctl.data import load_splits

    ctx = api.open_recipe("recipes/routing.yaml")
    first, second = ([pair[0].id for pair in Canary(ctx, 100).pairs] for _ in range(2))
    test = {one.id for one in load_splits(ctx.recipe.data, ctx.task, ctx.loaded.resolve)[0]["test"]}
    assert first == second
    assert len(first) == 100
    assert not test & set(first)


def test_items_that_the_newer_recording_lacks_are_left_out_and_counted(workspace: Path) -> None:
    path = Path(newer(workspace, 0))
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[::2]))
    found = json.loads(call("drift", "recipes/routing.yaml", "--outputs", str(path), "--json").stdout)
    [(reason, count)] = found["left_out"].items()
    assert "newer recording" in reason
    assert found["changed"]["n"] + count == 200


@pytest.mark.parametrize("extra", [[], ["--outputs", "other.jsonl"]])
def test_what_cannot_be_compared_is_a_usage_error(workspace: Path, extra: list[str]) -> None:
    (workspace / "other.jsonl").write_text('{"id": "somebody-else", "output": "docs"}\n')
    done = call("drift", "recipes/routing.yaml", *extra)
    assert isinstance(done.exception, DistillctlError)
    assert done.exception.exit_code == 2


# --- asking a live teacher again ------------------------------------------------------------------------

LIVE = """\
name: live
task:
  kind: classification
  labels: ["yes", "no"]
  prompt: "Is {{ text }} even?"
data: {{examples: rows.jsonl, split: {{train: 0.5, dev: 0.2, test: 0.3}}}}
teacher: {{provider: openai, model: some-model, base_url: "{url}", api_key_env: MY_KEY, max_tokens: 4,
          price: {{input: 1, output: 2}}}}
student: {{model: smollm2-135m}}
backend: linear
budget: {{max_usd: {budget}}}
"""


class Teacher:
    """Says whether a number is even; once `moved`, it takes every third for even too. From request
    `locked` on it refuses the key."""

    moved = False
    locked = 10_000

    def __call__(self, asked: Asked) -> Reply:
        if asked.total >= self.locked:
            return Reply(status=401, code="invalid_api_key")
        number = int(asked.prompt.split()[1])
        return Reply("yes" if number % 2 == 0 or (self.moved and number % 3 == 0) else "no")


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, ChatServer, Teacher]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(120)))
    teacher = Teacher()
    with ChatServer(teacher, key=KEY) as server:
        write_live(tmp_path, server)
        yield tmp_path, server, teacher


def write_live(folder: Path, server: ChatServer, budget: float = 5) -> None:
    text = LIVE.replace("{{ text }}", "<text>").format(url=server.base_url, budget=budget)
    (folder / "live.yaml").write_text(text.replace("<text>", "{{ text }}"))


def collected() -> None:
    assert call("run", "live.yaml", "--until", "teacher", "--yes").exit_code == 0


def test_a_live_teacher_is_really_asked_again_every_time(live: tuple[Path, ChatServer, Teacher]) -> None:
    _, server, teacher = live
    collected()
    first = len(server.asked)
    assert call("drift", "live.yaml", "--items", "60", "--yes").exit_code == 0
    assert len(server.asked) == first + 60
    teacher.moved = True
    moved = call("drift", "live.yaml", "--items", "60", "--yes", "--json")
    assert moved.exit_code == 1
    assert [(m["before"], m["now"]) for m in json.loads(moved.stdout)["moves"]] == [("no", "yes")]
    assert len(server.asked) == first + 120


def test_what_to_do_after_drift_collects_anew_and_keeps_the_old_run(
        live: tuple[Path, ChatServer, Teacher]) -> None:
    folder, server, teacher = live
    collected()
    first = len(server.asked)
    old = {path: path.read_bytes() for path in folder.glob("runs/live/*/predictions/teacher.*.jsonl")}
    teacher.moved = True
    said = call("drift", "live.yaml", "--items", "60", "--yes").stdout
    todo = shlex.split(said.split(": distillctl ")[-1])
    assert call(*todo, "--until", "teacher", "--yes").exit_code == 0
    assert len(server.asked) == 2 * first + 60
    assert all(path.read_bytes() == before for path, before in old.items())
    assert len(list((folder / "runs/live").iterdir())) == 2
    assert call(*todo, "--until", "teacher", "--yes").exit_code == 0
    assert len(server.asked) == 2 * first + 60, "a collection is asked once"
    assert call("drift", "live.yaml", *todo[2:], "--items", "60", "--yes").exit_code == 0


def test_what_a_check_spends_is_counted(live: tuple[Path, ChatServer, Teacher]) -> None:
    collected()
    found = json.loads(call("drift", "live.yaml", "--items", "20", "--yes", "--json").stdout)
    assert found["spent"]["usd"] > 0


def test_nothing_is_asked_without_consent(live: tuple[Path, ChatServer, Teacher]) -> None:
    _, server, _ = live
    collected()
    before = len(server.asked)
    refused = call("drift", "live.yaml")
    assert refused.exception.exit_code == 2
    assert "--yes" in str(refused.exception)
    assert len(server.asked) == before


def test_the_budget_stops_a_check(live: tuple[Path, ChatServer, Teacher]) -> None:
    folder, server, _ = live
    collected()
    write_live(folder, server, budget=0.0001)
    stopped = call("drift", "live.yaml", "--yes")
    assert "budget.max_usd" in str(stopped.exception)


def test_a_check_that_was_stopped_goes_on_without_asking_twice(
        live: tuple[Path, ChatServer, Teacher]) -> None:
    _, server, teacher = live
    collected()
    first = server.answered.total()
    teacher.locked = len(server.asked) + 21
    assert "refuses the key" in str(call("drift", "live.yaml", "--items", "60", "--yes").exception)
    assert server.answered.total() - first == 20
    teacher.locked = 10_000
    assert call("drift", "live.yaml", "--items", "60", "--yes").exit_code == 0
    assert server.answered.total() - first == 60


def test_before_the_first_run_there_is_nothing_to_compare_with(
        live: tuple[Path, ChatServer, Teacher]) -> None:
    done = call("drift", "live.yaml", "--yes")
    assert done.exception.exit_code == 2
    assert "distillctl run live.yaml" in str(done.exception)
