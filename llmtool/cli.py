"""The command line, a function for each command. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import gc
import importlib
import json
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer

from llmtool import __version__
from llmtool.commands import (
    ExportOptions,
    GenerateOptions,
    InitOptions,
    LaunchOptions,
    Options,
    PredictOptions,
    ReportOptions,
)  # fmt: skip
from llmtool.core import streams
from llmtool.core.errors import Cancelled, ConfigError, Interrupted, LlmtoolError, Terminated

app = typer.Typer(
    name="llmtool",
    help="Develop and fine-tune models from one YAML file: prepare, describe, train, finetune, evaluate, "
    "predict.",
    epilog="Exit codes: 0 done, 1 failed, 2 config or usage, 3 requirement unmet, 4 data refused, "
    "5 diverged, 6 out of memory, 75 interrupted (run again to go on), 130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # halves the time of --help
    pretty_exceptions_enable=False,
)

Config = Annotated[str, typer.Argument(metavar="CONFIG.YAML", help="The experiment.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set train.batch=64."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Run even when nothing has changed.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the newest valid checkpoint even if the file has changed."),
]
Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse", help="Try the whole file aside, on a sample, in a minute; say what it will take."
    ),
]
Verify = Annotated[
    str | None,
    typer.Option(
        "--verify",
        metavar="resume|invariance",
        help="Prove on this file that a killed training ends in the same bits, or that micro-batches and "
        "packing change nothing. resume:200 makes 200 steps.",
        show_default=False,
    ),
]
Replay = Annotated[
    str | None,
    typer.Option(
        "--replay",
        metavar="DIR",
        help="Make a step again whose update was refused; DIR: what was kept of it. Writes nothing.",
        show_default=False,
    ),
]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Record a few steps: a Chrome trace, and where a step's time goes."),
]
Place = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG.YAML | DIR",
        help="The experiment; or a run, a checkpoint or a Hugging Face model directory.",
        show_default=False,
    ),
]
Of = Annotated[
    str | None,
    typer.Option(
        "--of",
        metavar="CHECKPOINT",
        help="Which model; default: the run's finetune/best, else its train/best.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def init(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="The data: CSV, TSV, JSON, JSON lines, Parquet, text, IDX, PGN, WTHOR, or a folder of any "
            "of these or of pictures.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="COLUMN", help="The column to predict; default: guessed."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", metavar="FILE", help="Where the YAML goes; - for stdout.")
    ] = "config.yaml",
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="classification|multilabel|regression|language", help="Default: guessed."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at data and write the first YAML file for it, every guess explained. Never writes over a file."""
    _run("init", InitOptions(path, output, target, task), json, debug)


@app.command()
def prepare(
    config: Config,
    set_: Set = None,
    json: Json = False,
    force: Force = False,
    rehearse: Rehearse = False,
    debug: Debug = False,
) -> None:
    """Read, clean, split and encode the data."""
    _run("prepare", Options(config, set_ or [], force), json, debug, rehearse)


@app.command()
def describe(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG.YAML | RUN [OTHER]", help="The experiment; or a run, or two.", show_default=False
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="DEVICE",
            help="Predict for this device too (H100); again for more; all: each known.",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices", metavar="FILE.YAML", help="Devices of your own, power, prices.", show_default=False
        ),
    ] = None,
    set_: Set = None,
    json: Json = False,
    force: Force = False,
    rehearse: Rehearse = False,
    debug: Debug = False,
) -> None:
    """Show the model's structure, what training takes (memory, time, energy, money) and whether it fits. Of a
    RUN (or a checkpoint) also what it was made from, and whether that still holds; of two runs what
    differs."""
    options = Options(
        paths[0], set_ or [], force, others=tuple(paths[1:]), on=tuple(on or ()), devices=devices
    )
    _run("describe", options, json, debug, rehearse)


@app.command()
def train(
    config: Config,
    set_: Set = None,
    json: Json = False,
    force: Force = False,
    resume: Resume = False,
    rehearse: Rehearse = False,
    verify: Verify = None,
    replay: Replay = None,
    profile: Profile = False,
    debug: Debug = False,
) -> None:
    """Train the model, preparing the data first if need be."""
    options = Options(config, set_ or [], force, resume, profile=profile)
    _run("train", options, json, debug, rehearse, verify, replay)


