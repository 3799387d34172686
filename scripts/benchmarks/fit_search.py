"""Fit search: how often the first change that `describe` proposes really runs within the device's memory.

    python scripts/benchmarks/fit_search.py --save                  (CUDA where there is one, else the CPU)

Each case is a model, a precision, an optimizer, and a device with a share of the memory that its training is
said to need. The first proposal of the search is trained for two steps in a process of its own that may have
no more than that: on CUDA by torch.cuda.set_per_process_memory_fraction, on a CPU by a limit on its data
(RLIMIT_DATA) of what it has before the model is built and the device's bytes. A CPU has no step of its own
that lowers: what does not fit is a miss. The file as it was is run too: it should not fit.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common

MODELS = {  # depth, width, context, batch
    "cpu": [(2, 192, 128, 16), (4, 256, 128, 8), (6, 128, 256, 8)],
    "cuda": [(12, 768, 1024, 16), (16, 1024, 1024, 16), (8, 512, 2048, 16)],
}
SHARES = (0.85, 0.6, 0.4)  # of what the training needs
VOCABULARY = {"cpu": 2048, "cuda": 32_000}


def cases(device: str, short: bool) -> list[dict[str, Any]]:
    """What is tried: at least 20 in the long form."""
    precisions = ["fp32"] if device == "cpu" else ["bf16", "fp32"]
    optimizers = ["adamw", "sgd", "muon"]
    found = [
        {"size": list(size), "share": share, "precision": precision, "optimizer": optimizer, "device": device}
        for size, share, precision, optimizer in itertools.product(
            MODELS[device], SHARES, precisions, optimizers
        )
    ]
    return found[::9] if short else found


def proposal(case: dict[str, Any]) -> dict[str, Any]:
    """The device's bytes, what the training needs, and the setup after the first proposal."""
    from llmtool.stages import fitting
    from llmtool.stages.needs import ModelNeeds, proposals

    model, config = build(case["size"], VOCABULARY[case["device"]], "meta")
    _, _, context, batch = case["size"]
    setup = fitting.Setup(
        "train",
        batch,
        batch,
        0,
        case["precision"],
        False,
        case["optimizer"],
        "full",
        context,
        case["size"][0],
    )
    needs = ModelNeeds(model, config, case["device"], None)
    needed = needs(setup).total
    there = int(case["share"] * needed / 0.9)
    flops = float(model.flops(context))
    found = proposals(setup, needs, (flops / 3, 2 * flops / 3), there)
    first = found[0] if found else None
    return {
        "needed": needed,
        "there": there,
        "first": first and asdict(first),
        "before": asdict(setup),
        "after": first and asdict(changed(setup, first.set)),
    }


def changed(setup: Any, sets: list[str]) -> Any:
    """A setup with the options of a proposal."""
    from dataclasses import replace

    for one in sets:
        key, value = one.split("=", 1)
        name = key.rsplit(".", 1)[-1]
        if name == "micro_batch":
            setup = replace(setup, rows=int(value))
        elif name == "activation_checkpointing":
            setup = replace(setup, recomputed=setup.depth if value == "all" else int(value))
        elif name == "optimizer":
            setup = replace(setup, optimizer=value.strip("{}").split(": ")[1])
        elif name in ("context", "depth"):
            setup = replace(setup, **{name: int(value)})
        else:
            setup = replace(setup, **{name: value})
    return setup


def build(size: list[int], vocabulary: int, device: str) -> Any:
    """A Llama of this size, and its config."""
    import torch

    from llmtool.core.contracts import NextToken, Tokens
    from llmtool.models.transformer import TransformerConfig

    depth, width, context, _ = size
    config = TransformerConfig(
        architecture="llama", depth=depth, heads=width // 64, width=width, context=context
    )
    with torch.device(device):
        return config.build(Tokens(vocabulary), NextToken(vocabulary)), config


