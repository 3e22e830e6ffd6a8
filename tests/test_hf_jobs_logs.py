"""What is read out of a job's log: events, each once and in order, and its last words."""


import pytest
from distillctl_hf_jobs.logs import event_line, last_words, new_events


def event(number, **more):
    return event_line({"key": str(number), "time": 5.0, "level": "info", "message": f"step {number}",
                       "data": {"loss": 0.5}, **more})


def test_events_come_once_in_order_and_other_lines_are_none():
    lines = ["Resolved 80 packages", event(1), event(2), event(1)]
    first, cursor = new_events(lines, None)
    assert [found.key for found in first] == ["1", "2"] and cursor == "2"
    assert first[0].data == {"loss": 0.5}
    later, cursor = new_events([*lines, event(3)], cursor)
    assert [found.key for found in later] == ["3"] and cursor == "3"
    assert new_events(["only this"], cursor) == ((), "3")


@pytest.mark.parametrize("line", [
    "distillctl-event {", "distillctl-event []", event("x"), event(7, time="soon"), event(7, time=None),
    event(7, data=[1]), event("9" * 40)])
def test_what_only_looks_like_an_event_is_none(line):
    assert new_events([line], None) == ((), None)


def test_an_event_brings_numbers_that_are_known_and_finite():
    ((found,), _) = new_events([event(1, level="bad", data={"loss": float("nan"), "step": 3, "x": 1})], None)
    assert (found.level, found.data) == ("info", {"step": 3})


def test_the_last_words_are_the_job_s_own_lines():
    assert last_words([event(1), "", "one", *map(str, range(9))]) == "4 | 5 | 6 | 7 | 8"