@app.command()
def finetune(
    config: Config,
    set_: Set = None,
    json: Json = False,
    force: Force = False,
    resume: Resume = False,
    rehearse: Rehearse = False,
    verify: Verify = None,
    replay: Replay = None,
    profile: Profile = False,
    debug: Debug = False,
) -> None:
    """Adapt an existing model to this data; scores before and after stand side by side."""
    options = Options(config, set_ or [], force, resume, profile=profile)
    _run("finetune", options, json, debug, rehearse, verify, replay)


@app.command()
def evaluate(
    config: Config,
    set_: Set = None,
    json: Json = False,
    force: Force = False,
    rehearse: Rehearse = False,
    debug: Debug = False,
) -> None:
    """Score the model on validation and test data, and check what `require:` asks for."""
    _run("evaluate", Options(config, set_ or [], force), json, debug, rehearse)


@app.command()
def launch(
    config: Config,
    slurm: Annotated[bool, typer.Option("--slurm", help="A batch script for Slurm's sbatch.")] = False,
    stage: Annotated[str | None, typer.Option("--stage", metavar="train|finetune", help="Which.")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs of each machine.")] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="H:MM:SS", help="At most.")] = None,
    sbatch: Annotated[list[str] | None, typer.Option("--sbatch", metavar="KEY=VALUE", help="More.")] = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Print a batch script that trains on several machines, and nothing else."""
    options = LaunchOptions(config, set_ or [], slurm, stage, nodes, gpus, time, sbatch or [])
    _run("launch", options, False, debug)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Directories of runs.")],
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Where the page goes; of one run: into it.")
    ] = None,
    tensorboard: Annotated[
        str | None,
        typer.Option("--tensorboard", metavar="DIR", help="Write the curves as TensorBoard events."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's report.html, or put several runs side by side."""
    _run("report", ReportOptions(runs, html, tensorboard), json, debug)


@app.command()
def export(
    path: Place,
    to: Annotated[
        str, typer.Option("--to", metavar="safetensors|onnx|gguf", help="The format.", show_default=False)
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="DIR", help="Where it goes; default: RUN/export/FORMAT.", show_default=False
        ),
    ] = None,
    of: Of = None,
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="fp32|bf16|fp16|q8_0", help="Of the weights; q8_0: of gguf only."),
    ] = "fp32",
    set_: Set = None,
    json: Json = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write the model for other programs: safetensors for transformers, ONNX, or GGUF for llama.cpp."""
    _run("export", ExportOptions(path, to, set_ or [], out, of, dtype, force), json, debug)


@app.command()
def generate(
    path: Place,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="What the model goes on from; may be given again."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One a line (.txt), or rows with `prompt` or `messages`, and `tools` (.jsonl, .json ...).",
            show_default=False,
        ),
    ] = None,
    of: Of = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Write the texts there, a line of JSON each."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="The most tokens of a text.")] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", help="1: as the model learned; 0: the likeliest token.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Among so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Among the likeliest that have this probability together.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Among those with this share of the likeliest's.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="A text ends before this; may be given again."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Default: the file's.")] = None,
    count: Annotated[int, typer.Option("--count", help="Texts for each prompt.")] = 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="Without the chat template: the prompt as it stands.")
    ] = False,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Have a language model write: one prompt's text as it comes, several together."""
    options = GenerateOptions(
        path, set_ or [], prompt or [], prompts, of, out, tokens, temperature, top_k, top_p, min_p,
        stop or [], seed, count, raw,
    )  # fmt: skip
    _run("generate", options, json, debug)


