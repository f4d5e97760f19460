"""Checks of limits, on cases whose limit is planted: each is found, and a wrong name is refuted."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.analysis.divisions import Division, Limit
from bench.analysis.levers import Agreement, LimitCheck, Roofs, check_limit, judge, predict, responses, shares_by_levers
from bench.limit_table import check_sentence, limit_table
from bench.store.levers import Lever, Work
from bench.store.schema import Arm, LimitCheckRecord

ROOFS = Roofs(peak=1e12, memory=1e10, cache=1e11)
OTHER = Roofs(peak=5e11, memory=8e9, cache=6e10)
BASE = Work(flops=10**9, moved_bytes=11_000_000, existing_bytes=10_000_000)
WORK: dict[Lever, Work] = {
    "base": BASE,
    "tokens": Work(flops=2 * 10**9, moved_bytes=12_000_000, existing_bytes=10_000_000),
    "one_expert": BASE,
    "tiny": Work(flops=10**6, moved_bytes=11_000, existing_bytes=10_000),
}
PLANTED: dict[Limit, tuple[float, dict[Lever, float]]] = {
    # twice the peak's time, that of the bytes from memory and from the cache, and times that nothing explains
    Limit.COMPUTE: (2e-3, {"tokens": 2.0, "one_expert": 1.0, "tiny": 0.001, "threads": 2.0, "pages": 1.0}),
    Limit.MEMORY: (1e-3, {"tokens": 1.0, "one_expert": 0.05, "tiny": 0.001, "threads": 1.25, "pages": 1.0}),
    Limit.CACHE: (1.5e-4, {"tokens": 1.0, "one_expert": 1.0, "tiny": 0.001, "threads": 1.6, "pages": 1.0}),
    Limit.HOST: (5e-2, {"tokens": 1.0, "one_expert": 1.0, "tiny": 1.0, "threads": 1.0, "pages": 1.0}),
    Limit.FIRST_TOUCH: (5e-2, {"tokens": 1.5, "one_expert": 1.0, "tiny": 0.5, "threads": 1.4, "pages": 0.05}),
    Limit.BELOW_ROOF: (5e-2, {"tokens": 1.0, "one_expert": 1.0, "tiny": 0.001, "threads": 1.4, "pages": 1.0}),
}


def division(**shares: float) -> Division:
    found = Division("", "")
    for name, share in shares.items():
        found.seconds[Limit[name]] = share
    return found


def records(
    ratios: dict[Lever, float], base_s: float, *, noise: float = 0.01, work: dict[Lever, Work] | None = None
) -> list[LimitCheckRecord]:
    """Six processes of three rounds in which levers do what they are said to, give or take ``noise``."""
    generator = np.random.default_rng(0)
    kept, in_rounds = ratios["pages"], [lever for lever in ratios if lever != "pages"]

    def arm(ratio: float) -> Arm:
        return Arm(latency_s=(base_s * ratio * np.exp(generator.normal(0, noise, 3))).tolist(), warmup_s=[])

    return [
        LimitCheckRecord(
            environment_hash="e", unix_time_s=0.0, case_id="c", replicate=replicate, work=work or WORK,
            arms={"base": arm(1.0), "pages": arm(kept)} | {lever: arm(kept * ratios[lever]) for lever in in_rounds},
            other_threads=1,
        )
        for replicate in range(6)
    ]  # fmt: skip


def checked(named: Limit, planted: Limit) -> LimitCheck:
    base_s, ratios = PLANTED[planted]
    found = check_limit(division(**{named.name: 1.0}), records(ratios, base_s), ROOFS, OTHER)
    assert isinstance(found, LimitCheck)
    return found


@pytest.mark.parametrize("limit", PLANTED, ids=lambda limit: limit.name)
def test_a_planted_limit_is_found(limit: Limit) -> None:
    found = checked(limit, limit)
    assert found.agreement is Agreement.AGREES
    assert found.by_levers[limit].low > 0.9
    assert {pulled.lever for pulled in found.levers} == {"tokens", "one_expert", "tiny", "threads", "pages"}


@pytest.mark.parametrize("limit", PLANTED, ids=lambda limit: limit.name)
def test_a_wrong_name_is_refuted(limit: Limit) -> None:
    for wrong in PLANTED.keys() - {limit}:
        assert checked(wrong, limit).agreement is Agreement.DISAGREES


def test_two_equal_shares_name_nothing() -> None:
    units = {limit: np.zeros(6) for limit in Limit}
    units[Limit.HOST] = np.array([0.45, 0.55, 0.48, 0.52, 0.44, 0.56])
    units[Limit.MEMORY] = 1 - units[Limit.HOST]
    assert judge([Limit.HOST], [units]) is Agreement.CANNOT_TELL
    assert judge([Limit.COMPUTE], [units]) is Agreement.DISAGREES
    assert judge([Limit.MEMORY, Limit.HOST], [units]) is Agreement.AGREES


def test_what_is_not_known_must_not_matter() -> None:
    ends = [{limit: np.zeros(6) for limit in Limit} for _ in range(2)]
    for units, memory in zip(ends, (0.0, 0.3), strict=True):
        units[Limit.COMPUTE] = np.array([0.60, 0.61, 0.62, 0.60, 0.61, 0.62])
        units[Limit.MEMORY] = np.full(6, memory)
    assert judge([Limit.COMPUTE], ends) is Agreement.AGREES
    ends[1][Limit.MEMORY] = np.full(6, 0.9)
    assert judge([Limit.COMPUTE], ends) is Agreement.CANNOT_TELL
    assert judge([Limit.HOST], ends) is Agreement.DISAGREES


def test_time_that_follows_the_work_far_below_the_peak_is_below_the_roof() -> None:
    _, ratios = PLANTED[Limit.COMPUTE]
    near, far = (shares_by_levers(ratios, base_s, WORK, ROOFS) for base_s in (2e-3, 2e-2))
    assert near[Limit.COMPUTE] == pytest.approx(1.0, abs=0.01)
    assert far[Limit.BELOW_ROOF] == pytest.approx(1.0, abs=0.01)


def test_near_a_roof_is_no_edge() -> None:
    """Between near and far a case's share of arithmetic falls without a step."""
    _, ratios = PLANTED[Limit.COMPUTE]
    shares = [shares_by_levers(ratios, base_s, WORK, ROOFS)[Limit.COMPUTE] for base_s in np.geomspace(1e-3, 1e-2, 50)]
    assert (shares[0], shares[-1]) == pytest.approx((1.0, 0.0), abs=0.01)
    assert all(0 <= before - after < 0.1 for before, after in pairwise(shares))


