"""One batch and one charge, whatever breaks: kills, lost replies, outages, listings that lag, results that
are gone."""

import signal

import pytest
from support.batches import (
    PROGRAM,
    PROVIDERS,
    Clock,
    collect_in_batches,
    collecting_at,
    echo,
    outputs,
    right,
    spent,
)
from support.chat import KEY, PRICE, prompts
from support.children import Children

from distillctl.batches import Left
from distillctl.errors import BackendError
from distillctl.testing.batch_server import BatchServer
from distillctl.testing.chat_server import Refusal


@pytest.fixture(params=PROVIDERS)
def provider(request):
    return request.param


@pytest.fixture
def server():
    with BatchServer(echo, key=KEY) as server:
        yield server


@pytest.fixture
def collecting(server, provider, tmp_path):
    return collecting_at(provider, server.anthropic_url, tmp_path)


@pytest.fixture(scope="module")
def children():
    children = Children(PROGRAM)
    yield children
    children.close()


@pytest.mark.parametrize(("crashpoint", "providers"), [
    ("after-intent", PROVIDERS), ("after-submit", PROVIDERS), ("after-poll", ["openai"]),
    ("after-batch-download", PROVIDERS), ("after-batch-answers", ["openai"]),
    ("after-batch-settled", ["openai"])])
def test_killed_at_any_point_a_rerun_leaves_one_batch_and_one_charge(children, crashpoint, providers,
                                                                             tmp_path):
    for provider in providers:
        folder = tmp_path / provider
        with BatchServer(echo, key=KEY) as server:
            killed = children.run(folder, [provider, server.anthropic_url, 3], crash_at=crashpoint)
            assert killed.returncode == -signal.SIGKILL, killed.output
            collected = collect_in_batches(provider, server.anthropic_url, folder, prompts(3))
            assert outputs(collected) == right(3)
            assert (len(server.batches), server.creates, server.answered.total()) == (1, 1, 3)
        found = spent(folder)
        assert (found.usd, found.unknown) == (pytest.approx(3 * PRICE.cost(2, 2) / 2), 0)


@pytest.mark.parametrize("fault", ["error_after", "lost_reply", "garbled"])
def test_a_lost_reply_is_followed_by_a_search_and_no_second_request(fault, collecting, server, tmp_path):
    server.create_faults = [fault]
    assert outputs(collecting(3)) == right(3)
    assert (len(server.batches), server.creates, server.answered.total()) == (1, 1, 3)


def test_a_listing_that_lags_does_not_lead_to_a_second_batch(collecting, server):
    server.create_faults, server.hidden = ["lost_reply"], 1
    assert outputs(collecting(3)) == right(3)
    assert (len(server.batches), server.creates) == (1, 1)


def test_a_request_that_did_nothing_is_sent_again_once_two_listings_show_no_batch(collecting, server):
    server.create_faults = ["error_before"]
    clock = Clock()
    assert outputs(collecting(3, clock=clock)) == right(3)
    assert (len(server.batches), server.creates) == (1, 2)
    assert clock.slept > 300  # the request could have been on its way as long


def test_a_foreign_batch_of_the_same_size_is_not_taken_for_ours(collecting, server, provider, tmp_path):
    """Made by the same account between our listing and our search, and still being worked on."""
    server.create_faults = ["error_before"]
    new = type(server).handler_type()._new

    def with_neighbour(handler, asked, anthropic):
        batch = new(handler, asked, anthropic)
        if not server.batches:
            neighbour = new(handler, asked, anthropic)
            neighbour.metadata = {"distillctl_token": "somebodyelse"}
            neighbour.requests = [(f"somebodyelse-{n}", body) for n, (_, body) in enumerate(batch.requests)]
            server.batches.append(neighbour)
        return batch

    server._server.RequestHandlerClass._new = with_neighbour
    assert outputs(collecting(2)) == right(2)
    assert (len(server.batches), server.creates) == (2, 2)


