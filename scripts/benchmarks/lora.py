"""Fine-tuning beside PEFT and transformers' Trainer: seconds of a step, and memory at its peak.

    python scripts/benchmarks/lora.py --save

A Llama with random weights, the same for both sides, on the same rows in the same order, with the same
targets, starts, optimizer (AdamW, fused), clipping and precision: fp32 on a CPU, bf16 autocast over fp32
weights on CUDA. LoRA, DoRA and QLoRA (NF4) stand beside PEFT on transformers' Llama, in a plain loop of
torch; full fine-tuning beside transformers' Trainer. Both sides do one step in turn in one process, so that
what else the machine does falls on both; ratios are those of neighbouring steps, their intervals over blocks
of them, and beside wall time there is processor time, which on a CPU leaves out what other programs take.
Memory is measured in a process for each side: the highest resident set (on CUDA: allocated memory) during
steps, over what was there before the model. The first losses must agree to 1e-5 (in bf16 to 2e-2).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import common

LR, RANK, ALPHA, CLIP = 1e-3, 8, 16.0, 1.0
CPU = {"width": 384, "depth": 6, "heads": 6, "vocabulary": 8192, "context": 256, "batch": 4}
CUDA = {"width": 2048, "depth": 12, "heads": 16, "vocabulary": 32_000, "context": 1024, "batch": 8}
SHORT = {"width": 96, "depth": 2, "heads": 2, "vocabulary": 512, "context": 64, "batch": 2}
CASES = ("lora", "dora", "qlora", "full")
Step = Callable[[], float]  # does one step and returns its loss
Seconds = tuple[float, float]  # of the wall's clock, and of processors


def rows(sizes: dict[str, int], steps: int) -> Any:
    """(steps, batch, context) ids."""
    import torch

    generator = torch.Generator().manual_seed(1)
    shape = (steps, sizes["batch"], sizes["context"])
    return torch.randint(sizes["vocabulary"], shape, generator=generator)


def write_model(directory: Path, sizes: dict[str, int]) -> None:
    """A Llama with random weights as a Hugging Face directory."""
    import torch

    from llmtool.core.contracts import NextToken, Tokens
    from llmtool.models import pretrained
    from llmtool.models.transformer import TransformerConfig

    torch.manual_seed(0)
    shape = {key: sizes[key] for key in ("width", "depth", "heads", "context")}
    vocabulary = sizes["vocabulary"]
    model = TransformerConfig(architecture="llama", tie_embeddings=False, **shape).build(
        Tokens(vocabulary), NextToken(vocabulary)
    )
    pretrained.save(model, directory)


# --- ours -------------------------------------------------------------------------------------------------


def our_step(case: str, directory: Path, data: Any, device: Any) -> tuple[Step, Any]:
    """A step of llmtool's own training loop, and its model."""
    import torch

    from llmtool.core.contracts import IGNORE, Batch
    from llmtool.core.devices import resolve_precision
    from llmtool.models import pretrained
    from llmtool.models.adapters import METHODS
    from llmtool.tasks.language import LanguageTask
    from llmtool.training.loop import Loop, Plan, State, Verbs
    from llmtool.training.optimizers import AdamWConfig
    from llmtool.training.schedules import ConstantSchedule
    from llmtool.training.throughput import Meter

    keys = {"lora": {}, "dora": {"dora": True}, "qlora": {"quantise": "nf4"}}
    full = {"kind": "full"}
    method = METHODS.validate_python(
        full if case == "full" else {"kind": "lora", "rank": RANK, "alpha": ALPHA, **keys[case]}
    )
    model: Any = pretrained.load(directory)
    if case == "qlora":
        method.quantise_base(model, device)
    model.to(device)
    method.apply(model)
    precision, task = resolve_precision("auto", device), LanguageTask()
    targets = torch.roll(data, -1, dims=2)
    targets[:, :, -1] = IGNORE  # theirs has no target for the last token of a row

    class Batches:
        rows, tokens_per_row = data.shape[0] * data.shape[1], data.shape[2]

        def batch(self, start: int, count: int) -> Batch:
            step = start // data.shape[1] % data.shape[0]
            return Batch(data[step], targets[step])

        def where(self, start: int, count: int) -> list[str]:
            return []

    def loss(batch: Batch) -> Any:
        with precision.autocast(device):
            return task.loss(model, batch)

    optimizer = AdamWConfig(name="adamw", lr=LR, betas=[0.9, 0.999], weight_decay=0.0)
    plan = Plan(batch=data.shape[1], micro_batch=data.shape[1], steps=10**6, clip=CLIP)
    loop = Loop(
        model=model,
        loss=loss,
        compiled=None,
        batches=Batches(),
        optimizers=optimizer.build(model),
        schedule=ConstantSchedule(name="constant", warmup=0),
        plan=plan,
        device=device,
        meter=Meter(data.shape[1], data.shape[2]),
        verbs=Verbs(None, lambda row: None, lambda state, better: None),
    )
    state = State()
    model.train()

    def step() -> float:
        loop.total = loop.count = 0.0
        loop.optimizers.set_rate(loop.schedule.factor(state.step, plan.steps, 0.0))
        loop._update(state)
        loop.meter.step(loop.work)
        state.step += 1
        return float(loop.total) / float(loop.count)

    return step, model


