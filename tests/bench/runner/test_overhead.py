"""How much of a run's wall time is spent inside samples: by its own record, on durations that are made up.

The runner plans and records as ever; only the clock and the workers are replaced, so that everything which is no
sample takes somewhat longer than it was seen to take on a two-core virtual machine (where 0.77 was inside).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_jobs
import pytest

from bench import environment
from bench.analysis.loading import in_samples_fraction
from bench.config import load_sweep
from bench.runner.progress import Silent
from bench.runner.protocol import Answer, CeilingJob, ControlJob, Job, QualifyJob, TimeJob
from bench.runner.servers import ForkServer
from bench.runner.sweep import run_sweep
from bench.store.log import read_run
from bench.store.schema import Arm, NoteRecord, SamplesRecord

START_S = 1.2  # two at once; a run on that machine saw 0.5 s a server
JOB_S = {
    "materialise": 0.2,
    "truth": 0.3,
    "qualify": 0.25,
    "time": 0.07,
    "control": 0.07,
    "ceiling": 0.1,
    "energy": 0.1,
}
LATENCY_S = 4e-3
NUM_CORES = 2


class Clock(SimpleNamespace):
    """Stands for the module ``time``: both of its clocks are one that the fake servers move."""

    now_s = 1e6

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


class TimedServer(ForkServer):
    """A server whose jobs take made-up time on a made-up clock."""

    clock: Clock

    def __init__(self, *_: object) -> None:
        self.ready_s = 0.0

    def launch(self) -> None:
        self.ready_s = self.ready_s or self.clock.now_s + START_S

    def start(self) -> None:
        self.launch()
        self.clock.now_s = max(self.clock.now_s, self.ready_s)

    def close(self) -> None:
        self.ready_s = 0.0

    def execute(self, job: Job, _silence_s: float) -> Answer:
        self.start()
        self.clock.now_s += JOB_S[job.job]
        if isinstance(job, TimeJob | ControlJob | CeilingJob):
            self.clock.now_s += job.time_budget_s
        if isinstance(job, TimeJob | ControlJob):
            names = [case.id for case in job.cases] if isinstance(job, TimeJob) else ["base", "twin", "slowed"]
            rounds = max(1, round(job.time_budget_s / (LATENCY_S * len(names))))
            warmup = rounds // 4
            arm = Arm(latency_s=[LATENCY_S] * (rounds - warmup), warmup_s=[LATENCY_S] * warmup, warmup_rounds=warmup)
            return Answer(arms=dict.fromkeys(names, arm))
        if isinstance(job, QualifyJob):
            return Answer(qualified=fake_jobs.QUALIFIED.model_copy(update={"rough_latency_s": LATENCY_S}))
        return fake_jobs.perform(job, lambda _: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in ("session", "sweep", "timing", "qualification"):
        monkeypatch.setattr(f"bench.runner.{module}.time", clock)
    monkeypatch.setattr(clock, "strftime", time.strftime, raising=False)
    monkeypatch.setattr(clock, "gmtime", time.gmtime, raising=False)
    monkeypatch.setattr("bench.runner.session.ForkServer", TimedServer)
    monkeypatch.setattr(environment, "usable_cores", lambda: NUM_CORES)
    TimedServer.clock = clock
    yield clock
    del TimedServer.clock


def test_seventy_hundredths_of_a_run_at_its_default_budget_are_inside_samples(tmp_path: Path, clock: Clock) -> None:
    sweep = load_sweep("quick", {"workload.device": "cpu"})
    began_s = clock.now_s
    folder = run_sweep(sweep, results=tmp_path, command=["fake"], progress=Silent()).folder
    records = read_run(folder).records
    fraction = in_samples_fraction(records)
    samples = [record for record in records if isinstance(record, SamplesRecord)]
    by_hand_s = sum(len(arm.latency_s) + len(arm.warmup_s) for r in samples for arm in r.arms.values()) * LATENCY_S
    assert fraction is not None
    assert fraction >= 0.70
    assert fraction >= by_hand_s / (clock.now_s - began_s), "the control's samples count too"
    assert clock.now_s - began_s <= 1.02 * sweep.measure.budget_s
    assert not [record for record in records if isinstance(record, NoteRecord) and record.event == "warning"]
