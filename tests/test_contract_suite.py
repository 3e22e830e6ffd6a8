"""The conformance suite notices what it is there to notice: one broken backend a fault."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.loopback import AtLoopback, Constant, LoopbackBackend

from distillctl.backend import Ambiguous, Rejected, Snapshot, Unreachable
from distillctl.store.files import write_text
from distillctl.testing import HostedBackendContract


class RetriesItsCreate(LoopbackBackend):
    def submit(self, job, staged, token):
        try:
            return super().submit(job, staged, token)
        except Ambiguous:
            return super().submit(job, staged, token)


class TakesAnErrorForARefusal(LoopbackBackend):
    def submit(self, job, staged, token):
        try:
            return super().submit(job, staged, token)
        except Ambiguous as error:
            raise Rejected(str(error)) from error


class ReadsOnePage(LoopbackBackend):
    def find(self, token):
        return [self._handle(job) for job in self._ask("GET", "jobs?skip=0")["jobs"] if job["token"] == token]


class MatchesPartsOfTokens(LoopbackBackend):
    def find(self, token):
        return [self._handle(job) for job in self._ask("GET", "jobs?skip=0")["jobs"] if token in job["token"]]


class TakesAnOutageForAFailure(LoopbackBackend):
    def poll(self, handle, cursor):
        try:
            return super().poll(handle, cursor)
        except Unreachable:
            return Snapshot("failed", "unreachable")


class TakesAnUnknownWordForAFailure(LoopbackBackend):
    def poll(self, handle, cursor):
        seen = super().poll(handle, cursor)
        return replace(seen, state="failed") if seen.state == "unknown" else seen


class NumbersEventsAnew(LoopbackBackend):
    looks = 0

    def poll(self, handle, cursor):
        NumbersEventsAnew.looks += 1
        seen = super().poll(handle, cursor)
        return replace(seen, events=tuple(
            replace(event, key=f"{self.looks}-{event.key}") for event in seen.events))


class KeepsItsKey(LoopbackBackend):
    def collect(self, handle, into):
        write_text(into / "debug.log", f"Authorization: Bearer {self._env.secret('LOOPBACK_API_KEY')}")
        return super().collect(handle, into)


class LeavesAPickle(LoopbackBackend):
    def collect(self, handle, into):
        (into / "weights.safetensors").write_bytes(b"\x80\x04\x95")
        return super().collect(handle, into)


class NamesNoAccount(LoopbackBackend):
    def _account(self):
        return ""


class LeavesItsServerRunning(LoopbackBackend):
    @contextmanager
    def open(self, student, folder, task, how):
        self._ask("POST", f"servers/{student.model}")
        yield Constant(student)


FAULTS = [
    (RetriesItsCreate, "test_a_lost_reply_is_ambiguous_and_its_job_is_found", {"how": "error_after"}),
    (TakesAnErrorForARefusal, "test_an_error_without_a_job_is_ambiguous_and_none_is_found", {}),
    (ReadsOnePage, "test_find_reads_every_page", {}),
    (MatchesPartsOfTokens, "test_find_compares_whole_tokens", {}),
    (TakesAnOutageForAFailure, "test_an_outage_is_unreachable", {}),
    (TakesAnUnknownWordForAFailure, "test_an_unknown_word_is_no_end", {}),
    (NumbersEventsAnew, "test_events_keep_their_keys", {}),
    (KeepsItsKey, "test_a_secret_is_written_nowhere", {}),
    (LeavesAPickle, "test_a_student_holds_no_pickle", {}),
    (NamesNoAccount, "test_another_account_s_job_is_lost_and_both_accounts_are_named", {}),
    (LeavesItsServerRunning, "test_no_paid_server_outlives_open", {}),
]


def suite_of(backend_class):
    class Suite(AtLoopback, HostedBackendContract):
        backend = backend_class

    return Suite


def run(suite, name, folder, given):
    """One test of a suite, with the fixture it asks for."""
    test = getattr(suite(), name)
    wanted = test.__code__.co_varnames[:test.__code__.co_argcount]
    with suite.make_lab(folder) as lab:
        if "trained" in wanted:
            test(trained=suite.train_in(lab), **given)
        else:
            test(lab=lab, **given)


@pytest.mark.parametrize(("broken", "name", "given"), FAULTS, ids=[case[0].__name__ for case in FAULTS])
def test_a_fault_is_noticed(tmp_path, broken, name, given):
    with pytest.raises((AssertionError, pytest.fail.Exception, Rejected, Unreachable)):
        run(suite_of(broken), name, tmp_path, given)


@pytest.mark.parametrize(("name", "given"), [case[1:] for case in FAULTS], ids=[case[1] for case in FAULTS])
def test_a_sound_backend_passes_the_same(tmp_path, name, given):
    run(suite_of(LoopbackBackend), name, tmp_path, given)
