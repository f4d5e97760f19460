"""A thousand cases in one run: the parent stays as it was, and nothing is left of anything that it started."""

from pathlib import Path

import psutil
import pytest
from fake_sweep import make_sweep
from forked_servers import Orphans, fork_servers

from bench.runner.fleet import MAX_AT_ONCE
from bench.runner.progress import Silent
from bench.runner.sweep import run_sweep
from bench.store.log import read_run
from bench.store.schema import SamplesRecord, Status

NUM_IMPLS, NUM_WORKLOADS, PROCESSES = 10, 100, 2
MAX_BYTES_A_CASE = 30_000
"""What a case's own records may take in the parent: some five kilobytes of facts, and its samples."""


class Watching(Silent):
    """Looks at the runner's own process at every step."""

    def __init__(self) -> None:
        self.rss_bytes: list[int] = []
        self.num_descriptors: list[int] = []
        self.num_children: list[int] = []

    def update(self, **_: object) -> None:
        process = psutil.Process()
        self.rss_bytes.append(process.memory_info().rss)
        self.num_descriptors.append(process.num_fds())
        if len(self.rss_bytes) % 20 == 0:  # it takes as long as a case
            self.num_children.append(len(process.children(recursive=True)))


@pytest.mark.slow
def test_a_thousand_cases_leave_the_parent_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orphans: Orphans
) -> None:
    fork_servers(monkeypatch, tmp_path)
    sweep = make_sweep([f"ok{number}" for number in range(NUM_IMPLS)], NUM_WORKLOADS, processes=PROCESSES, budget_s=600)
    watching = Watching()
    outcome = run_sweep(sweep, results=tmp_path / "results", command=["fake"], progress=watching, jobs="fake_jobs")
    assert outcome.statuses == {Status.OK: 1000}
    samples = [record for record in read_run(outcome.folder).records if isinstance(record, SamplesRecord)]
    assert sum(len(record.arms) for record in samples) == 1000 * PROCESSES
    settled = watching.rss_bytes[100:]
    assert settled[-1] - settled[0] < MAX_BYTES_A_CASE * 1000
    assert len(set(watching.num_descriptors[100:1000])) == 1, "while cases are qualified"
    assert max(watching.num_descriptors) - min(watching.num_descriptors) <= 4 * MAX_AT_ONCE
    assert max(watching.num_children) <= MAX_AT_ONCE + 1
    assert orphans.all_end()
    assert not list(tmp_path.glob("moebench-scratch-*"))
