"""The fork server's process: imports torch once, then forks a fresh child for every job.

Started by :mod:`bench.runner.servers` as ``python -P -m bench.runner.server --lifeline FD``. It runs no operator and
never touches CUDA, so that its children may. All of its own output is the lifeline, a socket to the runner:

===================  ======================================================================================
from the runner      ``S`` with one socket attached: fork a child that serves one job over that socket;
                     ``K``: kill the child
to the runner        ``ready``, ``started PID``, ``exited WAITSTATUS``, one a line
===================  ======================================================================================

When the lifeline ends, because the runner closed it or died, the child is killed and the server ends.
Every child leads a process group, so that whatever it started ends with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

from bench.runner.channel import Channel
from bench.runner.worker import JOBS_MODULE, Perform, load_jobs, serve

PR_SET_PDEATHSIG = 1
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


class Server:
    """Forks one child at a time and tells the runner what became of it."""

    def __init__(self, lifeline: socket.socket, perform: Perform) -> None:
        self._lifeline = lifeline
        self._perform = perform
        self._child = 0
        self._death, death_writer = os.pipe()
        for end in (self._death, death_writer):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(death_writer, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the lifeline ends."""
        self._say("ready")
        poller = select.poll()
        poller.register(self._lifeline, select.POLLIN)
        poller.register(self._death, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poller.poll()}
                if self._death in ready:
                    os.read(self._death, 4096)
                    self._reap()
                if self._lifeline.fileno() in ready and not self._obey():
                    return
        finally:
            self._kill()

    def _obey(self) -> bool:
        """Do what the runner asks; False when it is gone."""
        request, descriptors, _, _ = socket.recv_fds(self._lifeline, 1, 1)
        if request == b"S":
            self._fork(descriptors[0])
        elif request == b"K":
            self._kill()
        return bool(request)

    def _fork(self, descriptor: int) -> None:
        assert not self._child, "the runner asks for one child at a time"
        child = os.fork()
        if child == 0:
            self._be_child(descriptor)
        with contextlib.suppress(OSError):  # the child does the same; whoever comes second may fail
            os.setpgid(child, child)
        self._child = child
        os.close(descriptor)
        self._say(f"started {child}")

    def _be_child(self, descriptor: int) -> None:
        """Serve the job and end the process, whatever happens."""
        code = 1
        try:
            server = os.getppid()
            die_with_parent()
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._lifeline.close()
            if os.getppid() == server:
                serve(Channel(socket.socket(fileno=descriptor)), self._perform)
                code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # noqa: BLE001 - this is the end of the process: nothing may climb into the server's loop
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _kill(self) -> None:
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child, signal.SIGKILL)

    def _reap(self) -> None:
        if not self._child:
            return
        # Look without reaping, so that the group's number cannot be anybody else's when its stragglers are killed.
        ended = os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return
        self._kill()
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        self._say(f"exited {status}")

    def _say(self, text: str) -> None:
        self._lifeline.sendall(text.encode() + b"\n")


def die_with_parent() -> None:
    """Have the system kill this process when the one that forked it dies (Linux; elsewhere the lifeline must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Serve until the runner is gone."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.runner.server", description=main.__doc__)
    parser.add_argument("--lifeline", type=int, required=True, help="file descriptor of the socket to the runner")
    parser.add_argument("--jobs", default=JOBS_MODULE, help="module with the jobs (default: %(default)s)")
    parser.add_argument("--preload", nargs="*", default=[], help="modules to import once for all children")
    arguments = parser.parse_args()
    # Whoever is imported here may ask torch for GPUs. Its usual answer starts CUDA, and no child could then use it.
    os.environ.setdefault(NVML_CHECK, "1")
    lifeline = socket.socket(fileno=arguments.lifeline)
    lifeline.set_inheritable(False)
    # A runner that is gone is an ordinary end.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Server(lifeline, load_for_ever(arguments.jobs, arguments.preload)).run()
    return 0


def load_for_ever(module: str, preload: Sequence[str] = ()) -> Perform:
    """Load the jobs and what their layers need, and exempt what they imported from garbage collection.

    Torch is some 300,000 objects, none of them garbage. Looking for it would cost the import a fifth of its time, and
    every child, which copies the pages that a collection touches, a tenth of a second.
    """
    gc.disable()
    perform = load_jobs(module)
    for needed in preload:
        importlib.import_module(needed)
    gc.freeze()
    gc.enable()
    return perform


if __name__ == "__main__":
    code = main()
    # Tearing an interpreter with torch down takes half a second, for which the runner would have to wait.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
