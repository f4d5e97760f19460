from itertools import count

import pytest

from bench.runner.fleet import MAX_AT_ONCE, Fleet
from bench.runner.interrupt import Interrupt, Interrupted
from bench.runner.servers import ForkServer, ServerLostError


class Recorded(ForkServer):
    """A server without a process, which notes what is done with it; some cannot be launched or do not get ready."""

    numbers = count()

    def __init__(self, story: list[str], faults: dict[int, str]) -> None:
        self.number, self.story, self.fault = next(self.numbers), story, faults
        self.closed = False

    def launch(self) -> None:
        self._do("launch")

    def start(self) -> None:
        self._do("start")

    def close(self) -> None:
        self.closed = True
        self.story.append(f"close {self.number}")

    def _do(self, what: str) -> None:
        self.story.append(f"{what} {self.number}")
        if self.fault.get(self.number) == what:
            raise ServerLostError(f"{self.number} cannot {what}")
        if self.fault.get(self.number) == "interrupt":
            raise Interrupted("SIGINT")


def make(story: list[str], num_cores: int, faults: dict[int, str] | None = None) -> Fleet:
    Recorded.numbers = count()
    return Fleet(lambda: Recorded(story, faults or {}), num_cores)


def take(fleet: Fleet, num_wanted: int) -> int:
    server = fleet.take(num_wanted)
    assert isinstance(server, Recorded)
    return server.number


def test_as_many_as_there_are_cores_load_together_and_nothing_starts_until_they_are_used() -> None:
    story: list[str] = []
    with make(story, 2) as fleet:
        assert take(fleet, 5) == 0
        assert story == ["launch 0", "launch 1", "start 0", "start 1"]
        assert take(fleet, 4) == 1
        assert len(story) == 4, "what is ready is used before anything is started"
        assert take(fleet, 3) == 2
        assert story[4:] == ["launch 2", "launch 3", "start 2", "start 3"]
    assert story[8:] == ["close 3"], "those that were taken are their takers' to close"


@pytest.mark.parametrize(("num_cores", "num_wanted", "started"), [(64, 9, MAX_AT_ONCE), (2, 1, 1), (0, 3, 1)])
def test_no_more_are_started_than_can_be_used(num_cores: int, num_wanted: int, started: int) -> None:
    story: list[str] = []
    with make(story, num_cores) as fleet:
        fleet.take(num_wanted)
        assert story.count("start 0") == 1
        assert sum(word.startswith("launch") for word in story) == started


@pytest.mark.parametrize("what", ["launch", "start"])
def test_one_that_fails_costs_no_more_than_itself(what: str) -> None:
    story: list[str] = []
    with make(story, 3, {0: what}) as fleet:
        assert [take(fleet, 4), take(fleet, 3), take(fleet, 2)] == [1, 2, 3]


def test_where_all_fail_the_last_reason_is_told() -> None:
    with make([], 2, {0: "start", 1: "launch"}) as fleet, pytest.raises(ServerLostError, match="0 cannot start"):
        fleet.take(2)


def test_a_stop_while_servers_load_leaves_none_behind() -> None:
    story: list[str] = []
    with pytest.raises(Interrupted), make(story, 3, {1: "interrupt"}) as fleet:
        fleet.take(3)
    assert {word for word in story if word.startswith("close")} == {"close 0", "close 1", "close 2"}


def test_where_the_system_gives_no_process_the_reason_is_told(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with ForkServer(interrupt) as server, pytest.raises(ServerLostError, match="cannot be started: No such file"):
        server.launch()
