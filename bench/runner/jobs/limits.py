"""Times a case beside variants of it in which one lever is pulled, in interleaved rounds of one process."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from bench.measure.device import Call, Device
from bench.measure.latency import ArmError, sample_rounds
from bench.measure.opening import open_device
from bench.measure.pages import can_keep_pages, keep_pages, page_cost, timed
from bench.profiling.measure import tally
from bench.runner.jobs.building import build_case
from bench.runner.jobs.failures import failed
from bench.runner.jobs.levers import own_memory, pulled
from bench.runner.jobs.profile import make_step
from bench.runner.jobs.shared import Shared, make_call, open_shared
from bench.runner.protocol import Announce, Answer, LimitCheckJob
from bench.store.levers import LEVERS, Lever, Work
from bench.store.schema import Arm
from impls.layer import MoELayer, Unsupported

SETTLED_S = 0.1
"""A call so long settles its threads and caches by itself."""
ALONE_SHARE = 0.25
"""Of the time, for the case before memory is kept; beside its variants it is one of six or seven."""

LITTLE = 0.02
TOUCHING_CALLS = 3


def check_limit(job: LimitCheckJob, announce: Callable[[Announce], None]) -> Answer:
    """The samples of the case and its variants, what each has to do, and which could not be made.

    Before every sample that is not long its variant is called once, untimed: threads are settled and caches hold what
    its own last call left there, as when it is timed alone.

    Where the case touches memory for the first time it is timed by itself before the rest. Then memory that is given
    back is kept, where the C library can be told so, and the case (``pages``) and all variants are timed in rounds:
    else a variant with larger tensors would be charged for pages that the system takes back and hands out again.
    """
    case, workload = job.case, job.case.workload
    announce(Announce(case_id=case.id, what="build"))
    device = open_device(workload.device, workload.threads)
    base = own_memory(open_shared(workload, Path(job.folder), device.torch_device))
    arms: dict[str, Call] = {}
    work: dict[Lever, Work] = {}
    gaps: dict[Lever, str] = {}
    routes = False
    for lever in LEVERS:
        if lever == "pages":
            continue  # the case itself, later: it cannot be undone
        if lever == "threads" and not job.other_threads:
            gaps[lever] = "there is no other number of threads to try here"
            continue
        if lever == "few_experts" and routes:
            continue  # for a layer that sends tokens to experts, other experts are other work
        try:
            shared = pulled(base, lever)
            layer = build_case(case.model_copy(update={"workload": shared.workload}), shared)
            routes = routes or layer.routes
            arms[lever] = make_call(layer, shared)
            if job.count and lever != "threads":
                announce(Announce(case_id=case.id, what="count"))
                work[lever] = _work(layer, shared, device)
        except Unsupported as error:
            gaps[lever] = error.reason
        except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this row's reason
            if lever == "base":
                return failed(error, case)
            arms.pop(lever, None)
            gaps[lever] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"

    def set_threads(arm: str) -> None:
        torch.set_num_threads(job.other_threads if arm == "threads" and job.other_threads else workload.threads)

    called_s: defaultdict[str, list[float]] = defaultdict(list)

    def settle(arm: str) -> None:
        set_threads(arm)
        known_s = called_s[arm]
        # the first may be long because it is the first, but not ten times
        if not known_s or min(known_s) < (SETTLED_S if len(known_s) > 1 else 10 * SETTLED_S):
            begin_s = device.now_s()
            arms[arm]()
            device.synchronize()
            known_s.append(device.now_s() - begin_s)

    def announced() -> Iterator[Call]:
        for name, call in arms.items():
            announce(Announce(case_id=case.id, what=f"keep {name}"))
            set_threads(name)
            yield call
        set_threads("base")

    def sampled(names: Iterable[str], share: float) -> dict[str, Arm]:
        return sample_rounds(
            {name: arms[name] for name in names},
            device,
            order_seed=job.order_seed,
            time_budget_s=share * job.time_budget_s,
            overrun_s=share * job.overrun_s,
            min_rounds=job.min_rounds,
            max_rounds=job.max_rounds,
            cold=workload.cache == "cold",
            before=settle,
            announce=lambda arm, what: announce(Announce(case_id=case.id, what=f"{what} {arm}".strip())),
        )

    try:
        samples = {}
        if workload.device == "cpu" and can_keep_pages():
            little = _touches_little(arms["base"])
            if not little:
                samples = sampled(["base"], ALONE_SHARE)
            # where there is nothing to gain for the case, a variant may still touch more
            if not keep_pages(announced()):
                gaps["pages"] = "the C library did not take the order to keep what is given back"
                samples = {}
            elif not little:
                arms["pages"] = arms["base"]
        else:
            gaps["pages"] = "there is no such memory here, or the C library cannot be told to keep it"
        together = [arm for arm in arms if arm not in samples]
        samples |= sampled(together, 1 - ALONE_SHARE if samples else 1.0)
    except ArmError as error:
        return failed(error.__cause__ or error, case)
    return Answer(arms=samples, work=work, gaps=gaps)


def _touches_little(call: Call) -> bool:
    """Whether first touches of memory, at twice their cost, are less than :data:`LITTLE` of a call's time."""
    cost, shares = page_cost(), []
    if cost is None:
        return False
    for _ in range(TOUCHING_CALLS):
        once = timed(call)
        shares.append(2 * (once.faults or 0) * (cost.touch_s + cost.return_s) / once.seconds)
        if once.seconds > 10 * SETTLED_S:
            break
    return statistics.median(shares) < LITTLE


def _work(layer: MoELayer, shared: Shared, device: Device) -> Work:
    entries = tally(make_step(layer, shared, device))
    return Work(
        flops=sum(entry.flops or 0 for entry in entries),
        moved_bytes=sum(entry.moved_bytes for entry in entries),
        existing_bytes=sum(entry.existing_bytes for entry in entries),
    )
