"""The worker: does exactly one job, and answers in JSON lines.

The fork servers' children call :func:`serve`. A person repeats a job by hand with ::

    python -P -m bench.runner.worker < job.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from bench.runner.channel import Channel
from bench.runner.protocol import Announce, Answer, Job, job_adapter
from bench.store.schema import Status

JOBS_MODULE = "bench.runner.jobs"

Perform = Callable[[Job, Callable[[Announce], None]], Answer]


def serve(channel: Channel, perform: Perform) -> None:
    """Read one job from ``channel``, perform it, and answer.

    Every exception of the job becomes the answer's status and reason; its traceback goes to standard error.
    """
    line = channel.wait_for_line()
    if line is None:
        return
    channel.send(_answer(line, perform, channel.send))


def load_jobs(module: str) -> Perform:
    """The ``perform`` function of the module that knows how to do the jobs."""
    perform: Perform = importlib.import_module(module).perform
    return perform


def _answer(line: bytes, perform: Perform, send: Callable[[BaseModel], None]) -> Answer:
    current = ""

    def announce(message: Announce) -> None:
        nonlocal current
        current = message.case_id
        send(message)

    try:
        return perform(job_adapter.validate_json(line), announce)
    except MemoryError as error:
        failure = Status.OUT_OF_MEMORY, f"not enough memory: {error or 'MemoryError'}"
    except ValidationError as error:
        failure = Status.ERROR, f"not a job of this moebench: {error}"
    except Exception as error:  # noqa: BLE001 - the boundary of foreign code: whatever it raised is this row's reason
        failure = Status.ERROR, f"{type(error).__name__}: {error}"
    traceback.print_exc()
    return Answer(status=failure[0], reason=failure[1], case_id=current)


class _Printer(NamedTuple):
    """Sends messages to a file descriptor that nothing else prints to."""

    descriptor: int

    def send(self, message: BaseModel) -> None:
        line = message.model_dump_json().encode() + b"\n"
        while line:
            line = line[os.write(self.descriptor, line) :]


def main() -> int:
    """Do the job on standard input; messages to standard output, everything that the job prints to standard error."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.runner.worker", description=main.__doc__)
    parser.add_argument("--jobs", default=JOBS_MODULE, help="module with the jobs (default: %(default)s)")
    arguments = parser.parse_args()
    printer = _Printer(os.dup(sys.stdout.fileno()))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.redirect_stdout(sys.stderr):
        answer = _answer(sys.stdin.buffer.read(), load_jobs(arguments.jobs), printer.send)
    printer.send(answer)
    return 0 if answer.status is Status.OK else 1


if __name__ == "__main__":
    sys.exit(main())