def test_a_batch_that_was_refused_leaves_nothing_booked(collecting, server, tmp_path):
    server.create_faults = ["refused"]
    with pytest.raises(BackendError, match="may not create batches"):
        collecting(3)
    assert (spent(tmp_path).unknown, server.creates) == (0, 1)
    assert list((tmp_path / "batches").glob("*.requests.jsonl")) == []
    assert outputs(collecting(3)) == right(3)


def test_a_service_that_is_down_is_asked_again_and_nothing_is_resubmitted(collecting, server):
    with pytest.raises(Left):
        collecting(3, detach=True)
    clock = Clock()
    wait = clock.sleep

    def sleep(seconds):
        wait(seconds)
        server.down = clock.slept < 1800

    clock.sleep, server.down = sleep, True
    assert outputs(collecting(3, clock=clock)) == right(3)
    assert clock.slept >= 1800
    assert (len(server.batches), server.creates) == (1, 1)


def test_an_unknown_word_is_no_end(collecting, server):
    with pytest.raises(Left):
        collecting(3, detach=True)
    server.batches[0].word = "reticulating"
    clock = Clock()
    wait = clock.sleep

    def sleep(seconds):
        wait(seconds)
        if clock.slept > 600:
            server.batches[0].word = None

    clock.sleep = sleep
    assert outputs(collecting(3, clock=clock)) == right(3)
    assert server.creates == 1


def test_a_download_that_breaks_off_is_begun_again(collecting, server):
    server.cut_downloads = 2
    assert outputs(collecting(3)) == right(3)
    assert (server.downloads, server.answered.total()) == (3, 3)


def test_a_batch_that_is_gone_is_lost_and_only_resubmitted_on_demand(collecting, server, tmp_path):
    with pytest.raises(Left):
        collecting(3, detach=True)
    server.batches.clear()
    for _ in range(2):
        with pytest.raises(BackendError, match="is not there any more"):
            collecting(3)
    assert server.creates == 1
    assert outputs(collecting(3, resubmit=True)) == right(3)
    assert server.creates == 2
    assert spent(tmp_path).unknown == 1  # the lost one may be billed
    assert outputs(collecting(3)) == right(3)


def test_results_that_are_gone_are_only_asked_for_again_on_demand(collecting, server, monkeypatch):
    with pytest.raises(Left):
        collecting(3, detach=True)
    handler = server._server.RequestHandlerClass
    with monkeypatch.context() as patch:
        patch.setattr(handler, "_download", _gone)
        with pytest.raises(BackendError, match="not there any more"):
            collecting(3)
        with pytest.raises(BackendError, match="not there any more"):
            collecting(3, resubmit=False)
    assert server.creates == 1
    download = handler._download
    patched = iter([_gone])
    monkeypatch.setattr(handler, "_download", lambda self, data: next(patched, download)(self, data))
    assert outputs(collecting(3, resubmit=True)) == right(3)
    assert server.creates == 2


def _gone(handler, data):
    raise Refusal(404, "not_found_error", "No such file")


def test_a_result_that_is_missing_is_asked_again_and_booked_as_one_that_may_be_billed(collecting, server,
                                                                                      tmp_path, monkeypatch):
    work = server._server.RequestHandlerClass._work

    def without_one(handler, batch):
        work(handler, batch)
        if len(server.batches) == 1:
            batch.results = (batch.results[0][1:], batch.results[1])

    monkeypatch.setattr(server._server.RequestHandlerClass, "_work", without_one)
    assert outputs(collecting(3)) == right(3)
    assert [len(batch.requests) for batch in server.batches] == [3, 1]
    assert spent(tmp_path).unknown == 1


def test_a_batch_that_another_run_submitted_serves_this_one(collecting, server, provider, tmp_path):
    with pytest.raises(Left):
        collecting(3, detach=True)
    assert outputs(collecting(5)) == right(5)
    assert [len(batch.requests) for batch in server.batches] == [3, 2]
