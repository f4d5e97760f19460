import fcntl
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.cases import Workload
from bench.runner.scratch import PREFIX, NoSpaceError, Scratch, estimated_bytes, remove_stale
from impls.spec import LayerSpec


def workload(num_tokens: int = 2, d_model: int = 4) -> Workload:
    layer = LayerSpec(d_model=d_model, d_ff=4, num_experts=2, top_k=1)
    return Workload(layer=layer, num_tokens=num_tokens)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_nothing_is_left_even_after_an_error(tmp_path: Path) -> None:
    def use_and_fail() -> None:
        with Scratch(tmp_path) as scratch:
            (scratch.reserve(workload()) / "weights").write_bytes(b"w")
            assert scratch.holds(workload())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_make_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = estimated_bytes(workload())
    with Scratch(tmp_path) as scratch:
        for num_tokens in (1, 2, 3):
            scratch.reserve(workload(num_tokens))
        assert scratch.holds(workload(1))
        frees = iter([0, 0, 2 * size])
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, next(frees)))
        scratch.reserve(workload(4))
        assert [scratch.holds(workload(number)) for number in (1, 2, 3, 4)] == [True, False, False, True]


def test_too_little_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 90, 10))
    with Scratch(tmp_path) as scratch, pytest.raises(NoSpaceError, match="set TMPDIR to a folder on a larger disk"):
        scratch.reserve(workload())


def test_only_folders_without_a_living_owner_are_removed(tmp_path: Path) -> None:
    stale, owned, young = (tmp_path / f"{PREFIX}{name}" for name in ("stale", "owned", "young"))
    for folder in (stale, owned, young):
        folder.mkdir()
    for folder in (stale, owned):
        os.utime(folder, (0, 0))
    (tmp_path / f"{PREFIX}link").symlink_to(owned)
    lock = os.open(owned, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert remove_stale(tmp_path) == [stale]
    finally:
        os.close(lock)
    assert owned.exists()
    assert young.exists()


def test_the_estimate_is_above_the_weights_and_counts_gradients_of_a_train_step() -> None:
    forward = workload(d_model=64)
    train = forward.model_copy(update={"direction": "train"})
    assert estimated_bytes(forward) >= 4 * 2 * 3 * 4 * 64
    assert estimated_bytes(train) > 2 * estimated_bytes(forward)
