"""The suite for backends whose requests travel: lost replies, outages, strange words, foreign accounts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, Literal, Protocol

import pytest

from distillctl.backend import Ambiguous, Rejected, Unreachable
from distillctl.jobs import new_token
from distillctl.testing.contract import CANARY, BackendContract, Lab, Trained

CreateFault = Literal["refused", "error_before", "error_after", "lost_reply", "garbled"]
"""What becomes of the next create request: refused with a 4xx; a 500 and no job; a job and a 500; a job
and a closed connection; a job and a reply that cannot be read."""


class ProviderControl(Protocol):
    """A hosted backend's loopback provider, seen from its tests."""

    refusal: str  # the words with which it refuses a create

    def creates(self) -> int:
        """Create requests that have arrived, whatever became of them."""

    def jobs(self) -> int:
        """Jobs that exist, those of `crowd` aside."""

    def break_next_create(self, how: CreateFault) -> None: ...

    def outage(self) -> AbstractContextManager[None]:
        """Answer nothing, or nothing but 503, inside."""

    def say(self, job_id: str, word: str) -> None:
        """Give a job's status as `word` from now on."""

    def delete(self, job_id: str) -> None: ...

    def duplicate(self, job_id: str) -> str:
        """Make a second job with the same token, created a second later; its id."""

    def crowd(self, count: int) -> None:
        """Make so many jobs of the same account that this project did not make, more than a page."""

    def paid_servers(self) -> int:
        """Servers that are running and billed by the minute."""


class HostedBackendContract(BackendContract):
    """What a backend must do beyond it whose requests travel. `make_provider` gives a ProviderControl."""

    hosted = True
    strange_word: ClassVar[str] = "reticulating"  # a status that the provider does not have (yet)

    def test_submitting_sends_one_create(self, lab: Lab) -> None:
        lab.submit()
        assert (lab.provider.creates(), lab.provider.jobs()) == (1, 1)

    def test_preflight_and_stage_create_nothing(self, lab: Lab) -> None:
        lab.backend.preflight(lab.job)
        lab.stage()
        assert (lab.provider.creates(), lab.provider.jobs()) == (0, 0)

    def test_a_refusal_is_rejected_in_the_provider_s_words(self, lab: Lab) -> None:
        lab.provider.break_next_create("refused")
        with pytest.raises(Rejected, match=lab.provider.refusal):
            lab.submit()
        assert (lab.provider.creates(), lab.provider.jobs()) == (1, 0)

    @pytest.mark.parametrize("how", ["error_after", "lost_reply", "garbled"])
    def test_a_lost_reply_is_ambiguous_and_its_job_is_found(self, lab: Lab, how: CreateFault) -> None:
        token, staged = new_token(), lab.stage()
        lab.provider.break_next_create(how)
        with pytest.raises(Ambiguous):
            lab.backend.submit(lab.job, staged, token)
        assert lab.provider.creates() == 1
        assert len(lab.backend.find(token)) == 1

    def test_an_error_without_a_job_is_ambiguous_and_none_is_found(self, lab: Lab) -> None:
        token, staged = new_token(), lab.stage()
        lab.provider.break_next_create("error_before")
        with pytest.raises(Ambiguous):
            lab.backend.submit(lab.job, staged, token)
        assert lab.provider.creates() == 1
        assert lab.backend.find(token) == []

    def test_find_reads_every_page(self, lab: Lab) -> None:
        handle = lab.submit()
        lab.provider.crowd(230)
        assert [found.job_id for found in lab.backend.find(handle.token)] == [handle.job_id]

    def test_find_gives_duplicates_oldest_first(self, lab: Lab) -> None:
        handle = lab.submit()
        second = lab.provider.duplicate(handle.job_id)
        assert [found.job_id for found in lab.backend.find(handle.token)] == [handle.job_id, second]

    def test_an_outage_is_unreachable(self, lab: Lab) -> None:
        handle = lab.submit()
        with lab.provider.outage():
            for call in (lambda: lab.backend.poll(handle, None), lambda: lab.backend.find(handle.token),
                         lambda: lab.backend.cancel(handle), lambda: lab.backend.stage(lab.job)):
                with pytest.raises(Unreachable):
                    call()
        assert lab.backend.poll(handle, None).state in ("queued", "running")

    def test_an_unknown_word_is_no_end(self, lab: Lab) -> None:
        handle = lab.submit()
        lab.provider.say(handle.job_id, self.strange_word)
        seen = lab.backend.poll(handle, None)
        assert (seen.state, seen.raw) == ("unknown", self.strange_word)

    def test_a_deleted_job_is_lost(self, lab: Lab) -> None:
        handle = lab.submit()
        lab.provider.delete(handle.job_id)
        assert lab.backend.poll(handle, None).state == "lost"

    def test_another_account_s_job_is_lost_and_both_accounts_are_named(self, lab: Lab) -> None:
        handle = lab.submit()
        seen = self.open_backend(lab.folder, lab.provider, secret="another-key-0f0f0f0f").poll(handle, None)
        assert seen.state == "lost"
        assert handle.account and handle.account in seen.message
        assert CANARY not in handle.account and "another-key" not in seen.message

    def test_no_paid_server_outlives_open(self, trained: Trained) -> None:
        with self.open_student(trained):
            pass
        with pytest.raises(KeyError), self.open_student(trained):
            raise KeyError("of the caller's own")
        assert trained.lab.provider.paid_servers() == 0
