"""One version of the layers in a process of its own: builds a layer, gives its result once, and samples it when told.

This file is run by its path, ``python -P version_worker.py --channel FD --path FOLDER``, and imports nothing of
``bench``: the only moebench that it sees is the version under test, of which it uses what every version since the first
has had: ``impls.build``, ``impls.LayerSpec`` and ``impls.weights.Weights``. So versions that are years apart can be
compared by the newer one's harness.

Requests and answers are JSON objects, one a line, over a socket. Between a request and the next the process sleeps in
``read``: it never spins while the other version is measured. It ends with its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
MIN_SAMPLE_S = 1e-3
MAX_CALLS = 10_000
ASSUMED_CACHE_BYTES = 128 * 2**20
OUT_OF_MEMORY_WORDS = ("not enough memory", "out of memory", "cannot allocate memory", "defaultcpuallocator")


class Worker:
    """Holds at most one layer; every public method is a request."""

    def open(
        self,
        *,
        folder: str,
        impl: str,
        layer: dict[str, Any],
        dtype: str,
        device: str,
        direction: str,
        threads: int,
        cache: str,
    ) -> dict[str, Any]:
        """Build a layer on the stored weights and tokens."""
        import torch

        from impls import LayerSpec, build
        from impls.weights import Weights

        self._let_go()
        torch.set_num_threads(threads)
        unknown = sorted(set(layer) - {field.name for field in dataclasses.fields(LayerSpec)})
        if unknown:
            return _failure("unsupported", f"the layers of this version have no {', '.join(unknown)}")
        tensors = {name: tensor.to(device) for name, tensor in _stored(Path(folder)).items()}
        spec = LayerSpec(**layer)
        weights = Weights(
            spec, {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        )
        built = build(
            impl,
            spec,
            device=device,
            dtype=getattr(torch, dtype),
            direction="train" if direction == "train" else "forward",
            weights=weights,
        )
        self.folder, self.train = Path(folder), direction == "train"
        self.layer, self.weights = built, weights
        self.x_TD = tensors["tokens"].requires_grad_(self.train)
        self.gradient_TD = tensors.get("output_gradient")
        self.routing = self._routing(tensors["expert_ids"]) if "expert_ids" in tensors else None
        self.device, self.cold, self.num_calls = torch.device(device), cache == "cold", 1
        self.call = self._step if self.train else self._forward
        return {"semantics": built.semantics, "exact": built.exact, "tolerance": getattr(built, "tolerance", None)}

    def result(self, *, truth: str, into: str) -> dict[str, Any]:
        """Store the output, in training the gradients, and the layer's own routing.

        They are computed under the decisions that the truth was computed for, where both chose the same experts or had
        equal scores to choose from; which of equal scores is taken is nobody's contract.
        """
        import torch

        stored, found = _stored(self.folder, truth), {}
        tokens_n, given = stored["tokens"].to(self.device), self.routing
        if getattr(self.layer, "routes", True):
            own = self._routing(None) if given is None else given
            found = {"routing.expert_ids": own.expert_ids, "routing.kept": own.kept}
            if given is None:
                given = self._decided(own, stored["expert_ids"].to(self.device), stored.get("kept"))
        with torch.inference_mode(not self.train):
            output_TD = self.layer(self.x_TD, routing=given)
        found["output"] = output_TD
        if self.train:
            assert self.gradient_TD is not None
            gradient_TD = torch.zeros_like(self.gradient_TD)
            gradient_TD[tokens_n] = self.gradient_TD[tokens_n]
            output_TD.backward(gradient_TD)
            leaves = [*self.weights.named_parameters(), ("input", self.x_TD)]
            found |= {name: leaf.grad for name, leaf in leaves if leaf.grad is not None}
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in found.items()}, into)
        self._drop_gradients()
        return {}

    def changed(self) -> dict[str, Any]:
        """Names of the shared tensors that differ from what was stored, bit by bit; empty while all is as it was."""
        import torch

        now = {f"weights.{name}": weight for name, weight in self.weights.named_parameters()} | {"tokens": self.x_TD}
        if self.gradient_TD is not None:
            now["output_gradient"] = self.gradient_TD
        names = []
        with torch.no_grad():
            for name, tensor in _stored(self.folder).items():
                if name in now:
                    # integers of the same width: equal bits, whatever they mean (NaN included)
                    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
                    if not torch.equal(now[name].view(bits), tensor.to(self.device).view(bits)):
                        names.append(name)
        return {"names": ", ".join(names)}

    def calls(self) -> dict[str, Any]:
        """How many calls make a sample that is long against the clock; the calls warm the layer up."""
        self.num_calls, sample_s = 1, self._timed()
        while not self.cold and self.num_calls < MAX_CALLS:
            sample_s = min(self._timed() for _ in range(3))
            if sample_s >= MIN_SAMPLE_S:
                break
            wanted = 1.2 * self.num_calls * MIN_SAMPLE_S / max(sample_s, 1e-9)
            self.num_calls = min(max(int(wanted) + 1, self.num_calls + 1), MAX_CALLS)
        return {"num_calls": self.num_calls, "sample_s": sample_s}

    def sample(self, *, num_calls: int) -> dict[str, Any]:
        """Seconds a call; a first call that is not timed brings caches and threads back from the other version."""
        self.num_calls = num_calls
        self.call()
        if self.cold:
            self._flush()
        return {"latency_s": self._timed() / num_calls}

    def _forward(self) -> None:
        import torch

        with torch.inference_mode():
            self.layer(self.x_TD, routing=self.routing)

    def _step(self) -> None:
        self.layer(self.x_TD, routing=self.routing).backward(self.gradient_TD)
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for leaf in (*self.weights.parameters(), self.x_TD):
            leaf.grad = None

    def _routing(self, expert_ids: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.layer.route(self.x_TD, expert_ids)

    def _decided(self, own: Any, ids_TK: Any, kept_TK: Any) -> Any:
        """The routing that the truth was computed for; None where it is the layer's own."""
        import torch

        same = torch.equal(own.expert_ids, ids_TK)
        if kept_TK is None:
            return None if same else self._routing(ids_TK)
        if same and torch.equal(own.kept.cpu(), kept_TK.bool()):
            return None
        from impls.routing import with_kept  # every version with such a router has it

        return with_kept(dataclasses.replace(own, expert_ids=ids_TK), kept_TK.bool())

    def _timed(self) -> float:
        import torch

        call, repeats = self.call, range(self.num_calls)
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in repeats:
                call()
            end.record()
            torch.cuda.synchronize(self.device)
            return float(start.elapsed_time(end)) * 1e-3
        start_ns = time.perf_counter_ns()
        for _ in repeats:
            call()
        return (time.perf_counter_ns() - start_ns) * 1e-9

    def _flush(self) -> None:
        import torch

        if not hasattr(self, "_flushed"):
            num_bytes = ASSUMED_CACHE_BYTES
            if self.device.type == "cuda":
                num_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
            self._flushed = torch.ones(2 * num_bytes // 4, device=self.device)
        if self.device.type == "cuda":
            self._flushed.zero_()
        else:
            self._flushed.sum()  # reading, because large writes may bypass a processor's caches

    def _let_go(self) -> None:
        """Let go of the layer before, so that only one is ever held."""
        vars(self).clear()
        gc.collect()


def _stored(folder: Path, name: str = "inputs") -> dict[str, Any]:
    """The tensors of a set that the harness stored: one file of bytes, mapped, and a table of where each lies."""
    import torch

    table = json.loads((folder / f"{name}.json").read_text())
    size = table["num_bytes"]
    raw = torch.from_file(str(folder / f"{name}.bin"), shared=False, size=size, dtype=torch.uint8) if size else None
    tensors = {}
    for key, entry in table["tensors"].items():
        dtype, shape = getattr(torch, entry["dtype"].removeprefix("torch.")), entry["shape"]
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if raw is None or not num_bytes:
            tensors[key] = torch.empty(shape, dtype=dtype)
        else:
            tensors[key] = raw[entry["begin"] : entry["begin"] + num_bytes].view(dtype).view(shape)
    return tensors


def _failure(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason}


def _failed(error: BaseException) -> dict[str, Any]:
    """Status and reason of what foreign code raised; classes by their name, each version has its own."""
    name, words = type(error).__name__, " ".join(str(error).split())
    if name == "Unsupported":
        return _failure("unsupported", words)
    if name in ("UnknownImplementation", "InvalidImplementation"):
        return _failure("unsupported", f"not in this version: {words}")
    memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
    if memory or any(some in words.lower() for some in OUT_OF_MEMORY_WORDS):
        return _failure("out_of_memory", words or name)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return _failure("error", f"{name}: {words} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})")


def _answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    methods: dict[str, Callable[..., dict[str, Any]]] = {
        "open": worker.open,
        "result": worker.result,
        "changed": worker.changed,
        "calls": worker.calls,
        "sample": worker.sample,
    }
    try:
        return methods[request.pop("do")](**request)
    except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this case's reason
        return _failed(error)


def main() -> int:
    """Serve requests until the parent is gone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--path", default="")
    arguments = parser.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = socket.socket(fileno=arguments.channel)
    channel.set_inheritable(False)
    if arguments.path:
        sys.path.insert(0, arguments.path)
    import torch  # noqa: F401 - what takes long belongs to the start

    import impls

    found = Path(impls.__file__).resolve()
    if arguments.path and not found.is_relative_to(Path(arguments.path).resolve()):
        print("another package called impls is in the way", file=sys.stderr)
        return 1
    worker = Worker()
    # no collection within a sample; what a layer leaves in cycles is collected when the next one is opened
    gc.disable()
    with channel, channel.makefile("rwb") as lines:
        lines.write(b"{}\n")  # ready
        lines.flush()
        for line in lines:
            lines.write(json.dumps(_answer(worker, json.loads(line))).encode() + b"\n")
            lines.flush()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a layer's threads or exit handlers must not keep the process