def test_levers_divide_what_first_touches_leave() -> None:
    base_s, ratios = PLANTED[Limit.COMPUTE]
    slower = records(ratios | {"pages": 0.6}, base_s / 0.6, noise=0.0)
    found = check_limit(division(COMPUTE=1.0), slower, ROOFS, OTHER)
    assert isinstance(found, LimitCheck)
    assert found.by_levers[Limit.COMPUTE].value == pytest.approx(0.6, abs=0.01)
    assert found.by_levers[Limit.FIRST_TOUCH].value == pytest.approx(0.4, abs=0.01)
    assert {pulled.lever: pulled.measured.value for pulled in found.levers}["tokens"] == pytest.approx(2.0)


def test_levers_are_timed_beside_the_case_with_its_memory_kept_where_that_can_be() -> None:
    record = records(PLANTED[Limit.HOST][1], 1.0)[0]
    assert record.reference == "pages"
    without = {lever: arm for lever, arm in record.arms.items() if lever != "pages"}
    assert record.model_copy(update={"arms": without}).reference == "base"
    shorter = record.arms["base"].model_copy(update={"latency_s": [1.0]})
    assert LimitCheckRecord.model_validate(record.model_dump() | {"arms": record.arms | {"base": shorter}})
    with pytest.raises(ValueError, match="different numbers of rounds"):
        LimitCheckRecord.model_validate(record.model_dump() | {"arms": without | {"base": shorter}})


def test_a_rest_that_writes_at_memorys_speed_is_memorys() -> None:
    written = {lever: one.model_copy(update={"moved_bytes": one.moved_bytes + 10**8}) for lever, one in WORK.items()}
    written["tiny"] = WORK["tiny"]
    ratios: dict[Lever, float] = {"tokens": 1.0, "one_expert": 1.0, "tiny": 0.001}
    assert shares_by_levers(ratios, 1.2e-2, written, ROOFS)[Limit.MEMORY] == pytest.approx(1.0, abs=0.01)


def test_a_prediction_is_a_range_where_time_is_below_the_roof() -> None:
    shares = {Limit.COMPUTE: 0.5, Limit.BELOW_ROOF: 0.5}

    def predicted(lever: Lever, shares: dict[Limit, float] = shares) -> tuple[float, float]:
        return predict(lever, shares, responses(lever, WORK, ROOFS, OTHER))

    assert predicted("tokens") == pytest.approx((1.5, 2.0))
    assert predicted("threads") == pytest.approx((1.5, 2.0))
    assert predicted("pages") == pytest.approx((1.0, 1.0))
    # what is read of weights goes, and what else is moved may go or not
    assert predicted("one_expert", {Limit.MEMORY: 1.0}) == pytest.approx((0.0, 1 / 11))
    # others than pages are pulled where nothing is touched for the first time
    touching = {Limit.COMPUTE: 0.25, Limit.FIRST_TOUCH: 0.75}
    assert predicted("tokens", touching) == pytest.approx((2.0, 2.0))
    assert predicted("pages", touching) == pytest.approx((0.25, 0.25))


