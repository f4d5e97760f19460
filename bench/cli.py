"""The command line. Data goes to stdout, talk to stderr; what each command needs is imported when it runs.

So ``moebench --help`` and ``moebench list`` answer without loading torch, pandas or a plotting library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from bench.errors import Exit, MoebenchError, RequestError
from bench.options import AXES, Axes, ModelOptions
from bench.plain_text import printable

app = App(
    name="moebench",
    help="Measure Mixture-of-Experts layer implementations against each other, honestly, and plot the result.",
    version=lambda: f"moebench {version('moebench')}",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=(), show_default=False),
)
RESULTS = Path("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (the process's own by default) and give its exit code."""
    try:
        result = app(
            sys.argv[1:] if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except MoebenchError as error:
        return _fail(str(error), error.exit_code)
    except UnusedCliTokensError as error:
        return _fail(f"too many arguments: {' '.join(error.unused_tokens or [])}", Exit.CANNOT)
    except CycloptsError as error:
        return _fail(f"{str(error).strip()} (moebench --help shows what there is)", Exit.CANNOT)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        # the reader of our output has had enough; what Python flushes at its end must go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return result if isinstance(result, int) else Exit.OK


def _fail(message: str, code: Exit) -> Exit:
    print(printable(f"moebench: {message}"), file=sys.stderr)
    return code


def _style(command: str, **formats: bool) -> str:
    """The format that was asked for, of which there may be one; empty for the table that people read."""
    asked = [name for name, given in formats.items() if given]
    if len(asked) > 1:
        raise RequestError(f"{command} prints one format at a time, and was asked for {' and '.join(asked)}")
    return "".join(asked)


@app.command
def run(
    source: str | None = None,
    /,
    *,
    impl: Annotated[str | None, Parameter(group=AXES)] = None,
    axes: Axes | None = None,
    layer: ModelOptions | None = None,
    budget: str | None = None,
    seed: str | None = None,
    results: Path = RESULTS,
    resume: str | None = None,
    profile: bool = False,
    isolate: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a sweep. The last line on stdout is the run's folder.

    Args:
        source: A preset (`moebench list presets`) or a TOML file; `quick` by default.
        impl: Implementations: names, `all`, or path/to/file.py:ClassName.
        axes: What the sweep varies.
        layer: A real model's layer.
        budget: Time for the whole run, as in 90s, 5m or 1h.
        seed: Draws weights, tokens, routing and order.
        results: Folder in which runs are kept; results by default.
        resume: Go on with this run: its id, its folder, or `latest`. A budget that was spent begins anew; --budget
            gives it another.
        profile: Also say where time and memory go, in a pass of its own after the timing.
        isolate: Time every implementation in processes of its own, not in turns with the others; takes longer.
        dry_run: List the cases and the estimated time, and measure nothing.
        quiet: Show no progress and no summary.
    """
    from bench.commands import run_command

    flags = {"profile": "true" if profile else None, "isolate": "true" if isolate else None}
    given = (axes or Axes()).overrides(impl=impl, seed=seed, budget=budget, **flags)
    return run_command(
        source,
        given,
        model=(layer or ModelOptions()).select(),
        results=results,
        resume=resume,
        dry_run=dry_run,
        quiet=quiet,
    )


@app.command(name="profile")
def profile_(
    impl: str,
    /,
    source: str = "profile",
    *,
    axes: Axes | None = None,
    layer: ModelOptions | None = None,
    budget: str | None = None,
    operators: int = 8,
    nvtx: bool = False,
    check_limits: bool = False,
    results: Path = RESULTS,
    quiet: bool = False,
) -> int:
    """Say where the time, the memory and the operations of implementations go. The last line is the run's folder.

    Args:
        impl: Implementations, as in loop,grouped: names, `all`, or path/to/file.py:ClassName.
        source: A preset or a TOML file; `profile` by default.
        axes: What the sweep varies.
        layer: A real model's layer.
        budget: Time for the timing before it, as in 90s.
        operators: How many operators to print of each implementation.
        nvtx: Mark calls and stages for Nsight, as `nsys profile --trace-fork-before-exec=true`; on a GPU only.
        check_limits: Check what limits each, without a profiler, by pulling levers: more tokens, one expert's weights
            for all, fewer experts, next to nothing to do, other threads, memory that is kept.
        results: Folder in which runs are kept; results by default.
        quiet: Show no progress.
    """
    from bench.profile_command import profile_command

    flags = {"profile": "true", "check-limits": "true" if check_limits else None, "nvtx": "true" if nvtx else None}
    given = (axes or Axes()).overrides(impl=impl, budget=budget, **flags)
    return profile_command(
        source, given, model=(layer or ModelOptions()).select(), results=results, num_operators=operators, quiet=quiet
    )


@app.command
def show(
    run: str = "latest", /, *, csv: bool = False, json: bool = False, markdown: bool = False, results: Path = RESULTS
) -> int:
    """Print a run's table, one row a case.

    Args:
        run: A run's id, its folder, or `latest`.
        csv: Every column, SI units, comma-separated.
        json: Every column, SI units, one object a row.
        markdown: The short table for a pull request.
        results: Folder in which runs are kept; results by default.
    """
    from bench.commands import show_command

    return show_command(run, results=results, style=_style("show", csv=csv, json=json, markdown=markdown))


@app.command
def report(*runs: str, out: Path | None = None, results: Path = RESULTS) -> int:
    """Write an HTML report with its pictures and data; prints the path of the page.

    Args:
        runs: Runs' ids, folders, or `latest` (the default); also what `pytest bench/suites --benchmark-json` wrote.
        out: Folder to write; reports/<run id> by default.
        results: Folder in which runs are kept; results by default.
    """
    from bench.commands import report_command

    return report_command(runs or ("latest",), results=results, out=out)


@app.command
def compare(
    base: str,
    new: str,
    source: str | None = None,
    /,
    *,
    interleave: bool = False,
    fail_if: tuple[str, ...] = (),
    force: bool = False,
    json: bool = False,
    markdown: bool = False,
    processes: int | None = None,
    impl: Annotated[str | None, Parameter(group=AXES)] = None,
    axes: Axes | None = None,
    budget: str | None = None,
    seed: str | None = None,
    results: Path = RESULTS,
    quiet: bool = False,
) -> int:
    """Compare two runs, or with --interleave two versions of the code that are alive at once.

    With --fail-if, exit code 3 where a limit is broken or a case is not ok any more, 4 where one is wrong now.

    Args:
        base: A run's id, its folder, or `latest`. With --interleave: a git ref, a folder, a wheel, or FILE.py[:Class].
        new: What to compare with it, given in the same way.
        source: With --interleave, the preset or TOML file that says what to measure; `quick` by default.
        interleave: Measure both versions here, alternating sample by sample.
        fail_if: A limit such as 'latency > 5%', also of memory, energy or accuracy; only a verdict breaks it.
        force: Compare runs that are not comparable, and say so.
        json: Print JSON, one object a case.
        markdown: Print Markdown for a pull request.
        processes: With --interleave, pairs of processes; 12 by default.
        impl: With --interleave, as the following: as for `run`.
        axes: What the sweep varies.
        budget: Time for the whole comparison, as in 90s, 5m or 1h.
        seed: Draws weights, tokens, routing and order.
        results: Folder in which runs are kept, and earlier runs looked for; results by default.
        quiet: Show no progress.
    """
    from bench.comparing.command import compare_command

    style = _style("compare", json=json, markdown=markdown)
    given = (axes or Axes()).overrides(impl=impl, seed=seed, budget=budget)
    return compare_command(
        base,
        new,
        source,
        given,
        interleave=interleave,
        processes=processes,
        fail_if=fail_if,
        force=force,
        results=results,
        style=style,
        quiet=quiet,
    )


@app.command
def advise(
    run: str = "latest",
    /,
    *,
    tokens: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    direction: Literal["forward", "train"] | None = None,
    memory_limit: str | None = None,
    latency_limit: str | None = None,
    json: bool = False,
    results: Path = RESULTS,
) -> int:
    """Say which implementation to use, how sure that is, and what choosing otherwise would cost.

    Sizes that were not measured are answered only where their measured neighbours agree. Exit code 2 where nothing
    satisfies the limits.

    Args:
        run: A run's id, its folder, or `latest`.
        tokens: Tokens in one call.
        experts: Number of experts.
        top_k: Experts that each token uses.
        dtype: Number format.
        direction: Forward pass or train step.
        memory_limit: Weights and the peak of a call together, as in 2GiB.
        latency_limit: Time of one call, as in 5ms.
        json: Print JSON, one object an answer.
        results: Folder in which runs are kept; results by default.
    """
    from bench.advice import advise_command

    wanted = {"num_tokens": tokens, "num_experts": experts, "top_k": top_k, "dtype": dtype, "direction": direction}
    return advise_command(
        run,
        {axis: value for axis, value in wanted.items() if value is not None},
        memory_limit=memory_limit,
        latency_limit=latency_limit,
        results=results,
        as_json=json,
    )


@app.command
def check(
    *impls: str,
    tokens: str | None = None,
    dtype: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    seed: int = 0,
    json: bool = False,
) -> int:
    """Check that implementations compute what they should, in every way that they are called; times nothing.

    Exit code 4 where one gives wrong numbers, 1 where one crashes, 2 where a name leads nowhere.

    Args:
        impls: Names, or path/to/file.py:ClassName.
        tokens: Tokens in one call, instead of the battery's own; a comma runs it for each.
        dtype: Number formats: float32, bfloat16, float16, or fp32, bf16, fp16. All three by default.
        device: Where.
        set_: layer.NAME=VALUE, a layer nearer to yours than the battery's own, as in layer.num_experts=64.
        seed: Draws weights, tokens and routing.
        json: Print JSON, one object an implementation.
    """
    from bench.conformance.command import check_command

    if not impls:
        raise RequestError("check needs an implementation: a name (`moebench list impls`) or path/to/file.py:ClassName")
    return check_command(impls, tokens=tokens, dtype=dtype, device=device, assignments=set_, seed=seed, as_json=json)


@app.command(name="list")
def list_(
    what: Literal["impls", "presets", "models", "runs"] | None = None, /, *, json: bool = False, results: Path = RESULTS
) -> int:
    """List implementations, presets, models or runs; all of them by default.

    Args:
        what: Which of them.
        json: Print JSON, one object an entry.
        results: Folder in which runs are kept; results by default.
    """
    from bench.listing import list_command

    return list_command(what, results=results, as_json=json)


@app.command
def trace(
    model: str,
    /,
    *,
    out: Path,
    text: Path | None = None,
    ids: Path | None = None,
    random: int | None = None,
    max_tokens: int = 8192,
    layer: tuple[int, ...] = (),
    seed: int = 0,
) -> int:
    """Record which experts a real model sends its tokens to; prints the files for `run --routing trace:FILE`.

    Needs the package transformers and a model on this machine; nothing is downloaded.

    Args:
        model: The folder of a saved model, or the name of one in transformers' cache.
        out: Folder for one .npy a layer with experts.
        text: A text file, read by the model's tokenizer.
        ids: Token ids in a .npy file, where there is no tokenizer.
        random: So many random token ids: a trained router's loads on noise, not on language.
        max_tokens: Use no more tokens than this.
        layer: Number of a layer to record; repeat it for several. All by default.
        seed: Draws random token ids.
    """
    from bench.trace_command import trace_command

    return trace_command(
        model, text=text, ids=ids, random=random, out=out, max_tokens=max_tokens, layers=layer, seed=seed
    )


@app.command
def doctor(
    *,
    self_test: Annotated[bool, Parameter(negative="--no-self-test")] = True,
    budget: str = "45s",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
) -> int:
    """Say what this machine can measure, what would disturb it, and how small a difference it can show.

    The last is found by a self-test: identical code must not differ, a planted slowdown must be found. Exit code 1
    where it fails.

    Args:
        self_test: Run the self-test, as is done unless --no-self-test is given.
        budget: Time for the self-test.
        device: Where the self-test runs: a GPU where there is one, unless told otherwise.
        json: Print one JSON object.
    """
    from bench.doctor import doctor_command

    return doctor_command(self_test=self_test, budget=budget, device=device, as_json=json)


if __name__ == "__main__":
    sys.exit(main())