def run(case: dict[str, Any], setup: dict[str, Any], there: int) -> bool:
    """Whether two steps of the setup run in a process that may have so many bytes."""
    order = json.dumps({"case": case, "setup": setup, "there": there})
    done = subprocess.run([sys.executable, __file__, "--child", order], capture_output=True, text=True)
    if done.returncode not in (0, 6):
        raise SystemExit(f"{case}\n{done.stdout}\n{done.stderr}")
    return done.returncode == 0


def child(order: dict[str, Any]) -> None:
    """Two steps of training within the limit; ends with 6 where they do not fit."""
    import torch

    from llmtool.core.contracts import Batch
    from llmtool.core.devices import PRECISIONS, is_out_of_memory
    from llmtool.models.recompute import recompute
    from llmtool.tasks.language import LanguageTask
    from llmtool.training.loop import Loop, Plan, State, Verbs
    from llmtool.training.optimizers import AdamWConfig, MuonConfig, SGDConfig
    from llmtool.training.schedules import ConstantSchedule
    from llmtool.training.throughput import Meter

    case, setup, there = order["case"], order["setup"], order["there"]
    device, precision = torch.device(case["device"]), PRECISIONS[setup["precision"]]
    vocabulary, context, batch = VOCABULARY[case["device"]], setup["context"], setup["batch"]
    size = [setup["depth"], case["size"][1], context, batch]
    optimizers = {"adamw": AdamWConfig, "sgd": SGDConfig, "muon": MuonConfig}

    class Rows:
        rows, tokens_per_row = 10**6, context

        def batch(self, start: int, count: int) -> Batch:
            chance = torch.Generator().manual_seed(start)
            tokens = torch.randint(vocabulary, (count, context + 1), generator=chance)
            return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def steps(size: list[int], setup: dict[str, Any]) -> None:
        model, _ = build(size, vocabulary, device.type)
        recompute(model, setup["recomputed"])
        task = LanguageTask()

        def loss(rows: Batch) -> Any:
            with precision.autocast(device):
                return task.loss(model, rows)

        chosen = optimizers[setup["optimizer"]](name=setup["optimizer"])
        plan = Plan(batch=batch, micro_batch=setup["rows"], steps=2, checkpoint_every=100)
        verbs = Verbs(None, lambda row: None, lambda state, better: None)
        schedule = ConstantSchedule(name="constant")
        Loop(model, loss, None, Rows(), chosen.build(model), schedule, plan, device, Meter(batch), verbs).run(
            State()
        )

    # what the first step of a process imports, and the libraries' own workspaces, are not of this training
    steps([1, 64, context, batch], {**setup, "rows": batch, "recomputed": 1})
    if device.type == "cuda":
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + there) / whole))
    else:
        status = Path("/proc/self/status").read_text()
        data = next(line for line in status.splitlines() if line.startswith("VmData"))
        limit = 1024 * int(data.split()[1]) + there
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        steps(size, setup)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(6)


def main() -> None:
    """Try every case and count."""
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--child", help="one training, as JSON; for this script itself")
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("fit_search.py: no CUDA device here; nothing measured")
        return
    each, rows = [], []
    for case in cases(device, options.short):
        found = proposal(case)
        runs = found["first"] is not None and run(case, found["after"], found["there"])
        before = run(case, found["before"], found["there"])
        each.append({**case, **found, "runs": runs, "runs_as_it_was": before})
        first = "none" if found["first"] is None else " ".join(found["first"]["set"])
        size = "{} x {}, context {}, batch {}".format(*case["size"])
        rows.append(
            [size, case["precision"], case["optimizer"], f"{found['there'] / 1e6:.0f} MB",
             "runs" if before else "does not", first, "runs" if runs else "MISSED"]
        )  # fmt: skip
    good = sum(one["runs"] for one in each)
    common.table(
        f"first proposals that run, on {device}: {good} of {len(each)} ({100 * good / len(each):.0f} %)",
        ["model", "precision", "optimizer", "memory", "as it was", "first proposal", "with it"],
        rows,
    )
    figures = {
        "device": device,
        "cases": len(each),
        "first_runs": good,
        "share": good / len(each),
        "each": each,
    }
    common.save(options, f"fit_search_{device}", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