# --- theirs -----------------------------------------------------------------------------------------------


def their_model(case: str, directory: Path, device: Any) -> Any:
    """transformers' Llama, with PEFT's updates but for full fine-tuning."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more: dict[str, Any] = {}
    if case == "qlora":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        more["device_map"] = {"": str(device)}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **more)
    model.config.use_cache = False
    if case != "full":
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            use_dora=case == "dora",
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, config)
    return model if case == "qlora" else model.to(device)


def their_step(case: str, directory: Path, data: Any, device: Any) -> tuple[Step, Any]:
    """A step of PEFT's model in a plain loop, and the model."""
    import torch

    model = their_model(case, directory, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    lower = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    model.train()
    done = 0

    def step() -> float:
        nonlocal done
        ids = data[done % len(data)].to(device, non_blocking=True)
        with lower:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        return loss.item()

    return step, model


def run_trainer(directory: Path, data: Any, device: Any, between: Callable[[Seconds], None]) -> list[float]:
    """Full fine-tuning by transformers' Trainer; returns the losses.

    between: called with the seconds of each step; the time that it takes itself is not counted.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = their_model("full", directory, device)
    flat, losses, cuda = data.flatten(0, 1), [], device.type == "cuda"

    class Rows:
        def __len__(self) -> int:
            return len(flat)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": flat[index], "labels": flat[index]}

    class Steps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.clock = Clock(device)

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            between(self.clock.read())
            self.clock = Clock(device)

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> None:
            return None

        def training_step(self, *arguments: Any, **more: Any) -> Any:
            loss = super().training_step(*arguments, **more)
            losses.append(loss.item())
            return loss

    with tempfile.TemporaryDirectory() as place:
        settings: dict[str, Any] = {"lr_scheduler_type": "constant", "optim": "adamw_torch_fused"}
        settings |= {"learning_rate": LR, "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": CLIP}
        settings |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": not cuda}
        settings |= {"per_device_train_batch_size": data.shape[1], "max_steps": len(data), "bf16": cuda}
        arguments = TrainingArguments(output_dir=place, dataloader_pin_memory=cuda, **settings)
        trainer = InOrder(model=model, args=arguments, train_dataset=Rows(), callbacks=[Steps()])
        with _quiet():
            trainer.train()
    return losses


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the Trainer prints."""
    before = sys.stdout
    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        try:
            yield
        finally:
            sys.stdout = before


# --- measuring, in processes of their own ----------------------------------------------------------------


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


class Clock:
    """Wall and processor seconds since it was last read."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.now = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        """Both, once the device has done what it was given; the next reading begins here."""
        _wait(self.device)
        before, self.now = self.now, (time.perf_counter(), time.process_time())
        return self.now[0] - before[0], self.now[1] - before[1]


def timed(step: Step, device: Any) -> tuple[Seconds, float]:
    """Seconds and loss of one step."""
    clock = Clock(device)
    loss = step()
    return clock.read(), loss


def take_starts(ours: Any, theirs: Any) -> None:
    """Give our updates the random starts of PEFT's."""
    import torch

    from llmtool.models.lora import updates

    with torch.no_grad():
        for name, update in updates(ours):
            layer = theirs.get_submodule(f"base_model.model.{name}")
            update.lora_A.weight.copy_(layer.lora_A["default"].weight)


def times(case: str, directory: Path, data: Any, device: Any, warm: int) -> dict[str, Any]:
    """Seconds and losses of both sides, step by step in turn."""
    ours, model = our_step(case, directory, data, device)
    mine: list[tuple[Seconds, float]] = []
    if case == "full":
        seconds: list[Seconds] = []

        def between(passed: Seconds) -> None:
            seconds.append(passed)
            mine.append(timed(ours, device))

        losses = run_trainer(directory, data, device, between)
        their = list(zip(seconds, losses, strict=True))
    else:
        theirs, other = their_step(case, directory, data, device)
        take_starts(model, other)
        their = []
        for _ in range(len(data)):
            their.append(timed(theirs, device))
            mine.append(timed(ours, device))
    return {
        "ours": [one for one, _ in mine[warm:]],
        "theirs": [one for one, _ in their[warm:]],
        "losses": {"ours": [loss for _, loss in mine], "theirs": [loss for _, loss in their]},
    }


def peak(case: str, side: str, directory: Path, data: Any, device: Any) -> dict[str, float]:
    """Bytes at the peak of one side, over what was there before its model."""
    # what is imported is no part of training
    import peft  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401

    from llmtool.models.quantised import load_bitsandbytes
    from llmtool.training import loop  # noqa: F401

    load_bitsandbytes()
    (
        torch.randn(64, 64, device=device, requires_grad=True) @ torch.randn(64, 64, device=device)
    ).sum().backward()
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else _resident()
    highest, ended = [before], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            highest[0] = max(highest[0], _resident())

    thread = threading.Thread(target=watch, daemon=True)
    if side == "theirs" and case == "full":
        counted = 0

        def begin(passed: Seconds) -> None:
            nonlocal counted
            counted += 1
            if counted == 1 and not cuda:
                thread.start()

        run_trainer(directory, data, device, begin)
    else:
        step, _model = (our_step if side == "ours" else their_step)(case, directory, data, device)
        for index in range(len(data)):
            step()
            if index == 0 and not cuda:
                thread.start()
    ended.set()
    top = torch.cuda.max_memory_allocated() if cuda else highest[0]
    return {"bytes": top - before, "before": before}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(arguments: dict[str, Any]) -> None:
    """What a process of its own measures, as JSON on its standard output."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    device = torch.device(arguments["device"])
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    data, directory = rows(arguments["sizes"], arguments["steps"]), Path(arguments["directory"])
    if arguments["side"]:
        found = peak(arguments["case"], arguments["side"], directory, data, device)
    else:
        found = times(arguments["case"], directory, data, device, arguments["warm"])
    print("\n" + json.dumps(found))


def measured(**arguments: Any) -> Any:
    """The answer of a `child`."""
    command = [sys.executable, str(Path(__file__)), "--child", json.dumps(arguments)]
    return json.loads(common.timed(command).output.strip().splitlines()[-1])


# --- figures ------------------------------------------------------------------------------------------------


def compared(case: str, place: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of one case, and whether both sides computed the same."""
    steps, warm = (5, 2) if options.short else (options.steps, 3)
    found = measured(case=case, side="", steps=steps, warm=warm, **place)
    losses = found["losses"]
    apart = [abs(a - b) for a, b in zip(losses["ours"], losses["theirs"], strict=True)]
    allowed = 2e-2 if place["device"] == "cuda" else 1e-5
    assert apart[0] <= allowed, f"{case}: the first losses differ by {apart[0]}"
    blocks = 5 if len(found["ours"]) >= 10 else 2
    sides = ("ours", "theirs")
    wall, processor = (
        {side: [seconds[which] for seconds in found[side]] for side in sides} for which in (0, 1)
    )
    few = 3 if options.short else 6
    memory = {
        side: [measured(case=case, side=side, steps=few, warm=0, **place) for _ in range(options.runs)]
        for side in sides
    }
    highest = {side: [run["bytes"] for run in them] for side, them in memory.items()}
    return {
        "seconds": {side: statistics.median(wall[side]) for side in sides},
        "ratio": common.ratios(*(_medians(wall[side], blocks) for side in sides)),
        "processor_seconds": {side: statistics.median(processor[side]) for side in sides},
        "processor_ratio": common.ratios(*(_medians(processor[side], blocks) for side in sides)),
        "first_losses_apart": apart[0],
        "last_losses_apart": apart[-1],
        "peak_bytes": {side: statistics.median(them) for side, them in highest.items()},
        "peak_ratio": common.ratios(highest["ours"], highest["theirs"]),
        "processes": memory,
    }


def _medians(values: list[float], blocks: int) -> list[float]:
    size = len(values) // blocks
    return [statistics.median(values[n * size : (n + 1) * size]) for n in range(blocks)]


def main() -> None:
    """Measure the cases in turn."""
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=33, help="steps of each side, three of them to warm up")
    parser.add_argument("--runs", type=int, default=3, help="processes whose memory is measured, each side")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    sizes = SHORT if options.short else CUDA if options.device == "cuda" else CPU
    options.runs = 1 if options.short else options.runs
    figures: dict[str, Any] = {"sizes": sizes}
    shown = []
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), sizes)
        place = {"directory": directory, "sizes": sizes, "device": options.device}
        for case in options.cases:
            one = figures[case] = compared(case, place, options)
            seconds, peaks = one["seconds"], one["peak_bytes"]
            shown.append([
                case, f"{seconds['ours']:.3f}", f"{seconds['theirs']:.3f}", common.show(one["ratio"]),
                common.show(one["processor_ratio"]), f"{peaks['ours'] / 2**20:.0f}",
                f"{peaks['theirs'] / 2**20:.0f}", common.show(one["peak_ratio"], 2),
            ])  # fmt: skip
    common.table(
        f"a step on {options.device}: " + ", ".join(f"{key} {value}" for key, value in sizes.items()),
        ["", "s", "peer s", "ratio", "processor", "MiB", "peer MiB", "ratio"],
        shown,
    )
    packages = common.versions("llmtool", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
    common.save(options, f"lora_{options.device}", figures, packages)


if __name__ == "__main__":
    main()
