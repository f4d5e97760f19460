"""Whether what a version computes is right: its result against the float64 truth of the moebench that compares.

The harness makes a workload's weights, tokens and truth once, in forked workers; the versions read them as files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from bench.cases import Workload
from bench.comparing.processes import VersionFailedError
from bench.runner.protocol import Job, MaterialiseJob, RefereeJob, TruthJob, VersionResult
from bench.runner.scratch import Scratch
from bench.runner.servers import ForkServer
from bench.store.schema import Status

CHECK_TIMEOUT_S = 600.0


class Checker:
    """Makes the files of workloads and judges results.

    Args:
        server: where its jobs run.
        scratch: where the files lie.
        timeout_s: how long making a workload's files may take.
        max_flops: where the truth of a workload would cost more, tokens are sampled.
    """

    def __init__(self, server: ForkServer, scratch: Scratch, timeout_s: float, max_flops: float) -> None:
        self._server = server
        self._scratch = scratch
        self._timeout_s = timeout_s
        self._max_flops = max_flops
        self._findings = scratch.other("findings") / "findings.json"

    def files(self, workload: Workload) -> Path:
        """The folder with the weights, tokens and forced routing of a workload.

        Raises:
            VersionFailedError: they could not be made.
            NoSpaceError: there is no room for them.
        """
        if self._scratch.holds(workload):
            return self._scratch.folder(workload)
        folder = self._scratch.reserve(workload)
        try:
            self._do(MaterialiseJob(workload=workload, folder=str(folder)), self._timeout_s)
        except VersionFailedError:
            self._scratch.drop(workload.id)
            raise
        return folder

    def truth(self, workload: Workload, folder: Path, semantics: str) -> str:
        """The name of the set of tensors that is the truth of a workload, computed where it is not there yet.

        Raises:
            VersionFailedError: it could not be computed.
        """
        job = TruthJob(workload=workload, folder=str(folder), semantics=[semantics], max_flops=self._max_flops)
        self._do(job, max(self._timeout_s, CHECK_TIMEOUT_S), "its truth could not be computed: ")
        return f"truth-{quote(semantics, safe='')}"

    def judge(self, workload: Workload, folder: Path, results: Sequence[VersionResult]) -> Path:
        """The file with what is found of one or two results.

        Raises:
            VersionFailedError: they could not be read.
        """
        job = RefereeJob(workload=workload, folder=str(folder), results=list(results), file=str(self._findings))
        self._do(job, CHECK_TIMEOUT_S, "its result could not be checked: ")
        return self._findings

    def _do(self, job: Job, timeout_s: float, why: str = "") -> None:
        answer = self._server.execute(job, timeout_s)
        if answer.status is not Status.OK:
            raise VersionFailedError(answer.status, f"{why}{answer.reason}", dead=False)