@app.command()
def predict(
    path: Place,
    input_: Annotated[
        str,
        typer.Option("--input", metavar="FILE", help="The rows; - is standard input.", show_default=False),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", metavar="FILE", help="A .csv, .tsv, .jsonl or .parquet file; - is standard output."
        ),
    ] = "-",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="csv|tsv|jsonl|json|text|parquet|pgn|...",
            help="Of the input; default: what its name says, else that of the model's own data.",
            show_default=False,
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="CHECKPOINT",
            help="Which model; default: the one that evaluate scores.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="predictions", help="Leave the input's own columns out."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 when a row has an error.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that is there.")] = False,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what the model says of new rows: as many out as in, in their order. A row that cannot be used says
    why in the column `error`."""
    options = PredictOptions(path, input_, output, set_ or [], of, format_, only, strict, force)
    _run("predict", options, json, debug)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        streams.put(f"llmtool {__version__}\n")
        raise typer.Exit()


def _run(
    command: str,
    options: Any,  # of commands/__init__.py
    as_json: bool,
    debug: bool,
    rehearse: bool = False,
    verify: str | None = None,
    replay: str | None = None,
) -> None:
    """Run one command and end the process with its exit code; a traceback only if asked for."""
    aside: dict[str, list[str]] = {"rehearse": []} if rehearse else {}
    aside |= {name: [of] for name, of in (("verify", verify), ("replay", replay)) if of is not None}
    name = next(iter(aside), command)
    status: dict[str, Any] = {"command": command, "status": "done", "exit_code": 0}
    before = _catch_sigterm()
    try:
        if len(aside) > 1:
            raise ConfigError(f"--{' and --'.join(aside)}: give one of them")
        if aside and getattr(options, "profile", False):
            raise ConfigError(f"--profile records a real training: --{name} runs aside, give one of them")
        module = _load(f"llmtool.commands.{name}")
        importlib.import_module("llmtool.core.console").configure(json=as_json)
        result = module.run(options, *([command, *aside[name]] if aside else []))
        status |= result
    except LlmtoolError as error:
        status = _told(status, error, error.status, error.exit_code)
        _complain(str(error), debug)
    except KeyboardInterrupt as error:
        ended = Interrupted if isinstance(error, Terminated) else Cancelled
        status = _told(status, error, ended.status, ended.exit_code)
        _complain(status["error"], debug)
    except streams.ReaderGoneError:  # of our stdout (`llmtool predict ... | head`): it has had enough
        streams.mute(sys.stdout)
    except Exception as error:
        status = _told(status, error, LlmtoolError.status, LlmtoolError.exit_code)
        status["error"] = f"{type(error).__name__}: {error}"
        _complain(f"internal error: {status['error']} (--debug shows where)", debug)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    if as_json:
        streams.put(json.dumps(status, allow_nan=False, default=str) + "\n")
    raise typer.Exit(status["exit_code"])


def _load(name: str) -> Any:
    """Import a module. Looking through what imports leave behind, over and over, would be a fifth of it."""
    if name not in sys.modules:
        gc.disable()
        importlib.import_module(name)
        gc.freeze()
        gc.enable()
    return sys.modules[name]


def _told(status: dict[str, Any], error: BaseException, name: str, code: int) -> dict[str, Any]:
    """The document of a command that `error` ended. Its own result.json may be of work which stands."""
    result: dict[str, Any] = getattr(error, "result", {})
    if result.get("command") != status["command"]:
        result = {}
    return {**status, **result, "status": name, "exit_code": code, "error": str(error) or "cancelled"}


def _catch_sigterm() -> Any:
    """SIGTERM ends a command as Ctrl-C does, its record written; in training the loop's own handler saves."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated("interrupted by SIGTERM; run the same command again")

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: signals are not ours to catch
        return None


def _complain(message: str, debug: bool) -> None:
    console = importlib.import_module("llmtool.core.console")
    for line in message.splitlines():
        print(f"llmtool: {console.clean(line)}", file=sys.stderr)
    if debug:
        traceback.print_exc()


def main() -> None:
    """The entry point. With `--json` a command line that is wrong prints its document too."""
    streams.open_closed()
    try:
        code = app(standalone_mode=False)
    except OSError as error:  # of --help
        code = 0
        streams.lose(streams.unwritable(error))
    except Exception as error:  # click's own, wherever this version of typer keeps it
        if not hasattr(error, "show") or not hasattr(error, "format_message"):
            raise
        error.show()
        code = error.exit_code  # type: ignore[attr-defined]
        if "--json" in sys.argv:
            about = {"command": None, "status": "config_error", "exit_code": code}
            streams.put(json.dumps({**about, "error": error.format_message()}) + "\n")
    if why := streams.lost():
        _complain(why, debug=False)
    gc.freeze()  # everything goes with the process: it need not look for what could go
    sys.exit(code or (LlmtoolError.exit_code if why else 0))
