from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.runner.jobs.mapped import read_tensors, write_tensors


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=lambda d: str(d)
)
def test_what_was_written_is_read_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.arange(-60, 60).view(2, 3, 20).to(dtype)
    if dtype.is_floating_point:
        numbers[0, 0, :3] = torch.tensor([float("nan"), float("-inf"), 1e-6])
    tensors = {"a": numbers, "none": torch.empty(0, 5, dtype=dtype), "turned": numbers[0].T, "one": numbers[1, 2, 7]}
    write_tensors(tmp_path, "set", tensors.items(), {"id": "x"})
    found, facts, num_bytes = read_tensors(tmp_path, "set")
    assert facts == {"id": "x"}
    assert num_bytes == (tmp_path / "set.bin").stat().st_size
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
    assert all(bits(found[name]) == bits(tensors[name]) for name in tensors)
    assert all(t.data_ptr() % 64 == 0 for name, t in found.items() if t.numel())


def test_a_set_without_a_single_byte(tmp_path: Path) -> None:
    write_tensors(tmp_path, "set", {"a": torch.empty(0, 3), "b": torch.empty(2, 0)}.items(), {})
    found = read_tensors(tmp_path, "set").tensors
    assert (found["a"].shape, found["b"].shape) == ((0, 3), (2, 0))


def test_writing_to_a_tensor_leaves_the_file_and_other_readers_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path, "set", [("a", torch.ones(4096))], {})
    mine, other = read_tensors(tmp_path, "set").tensors["a"], read_tensors(tmp_path, "set").tensors["a"]
    mine.zero_()
    assert float(other.sum()) == 4096
    assert float(read_tensors(tmp_path, "set").tensors["a"].sum()) == 4096


def test_a_mapping_outlives_the_tensor_that_made_it_and_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path, "set", [("a", torch.ones(8)), ("b", torch.full((8,), 2.0))], {})
    b = read_tensors(tmp_path, "set").tensors["b"]
    (tmp_path / "set.bin").unlink()
    assert b.tolist() == [2.0] * 8


def test_a_set_that_was_not_finished_does_not_exist_and_leaves_nothing(tmp_path: Path) -> None:
    def torn() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(3)
        raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        write_tensors(tmp_path, "set", torn(), {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path, "set")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path, "set", [("a", torch.ones(3))], {})
    (tmp_path / "set.bin").write_bytes(b"123")
    with pytest.raises(FileNotFoundError, match="has 3 bytes, expected 12"):
        read_tensors(tmp_path, "set")


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    write_tensors(tmp_path, "set", [("a", torch.ones(3))], {"note": "n"})
    manifest = json.loads((tmp_path / "set.json").read_text())
    assert manifest["tensors"] == {"a": {"dtype": "torch.float32", "shape": [3], "begin": 0}}
