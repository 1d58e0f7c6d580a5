"""`whet data nap`: several reasoning paths per problem, from a model, an endpoint or a solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from whet.cli._common import DecoderFlags, HardwareFlags, progress
from whet.cli.data import parse_part

if TYPE_CHECKING:
    from whet.dlm.nap.data import WritesPaths
    from whet.tasks import Task

app = App(
    name="nap",
    help_epilogue="Example: `whet data nap --solver --tasks modsum --n 4000 --out runs/paths`",
)


@app.default
def nap(
    *,
    out: Annotated[Path, Parameter(help="Folder of Arrow shards; what is there is kept.")],
    model: Annotated[
        str | None, Parameter(help="Model that writes the paths (with --endpoint: its name there).")
    ] = None,
    endpoint: Annotated[
        str | None, Parameter(help="URL of an OpenAI-compatible server that has the model.")
    ] = None,
    solver: Annotated[
        bool, Parameter(help="The tasks' own workings, in different orders.", negative="")
    ] = False,
    tasks: Annotated[
        list[str] | None,
        Parameter(help="Tasks or suites (default: workings).", consume_multiple=True),
    ] = None,
    paths: Annotated[int, Parameter(help="Paths per problem.")] = 3,
    n: Annotated[int, Parameter(help="Problems, spread over the tasks.")] = 1000,
    max_new_tokens: Annotated[int, Parameter(help="Tokens a path may take.")] = 330,
    problem_seed: Annotated[
        int | None, Parameter(help="Which problems are drawn (default: --seed, else 0).")
    ] = None,
    batch_size: Annotated[int, Parameter(help="Texts written together.")] = 64,
    shard_size: Annotated[int, Parameter(help="Problems per shard.")] = 256,
    part: Annotated[str, Parameter(help="K/N: make only every N-th shard from the K-th.")] = "0/1",
    hardware: HardwareFlags = HardwareFlags(),  # noqa: B008 - frozen
    decoder_flags: DecoderFlags = DecoderFlags(),  # noqa: B008 - frozen
) -> None:
    """Build sets of independent reasoning paths with a summary, judged by the tasks' checkers.

    Problems are of the training split. Paths are sampled at temperature 1.0 unless --temperature
    says otherwise. The same command goes on with what is missing.
    """
    from whet._io import check_writable
    from whet.dlm.nap.data import PathSets, build_path_sets
    from whet.errors import OptionError
    from whet.tasks import expand

    share = parse_part(part)
    if solver == (model is not None):
        raise OptionError("give either --model (with or without --endpoint) or --solver")
    if endpoint is not None and model is None:
        raise OptionError("--endpoint needs --model: the name it knows the model by")
    check_writable(out)
    chosen = expand(tasks or ["workings"])
    seed = int(decoder_flags.seed or 0)
    write = _source(
        chosen, model, endpoint, max_new_tokens, batch_size, seed, hardware, decoder_flags
    )
    with progress("paths", n) as done:
        build_path_sets(
            out,
            chosen,
            write,
            count=n,
            paths=paths,
            seed=seed if problem_seed is None else problem_seed,
            shard_size=shard_size,
            part=share,
            on_progress=done,
        )
    if share[1] > 1:
        print(out)
        return
    found = PathSets(out, least_right=0)
    right = [path for one in found for path in one.right]
    print(f"{out}: {len(found)} path sets, {sum(right)} of {len(right)} paths right")


def _source(
    tasks: Sequence[Task],
    model: str | None,
    endpoint: str | None,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    hardware: HardwareFlags,
    decoder_flags: DecoderFlags,
) -> WritesPaths:
    """What writes the paths. Errors: OptionError for flags that do not reach it."""
    from whet.dlm.nap.data import TEMPERATURE, SampledPaths, SolverPaths
    from whet.errors import OptionError

    if model is None:
        unfit = [*(["decoder"] if decoder_flags.decoder else []), *sorted(decoder_flags.given())]
        unfit = [f"--{name.replace('_', '-')}" for name in unfit if name != "seed"]
        if unfit:
            raise OptionError(f"{', '.join(unfit)}: a solver has no such setting")
        return SolverPaths(tasks, seed=seed)
    temperature = decoder_flags.temperature
    found: Any
    chain = f"endpoint:{model}"
    if endpoint is not None:
        from whet.evaluate.endpoint import EndpointModel, check_reachable

        if decoder_flags.decoder is not None:
            raise OptionError("--decoder does not reach a model behind an endpoint")
        check_reachable(endpoint)
        found = EndpointModel(endpoint, model, seed=seed, concurrency=batch_size)
    else:
        found, chain = _local(model, batch_size, seed, hardware, decoder_flags)
    generate: Callable[..., Any] = found.generate
    return SampledPaths(
        generate,
        name=f"{model} ({chain}, seed {seed})",
        max_new_tokens=max_new_tokens,
        temperature=TEMPERATURE if temperature is None else temperature,
    )


def _local(
    model: str, batch_size: int, seed: int, hardware: HardwareFlags, decoder_flags: DecoderFlags
) -> tuple[Any, str]:
    """A loaded model as an `EvalModel`, and the chain that names its decoder."""
    import whet
    from whet.bench.eval_models import wrap_model
    from whet.models.registry import is_autoregressive

    loaded, tokenizer = whet.load(model, dtype=hardware.check(), device=hardware.device)
    options, chain = None, "autoregressive"
    if is_autoregressive(loaded):
        decoder_flags.refuse_canvas(model)
    else:
        options, chain = decoder_flags.options(), decoder_flags.chain
    made = wrap_model(
        loaded, tokenizer, name=model, decoder=options, batch_size=batch_size, seed=seed
    )
    return made, chain