def test_what_lies_outside_of_a_prediction_is_marked() -> None:
    found = checked(Limit.HOST, Limit.COMPUTE)
    marked = {pulled.lever for pulled in found.levers if not pulled.as_predicted}
    assert marked == {"tokens", "tiny", "threads"}
    table = limit_table({"c": found}, [("c", "loop")])
    assert {row[4] for row in table.rows if row[6].endswith("*")} == marked
    assert table.rows[0][:2] == ["loop", "host 100%"]


COPIED = WORK | {"one_expert": BASE.model_copy(update={"moved_bytes": 2 * BASE.moved_bytes})}


def copying(named: Limit, planted: Limit, roofs: Roofs = ROOFS, few_experts: float | None = None) -> LimitCheck:
    """The check of an implementation that packs weights, so that `one_expert` is other work."""
    base_s, ratios = PLANTED[planted]
    work = COPIED
    if few_experts is not None:
        ratios = ratios | {"few_experts": few_experts}
        work = work | {"few_experts": Work(flops=BASE.flops // 8, moved_bytes=2_000_000, existing_bytes=1_250_000)}
    found = check_limit(division(**{named.name: 1.0}), records(ratios, base_s, work=work), roofs, OTHER)
    assert isinstance(found, LimitCheck)
    assert "copies weights" in found.gaps["one_expert"]
    assert "one_expert" not in {pulled.lever for pulled in found.levers}
    return found


def test_without_a_lever_for_memory_what_follows_the_work_is_still_told() -> None:
    """All time follows the tokens: nothing is left that could be memory's."""
    assert copying(Limit.COMPUTE, Limit.COMPUTE).agreement is Agreement.AGREES
    assert copying(Limit.MEMORY, Limit.COMPUTE).agreement is Agreement.DISAGREES


def test_without_a_lever_for_memory_what_follows_nothing_may_be_memorys() -> None:
    found = copying(Limit.MEMORY, Limit.MEMORY)
    assert found.agreement is Agreement.CANNOT_TELL
    assert found.by_levers[Limit.MEMORY].low < 0.01 < 0.99 < found.by_levers[Limit.MEMORY].high


def test_weights_that_fit_the_cache_are_not_read_from_memory() -> None:
    fitting = Roofs(peak=1e12, memory=1e10, cache=1e11, cache_bytes=BASE.moved_bytes)
    assert copying(Limit.BELOW_ROOF, Limit.BELOW_ROOF, fitting).agreement is Agreement.AGREES


def test_without_a_lever_for_pages_first_touches_may_be_all_that_is_left() -> None:
    base_s, ratios = PLANTED[Limit.BELOW_ROOF]
    without = [
        record.model_copy(
            update={
                "arms": {lever: arm for lever, arm in record.arms.items() if lever != "pages"},
                "gaps": {"pages": "no such C library"},
            }
        )
        for record in records(ratios, base_s)
    ]
    for shares, expected in (
        ({"FIRST_TOUCH": 0.9}, Agreement.CANNOT_TELL),
        ({"FIRST_TOUCH": 0.1, "COMPUTE": 0.9}, Agreement.DISAGREES),
    ):
        found = check_limit(division(**shares), without, ROOFS, OTHER)
        assert isinstance(found, LimitCheck)
        assert found.agreement is expected
    none_seen = check_limit(division(BELOW_ROOF=1.0), without, ROOFS, OTHER)
    assert isinstance(none_seen, LimitCheck)
    assert none_seen.agreement is Agreement.AGREES


def test_a_case_that_touches_nothing_first_needs_no_lever_for_it() -> None:
    """It has no arm `pages` and no gap: nothing is said of the lever, and the share is nothing."""
    base_s, ratios = PLANTED[Limit.HOST]
    little = [
        record.model_copy(update={"arms": {lever: arm for lever, arm in record.arms.items() if lever != "pages"}})
        for record in records(ratios, base_s)
    ]
    found = check_limit(division(HOST=1.0), little, ROOFS, OTHER)
    assert isinstance(found, LimitCheck)
    assert (found.agreement, found.by_levers[Limit.FIRST_TOUCH].high) == (Agreement.AGREES, 0)
    assert "pages" not in {pulled.lever for pulled in found.levers}
    # where some processes touched much, the others count as having had nothing to keep
    mixed = check_limit(division(HOST=1.0), [*records(ratios | {"pages": 0.5}, base_s)[:3], *little[3:]], ROOFS, OTHER)
    assert isinstance(mixed, LimitCheck)
    assert mixed.by_levers[Limit.FIRST_TOUCH].value == pytest.approx(0.25, abs=0.02)


def test_fewer_experts_say_nothing_of_a_layer_that_uses_no_more() -> None:
    base_s, ratios = PLANTED[Limit.BELOW_ROOF]
    work = COPIED | {"few_experts": BASE}
    found = check_limit(
        division(BELOW_ROOF=1.0), records(ratios | {"few_experts": 1.0}, base_s, work=work), ROOFS, OTHER
    )
    assert isinstance(found, LimitCheck)
    assert "no more experts" in found.gaps["few_experts"]
    assert found.agreement is Agreement.CANNOT_TELL


@pytest.mark.parametrize(
    ("few_experts", "limit"), [(0.01, Limit.MEMORY), (1 / 8, Limit.BELOW_ROOF)], ids=["less", "its part"]
)
def test_fewer_experts_show_what_reading_all_of_them_costs(few_experts: float, limit: Limit) -> None:
    """An eighth of the experts, which fit the cache, take an eighth of the time or far less."""
    assert copying(limit, Limit.BELOW_ROOF, few_experts=few_experts).agreement is Agreement.AGREES


def test_a_lever_that_is_missing_in_one_process_is_left_out_with_the_reason() -> None:
    base_s, ratios = PLANTED[Limit.COMPUTE]
    found = records(ratios, base_s)
    arms = {lever: arm for lever, arm in found[3].arms.items() if lever not in ("threads", "tokens")}
    found[3] = found[3].model_copy(update={"arms": arms, "gaps": {"tokens": "RuntimeError: no memory"}})
    check = check_limit(division(COMPUTE=1.0), found, ROOFS, OTHER)
    assert isinstance(check, LimitCheck)
    assert {pulled.lever for pulled in check.levers} == {"one_expert", "tiny", "pages"}
    assert check.gaps == {"tokens": "RuntimeError: no memory", "threads": "it was not pulled in 1 of 6 processes"}
    assert check.agreement is Agreement.CANNOT_TELL


def test_work_is_counted_once_for_all_processes() -> None:
    base_s, ratios = PLANTED[Limit.COMPUTE]
    found = records(ratios, base_s)
    once = [found[0], *(record.model_copy(update={"work": {}}) for record in found[1:])]
    assert check_limit(division(COMPUTE=1.0), once, ROOFS, OTHER) == check_limit(
        division(COMPUTE=1.0), found, ROOFS, OTHER
    )
    assert "not counted" in str(check_limit(division(COMPUTE=1.0), once[1:], ROOFS, OTHER))


def test_one_process_is_no_check() -> None:
    base_s, ratios = PLANTED[Limit.COMPUTE]
    assert "2 are needed" in str(check_limit(division(COMPUTE=1.0), records(ratios, base_s)[:1], ROOFS, OTHER))


def test_where_everything_is_named_nothing_can_agree() -> None:
    units = {limit: np.full(6, 0.25) for limit in Limit}
    assert judge(list(Limit), [units]) is Agreement.CANNOT_TELL


def test_without_a_process_there_is_a_reason() -> None:
    failed = LimitCheckRecord(environment_hash="e", unix_time_s=0.0, case_id="c", replicate=0, reason="crashed: why")
    assert check_limit(division(HOST=1.0), [failed], ROOFS, None) == "crashed: why"


@settings(deadline=None)
@given(st.floats(0.05, 4.0), st.floats(0.05, 2.0), st.floats(0.001, 1.5))
def test_shares_are_shares_whatever_was_measured(tokens: float, one_expert: float, tiny: float) -> None:
    found = shares_by_levers({"tokens": tokens, "one_expert": one_expert, "tiny": tiny}, 1e-3, WORK, ROOFS)
    assert all(share >= 0 for share in found.values())
    assert sum(found.values()) >= 1 - 1e-9


def test_a_sentence_says_what_each_lever_did() -> None:
    text = check_sentence(checked(Limit.MEMORY, Limit.MEMORY))
    assert text.startswith("Checked without the profiler, by levers, which agree: memory ")
    assert "one_expert x0.05 [" in text
    assert "predicted x0.00-0.09" in text
