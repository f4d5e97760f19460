"""The energy pass: a sustained loop over every qualified case where there is a meter, and the reason where not."""

from __future__ import annotations

from bench.cases import Case
from bench.runner.protocol import EnergyJob
from bench.runner.servers import ForkServer
from bench.runner.session import Session, short_name
from bench.store.schema import EnergyReading, EnergyRecord, Status

# These say something about one case; any other reason says that the device has no meter.
CASE_REASONS = frozenset({"below_resolution"})
# A window, and the idle power before and after it.
WINDOWS_A_CASE = 2.0
OVERHEAD_S = 1.0


class EnergyPass:
    """Asks every device once whether it has a meter, and then measures what it can.

    Args:
        session: the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._no_meter: dict[str, str] = {}

    def probe(self, server: ForkServer) -> None:
        """Measure one case of every device, and learn which devices have no meter."""
        asked = set()
        for case in self._open_cases():
            if case.workload.device not in asked:
                asked.add(case.workload.device)
                self._measure(server, case)

    def reserve_s(self) -> float:
        """Seconds that the cases still to be measured will take."""
        case_s = WINDOWS_A_CASE * self._session.sweep.measure.energy_window_s + OVERHEAD_S
        return case_s * sum(case.workload.device not in self._no_meter for case in self._open_cases())

    def run(self) -> None:
        """Give every qualified case its record, as far as the budget reaches."""
        with self._session.new_server() as server:
            for case in self._open_cases():
                if case.workload.device in self._no_meter:
                    self._record(case, EnergyReading(reason=self._no_meter[case.workload.device]))
                elif self._session.left_s >= self._session.sweep.measure.energy_window_s:
                    self._session.update("energy", short_name(case), self.reserve_s())
                    self._measure(server, case)

    def num_open(self) -> int:
        """How many qualified cases have no record yet."""
        return len(self._open_cases())

    def _open_cases(self) -> list[Case]:
        done = {record.case_id for record in self._session.of_kind(EnergyRecord)}
        return [case for cases in self._session.qualified().values() for case in cases if case.id not in done]

    def _measure(self, server: ForkServer, case: Case) -> None:
        measure = self._session.sweep.measure
        failed = self._session.make_files(server, case.workload, [])
        if failed is not None:
            self._record(case, EnergyReading(reason=f"{failed.status}: {failed.reason}"))
            return
        folder = str(self._session.scratch.folder(case.workload))
        job = EnergyJob(case=case, folder=folder, window_s=measure.energy_window_s)
        answer = server.execute(job, self._session.patience_s(case) + 2 * WINDOWS_A_CASE * measure.energy_window_s)
        if answer.status is not Status.OK or answer.energy is None:
            self._record(case, EnergyReading(reason=f"{answer.status}: {answer.reason}"))
            return
        code = answer.energy.reason.partition(":")[0]
        if code and code not in CASE_REASONS:
            self._no_meter[case.workload.device] = answer.energy.reason
        self._record(case, answer.energy)

    def _record(self, case: Case, reading: EnergyReading) -> None:
        self._session.record(EnergyRecord, case_id=case.id, **reading.model_dump())
