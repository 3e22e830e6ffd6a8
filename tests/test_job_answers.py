"""Answers of a training job: as they were given, or refused whole."""

import json

import pytest

from distillctl.errors import StorageError
from distillctl.job_answers import answer_all, read_answers, write_answers
from distillctl.recipe.models import EvaluateSpec
from distillctl.types import Answer


class Echo:
    """Answers with the prompt, two at a time."""

    max_batch = 2
    replayed = False

    async def answer(self, requests):
        assert len(requests) <= self.max_batch
        return [Answer(request.messages[-1]["content"], label_logprobs={"a": -0.1}) for request in requests]

    async def aclose(self): ...


PROMPTS = [{"id": f"{split}-{n}", "split": split, "messages": [{"role": "user", "content": f"{split} {n}"}]}
           for split in ("dev", "test") for n in range(3)]
HOW = EvaluateSpec(latency={"items": 2, "warmup": 1})


def test_answers_survive_the_file_with_their_times_and_machine(tmp_path):
    student = answer_all(Echo(), PROMPTS, HOW, "one L4", timed=True)
    base = answer_all(Echo(), PROMPTS[3:], HOW, "one L4", timed=False)
    write_answers(tmp_path / "answers.json", {"student": student, "base": base})
    found = read_answers(tmp_path / "answers.json", "student")
    assert found == student and found.machine == "one L4"
    assert found.answers["test-1"] == Answer("test 1", label_logprobs={"a": -0.1})
    assert len(found.timing["latencies_s"]) == 2 and found.timing["throughput"]["at_once"] == 2
    assert read_answers(tmp_path / "answers.json", "base").timing["latencies_s"] == []


def test_who_was_not_asked_there_has_no_answers(tmp_path):
    write_answers(tmp_path / "answers.json", {"student": answer_all(Echo(), PROMPTS, HOW, "m", timed=True)})
    assert read_answers(tmp_path / "answers.json", "base") is None


@pytest.mark.parametrize("content", [
    {"student": 5}, {"student": {"answers": {}, "timing": {}, "machine": "m"}},
    {"student": {"answers": {"1": {"output": 5}}, "timing": {"latencies_s": []}, "machine": "m"}},
    {"student": {"answers": {"1": "text"}, "timing": {"latencies_s": []}, "machine": "m"}},
    {"student": {"answers": {}, "timing": {"latencies_s": ["soon"]}, "machine": "m"}}])
def test_what_is_no_file_of_answers_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r"answers\.json"):
        read_answers(path, "student")
