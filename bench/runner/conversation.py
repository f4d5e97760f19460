"""What one worker says about its job, believed only as far as it can be checked."""

from __future__ import annotations

import os
import signal

from pydantic import ValidationError

from bench.runner.channel import Channel, ChannelError
from bench.runner.protocol import (
    Announce,
    Answer,
    CeilingJob,
    ControlJob,
    EnergyJob,
    Job,
    MaterialiseJob,
    QualifyJob,
    TimeJob,
    message_adapter,
)
from bench.store.schema import Status


class Conversation:
    """One worker's announcements and answer.

    Attributes:
        channel: where it talks.
        case_id: the case that it announced last.
        what: what it was about to do.
        answer: its answer, once there is one.
        fault: status and reason where it broke the rules.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.case_id = ""
        self.what = ""
        self.answer: Answer | None = None
        self.fault: tuple[Status, str] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is expected from the worker."""
        return self.answer is not None or self.fault is not None or self.channel.closed_by_peer

    def hear(self) -> None:
        """Take in what has arrived."""
        self.channel.fill()
        try:
            while not (self.answer or self.fault) and (line := self.channel.line()) is not None:
                self._understand(line)
        except ChannelError as error:
            self.fault = Status.CRASHED, f"the worker {error}"

    def hear_rest(self) -> None:
        """Take in what a worker that is dead has left."""
        self.channel.socket.setblocking(False)
        try:
            while not self.over:
                self.hear()
        except BlockingIOError:  # a process that escaped from the worker's group still holds the other end
            return

    def time_out(self, silence_s: float, *, only_talks: bool) -> None:
        """Note that the worker took too long."""
        during = f" while at: {self.what}" if self.what else ""
        manner = "did not get to an answer" if only_talks else f"said nothing for {silence_s:g} s"
        self.fault = Status.TIMEOUT, f"the worker {manner}{during}; [measure] timeout raises the limit"

    def failure(self, status: Status, reason: str) -> Answer:
        """The answer that stands for a worker which gave none."""
        return Answer(status=status, reason=reason, case_id=self.case_id)

    def checked_answer(self, job: Job) -> Answer:
        """The worker's answer; a failure where it lacks what the job is for, or has failed without a reason."""
        assert self.answer is not None
        if self.answer.status is not Status.OK:
            return self.answer.model_copy(
                update={
                    "case_id": self.answer.case_id or self.case_id,
                    "reason": self.answer.reason or "the worker gave no reason",
                }
            )
        if (lack := _lack(job, self.answer)) is not None:
            return self.failure(Status.ERROR, f"the worker answered a {job.job} job {lack}")
        return self.answer

    def _understand(self, line: bytes) -> None:
        try:
            message = message_adapter.validate_json(line)
        except ValidationError:
            shown = line[:80].decode(errors="replace")
            self.fault = Status.CRASHED, f"the worker sent something that is not of the protocol: {shown!r}"
            return
        if isinstance(message, Announce):
            self.case_id, self.what = message.case_id, message.what
        else:
            self.answer = message


def how_it_ended(wait_status: int, *, out_of_memory: bool) -> tuple[Status, str]:
    """Status and reason of a worker that died without an answer.

    Args:
        wait_status: as ``os.waitpid`` gives it.
        out_of_memory: whether the kernel has killed a process for lack of memory meanwhile.
    """
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return Status.CRASHED, f"the worker ended with exit code {code} and no answer"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if -code != signal.SIGKILL:
        return Status.CRASHED, f"the worker was ended by {name} ({signal.strsignal(-code)})"
    if out_of_memory:
        return Status.OUT_OF_MEMORY, "the system killed the worker for lack of memory (SIGKILL, counted by the kernel)"
    return Status.CRASHED, "the worker was killed (SIGKILL) by another process; the kernel counted no lack of memory"


def _lack(job: Job, answer: Answer) -> str | None:
    """What an ``ok`` answer lacks for its job, as the end of a sentence, or None."""
    if isinstance(job, TimeJob | ControlJob):
        wanted = {case.id for case in job.cases} if isinstance(job, TimeJob) else set(job.arms)
        if answer.arms is None or set(answer.arms) != wanted:
            return "with other arms than were asked for"
        if len({len(arm.latency_s) for arm in answer.arms.values()}) != 1:
            return "with arms of different numbers of rounds"
    missing = {
        QualifyJob: "qualified",
        CeilingJob: "per_s",
        EnergyJob: "energy",
        MaterialiseJob: "materialised_bytes",
    }.get(type(job))
    if missing is not None and getattr(answer, missing) is None:
        return f"without {missing}"
    if isinstance(job, CeilingJob) and answer.working_set_bytes is None:
        return "without working_set_bytes"
    if (
        isinstance(job, EnergyJob)
        and answer.energy is not None
        and (answer.energy.energy_j is None) == (not answer.energy.reason)
    ):
        return "with neither energy nor a reason, or with both"
    return None
