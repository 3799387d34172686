"""Writes the README's table of figures from scripts/benchmarks/results/*.json.

    python scripts/figures.py            rewrites the table;  --check only says whether it is up to date

Every number in the table is read from a file there; a row whose file is missing is left out.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "scripts/benchmarks/results"
BEGIN, END = "<!-- from scripts/benchmarks/results, by scripts/figures.py -->", "<!-- end of the table -->"
MIB = 2**20


class MissingError(Exception):
    """A result that has not been measured."""


class Results:
    """The result files: `of("lora_cpu")` is the content under "figures" of lora_cpu.json."""

    def __init__(self, directory: Path = RESULTS) -> None:
        self.directory, self.read = directory, dict[str, Any]()

    def of(self, name: str) -> Any:
        """The figures of a file. MissingError where there is none, or one of a short run."""
        if name not in self.read:
            path = self.directory / f"{name}.json"
            if not path.is_file():
                raise MissingError(name)
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.get("short"):  # it only showed that the benchmark works
                raise MissingError(name)
            self.read[name] = document.get("figures", document)
        return self.read[name]


# --- how figures are written -------------------------------------------------------------------------------


def mean(spread: Any, digits: int) -> str:
    """The mean of repeated runs: 1,234.5"""
    return f"{spread['mean']:,.{digits}f}"


def pm(spread: Any, digits: int) -> str:
    """The same with its 95 % interval, where there were several runs: 0.94 ± 0.03"""
    half = spread["interval95"]
    return mean(spread, digits) + (f" ± {half:,.{digits}f}" if half is not None else "")


def span(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The smallest and the largest: 8 to 29 s"""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}{unit}"


def percent(values: Sequence[float]) -> str:
    """The same of shares: 94.0 to 95.7 %"""
    return span([100 * value for value in values], 1, " %")


def all_of(texts: Sequence[str]) -> str:
    """Several figures of one kind."""
    return ", ".join(texts)


# --- rows --------------------------------------------------------------------------------------------------


def table_row(what: str, name: str, digits: int) -> Row:
    """A table beside the simple models of the same rows."""

    def peer(r: Results) -> str:
        one = r.of("tables")[name]
        linear = "ridge" if one["metric"] in ("rmse", "rmse_log", "r2") else "logistic regression"
        return f"{linear} {mean(one['linear'], digits)}, gradient boosting {mean(one['boosting'], digits)}"

    return what, peer, lambda r: pm(r.of("tables")[name]["llmtool"], digits)


def story_row(what: str, name: str, metric: str = "accuracy", split: str = "test") -> Row:
    """A story of configs/ on a split beside the simple model of the same rows that does best."""
    choose = min if metric == "loss" else max

    def peer(r: Results) -> str:
        found = r.of("stories")[name]["runs"][0]["baselines"]
        best = choose(found, key=lambda one: one["metrics"][split][metric])
        return f"{best['name']} {best['metrics'][split][metric]:.4f}"

    def ours(r: Results) -> str:
        runs = r.of("stories")[name]["runs"]
        if len(runs) > 1:
            return span([run["metrics"][split][metric] for run in runs], 4)
        low, high = runs[0]["intervals"][split][metric]
        return f"{runs[0]['metrics'][split][metric]:.4f} ({low:.4f} to {high:.4f})"

    return what, peer, ours


def speed_row(setting: str, what: str) -> Row:
    """Tokens a second beside the fastest variant of each peer."""

    def measured(r: Results) -> Any:
        return r.of(f"peers_{setting}")

    def fastest(r: Results) -> dict[str, str]:
        programs, best = measured(r)["programs"], dict[str, str]()
        for name in programs:
            peer = name.partition("+")[0]
            other = best.get(peer)
            if other is None or speed(programs[name]) > speed(programs[other]):
                best[peer] = name
        return best

    def speed(program: Any) -> float:
        return float(program["tokens_per_second"]["median"])

    def peer(r: Results) -> str:
        programs, names = measured(r)["programs"], fastest(r)
        return all_of([f"{n} {speed(programs[n]):,.0f}" for p, n in names.items() if p != "llmtool"])

    def ours(r: Results) -> str:
        found = measured(r)
        ratios = [found["ratios"][n] for p, n in fastest(r).items() if p != "llmtool"]
        program = found["programs"][found["ours"]]
        return f"{speed(program):,.0f} (ratio {all_of([pm(ratio, 2) for ratio in ratios])})"

    return f"{what}: tokens a second", peer, ours


def target_rows() -> list[Row]:
    """Time and memory until litgpt's validation loss."""

    def found(r: Results) -> Any:
        return r.of("peers_target")

    def peers(r: Results, key: str, digits: int, unit: float = 1) -> str:
        programs = found(r)["programs"]
        shown = [name for name in ("litgpt", "nanogpt") if name in programs]
        return all_of([f"{name} {programs[name][key]['mean'] / unit:,.{digits}f}" for name in shown])

    def reached(r: Results, key: str, ratio: str, digits: int, unit: float = 1) -> str:
        texts = []
        for way, one in found(r)["reached"].items():
            if one is None:
                continue
            value = found(r)["programs"][one["name"]][key]["mean"] / unit
            lower = " in bf16" if one["name"].endswith("bf16") else ""
            texts.append(f"{way}{lower} {value:,.{digits}f} (ratio {pm(one[ratio], 2)})")
        return all_of(texts) or "not reached"

    what = "Tiny Shakespeare, characters, nanoGPT's CPU setting, 2000 steps"
    return [
        (
            f"{what}: validation loss",
            lambda r: peers(r, "loss", 3),
            lambda r: mean(found(r)["programs"]["llmtool"]["loss"], 3),
        ),
        (
            "the same: seconds of it, start-up included; ours until litgpt's loss",
            lambda r: peers(r, "seconds", 0),
            lambda r: reached(r, "seconds", "time_ratio", 0),
        ),
        (
            "of these runs: peak memory, MiB",
            lambda r: peers(r, "peak_bytes", 0, MIB),
            lambda r: reached(r, "peak_bytes", "memory_ratio", 0, MIB),
        ),
    ]


def lora(r: Results, key: str, cases: Sequence[str], device: str = "cpu") -> str:
    return all_of([pm(r.of(f"lora_{device}")[case][key], 2) for case in cases])


def parity(r: Results) -> tuple[int, int]:
    variants = r.of("parity")["differences"]
    return len(variants), sum(len(kinds) for kinds in variants.values())


def questions(r: Results) -> int:
    return sum(one.get("log_likelihoods", 0) for one in r.of("lm_eval")["answers"].values())


def farthest(r: Results) -> float:
    return max(one.get("largest_relative_difference", 0) for one in r.of("lm_eval")["answers"].values())


def covered(r: Results, heavy: bool) -> list[float]:
    kinds = {name: one for name, one in r.of("coverage").items() if isinstance(one, dict)}
    return [one["covered"] for name, one in kinds.items() if ("heavy" in name) is heavy]


def idle(r: Results) -> list[float]:
    found = r.of("noop")
    return [one["cpu_difference"] for name in ("iris", "adult") for one in found[name].values()]


Row = tuple[str | Callable[[Results], str], Callable[[Results], str], Callable[[Results], str]]
PROMPTS = ("one prompt of 32", "8 prompts of 16 to 128")
ADAPTED = ("lora", "dora", "qlora")
TRAINED = ("transformer", "mlp")


def prepared(r: Results, name: str) -> str:
    """Seconds of a program with one worker and with two."""
    found = r.of("prepare_scaling")["speed"]
    return " and ".join(f"{found[f'{name}, {workers}']['seconds']['mean']:.0f}" for workers in (1, 2))


def grown(r: Results) -> str:
    """How much faster two workers are, and their memory as the corpus grows."""
    found = r.of("prepare_scaling")
    sizes = all_of([f"{one['megabytes']:,}" for one in found["memory"]])
    memory = span([one["peak_mib"] for one in found["memory"]], 0, " MiB")
    return f"ratio {pm(found['speed']['two_workers_over_one'], 2)}; of {sizes} MB {memory} at most"


def step_ratios(r: Results, name: str) -> str:
    """Times of training steps, by those with another way of computing them."""
    return "time " + all_of([pm(one["ratio"], 2) for one in r.of(name)["steps"].values()])


def nothing(r: Results) -> str:
    """There is no peer."""
    return ""


ROWS: list[Row] = [
    speed_row("cpu_small", "4 layers, width 128, context 64, batch 12, two CPU cores"),
    speed_row("cpu_large", "6 layers, width 384, context 256, batch 8"),
    speed_row("cuda_gpt2", "GPT-2 124M, context 1024, bf16"),
    speed_row("cuda_llama", "a Llama of 1.1 B, context 4096, bf16"),
    *target_rows(),
    (
        "a step in float32, products by oneDNN beside PyTorch's: width 128, compiled, width 384, compiled",
        lambda r: "1" if r.of("products") else "",
        lambda r: step_ratios(r, "products"),
    ),
    (
        "a step in bf16, short rows' attention by products beside the kernel: 60, 160, 256 tokens",
        lambda r: "1" if r.of("short_attention") else "",
        lambda r: step_ratios(r, "short_attention"),
    ),
    (
        "a step on a 17 M Llama, one CPU core, beside PEFT on the same model: LoRA, DoRA, QLoRA",
        lambda r: "1" if r.of("lora_cpu") else "",
        lambda r: f"time {lora(r, 'ratio', ADAPTED)}; peak memory {lora(r, 'peak_ratio', ADAPTED)}",
    ),
    (
        "the same, full fine-tuning beside transformers' Trainer",
        lambda r: "1" if r.of("lora_cpu") else "",
        lambda r: f"time {lora(r, 'ratio', ['full'])}; peak memory {lora(r, 'peak_ratio', ['full'])}",
    ),
    (
        "a step on a Llama on CUDA beside PEFT and the Trainer: LoRA, full",
        lambda r: "1" if r.of("lora_cuda") else "",
        lambda r: (
            f"time {lora(r, 'ratio', ['lora', 'full'], 'cuda')}; "
            f"peak memory {lora(r, 'peak_ratio', ['lora', 'full'], 'cuda')}"
        ),
    ),
    (
        "greedy text of a 42 M Llama, tokens a second: one prompt, eight together",
        lambda r: f"transformers {all_of([mean(r.of('generation')[p]['transformers'], 1) for p in PROMPTS])}",
        lambda r: (
            f"{all_of([mean(r.of('generation')[p]['kept'], 1) for p in PROMPTS])} "
            f"(ratio {all_of([pm(r.of('generation')[p]['kept / transformers'], 2) for p in PROMPTS])})"
        ),
    ),
    (
        lambda r: (
            f"`prepare` of a text of {r.of('prepare_speed')['megabytes']:,} MB, BPE of 8192: "
            "millions of tokens a second while encoding"
        ),
        lambda r: f"tokenizers {r.of('prepare_speed')['tokenizers'][0]['tokens_per_second'] / 1e6:.2f}",
        lambda r: (
            f"{r.of('prepare_speed')['llmtool'][0]['encode_tokens_per_second'] / 1e6:.2f}, "
            f"{r.of('prepare_speed')['llmtool'][0]['peak_mib']:.0f} MiB at most, "
            f"{r.of('prepare_speed')['llmtool'][0]['cores_busy']:.1f} cores busy"
        ),
    ),
    (
        lambda r: (
            f"`prepare` of {r.of('prepare_scaling')['megabytes']:,} MB of JSON lines, cleaned and tokenised, "
            "seconds: one worker, two"
        ),
        lambda r: all_of([f"{name} {prepared(r, name)}" for name in ("datasets.map", "datatrove")]),
        lambda r: f"{prepared(r, 'llmtool')}; {grown(r)}",
    ),
    (
        "FSDP on one device, where it has nothing to share: time of a step beside none, CPU",
        nothing,
        lambda r: pm(r.of("fsdp_overhead_cpu")["fsdp_over_plain"], 3),
    ),
    (
        lambda r: (
            f"outputs of {parity(r)[0]} variants of architectures on random weights, plain, padded, "
            f"packed, cached, saved: {parity(r)[1]} cases"
        ),
        lambda r: "transformers",
        lambda r: f"at most {r.of('parity')['worst']:.1e} apart",
    ),
    (
        lambda r: f"four suites on one model: counts; log-likelihoods of {questions(r):,} texts",
        lambda r: "lm-evaluation-harness",
        lambda r: f"equal; at most {farthest(r):.1e} apart (relative)",
    ),
    (
        "the first program of deep learning on a table, five seeds: accuracy after fine-tuning",
        lambda r: f"Keras {pm(r.of('article')['keras']['finetuned'], 4)}",
        lambda r: pm(r.of("article")["llmtool"]["finetuned"], 4),
    ),
    (
        "the same: seconds, all four commands",
        lambda r: f"Keras {mean(r.of('article')['keras']['seconds'], 1)}",
        lambda r: (
            f"{mean(r.of('article')['llmtool']['seconds'], 1)} (ratio {pm(r.of('article')['time_ratio'], 2)})"
        ),
    ),
    table_row("Adult's official test file, ROC-AUC, three seeds", "adult", 4),
    table_row("the same with the ensemble, `family: tabm`", "adult_tabm", 4),
    table_row("California housing, RMSE in dollars, five folds", "california", 0),
    table_row("bicycles rented in an hour, R2, five folds", "bike", 4),
    table_row("houses in Ames, error of the logarithm, five folds", "ames", 4),
    table_row("bank marketing with the leaking column, ROC-AUC, five folds", "bank_duration", 4),
    table_row("the same without it", "bank", 4),
    table_row("letter recognition, the last 4,000: accuracy, three seeds", "letters", 4),
    table_row("red wine without copies, accuracy, five folds", "wine_red", 3),
    table_row("white wine without copies, accuracy, five folds", "wine_white", 3),
    story_row("IMDb, 25,000 test reviews, `family: bag`: accuracy", "imdb_bag"),
    story_row("the same, a language model of the reviews fine-tuned to their judgement", "imdb_sentiment"),
    story_row("the same, a pretrained encoder (MiniLM) fine-tuned", "imdb_minilm"),
    story_row("AG News' official test set from 4,500 texts, `family: bag`: accuracy", "agnews_bag"),
    story_row("kind of a Chinese poem, unseen poets: accuracy", "poetry_kind"),
    story_row("MNIST, a convnet from the start: accuracy", "mnist"),
    story_row("Fashion-MNIST, a convnet from the start: accuracy", "fashion_mnist"),
    story_row("CIFAR-10 as JPEG files, a convnet from the start: accuracy", "cifar10"),
    story_row("CIFAR-10 as JPEG files, a ResNet-20 of others fine-tuned: accuracy", "cifar10_resnet20"),
    story_row("Othello, people's games: their moves guessed", "othello", "match"),
    story_row("the same: guesses that are legal", "othello", "legal"),
    story_row("chess, an unseen master: his moves guessed", "chess", "match"),
    story_row("the same: guesses that are legal", "chess", "legal"),
    story_row("Tiny Shakespeare, nats a character", "shakespeare_long", "loss", "validation"),
    story_row("Chinese poems, nats a character", "chinese_poetry", "loss", "validation"),
    (
        lambda r: f"95 % intervals that hold the true figure, of {r.of('coverage')['sets']:,} test sets each",
        nothing,
        lambda r: f"{percent(covered(r, False))}; RMSE with heavy tails {100 * covered(r, True)[0]:.1f} %",
    ),
    (
        "copies planted across splits: found (exact; with every tenth word changed)",
        nothing,
        lambda r: (
            f"{r.of('leakage')['exact copies']['recall']:.3f}; "
            f"{r.of('leakage')['documents, 10 % of words changed']['recall']:.3f}"
        ),
    ),
    (
        "near-duplicates planted in texts of three languages: recall, precision, at least",
        nothing,
        lambda r: "; ".join(
            f"{min(one[key] for one in r.of('corpus_cleaning')['near_duplicates'].values()):.3f}"
            for key in ("recall", "precision")
        ),
    ),
    (
        "personal data and secrets planted in real texts, 12 kinds: found",
        nothing,
        lambda r: percent([one["recall"]["mean"] for one in r.of("corpus_quality")["planted"].values()]),
    ),
    (
        "cleaning steps for a corpus, the slowest and the fastest: documents a second on one core",
        nothing,
        lambda r: span(
            [
                one["documents_per_second"]["mean"]
                for one in r.of("corpus_quality")["speed"].values()
                if isinstance(one, dict)
            ],
            0,
        ),
    ),
    (
        lambda r: (
            f"steps of {len(r.of('guard')['trainings'])} sound trainings "
            f"({sum(one['steps'] for one in r.of('guard')['trainings'].values()):,}) that the guard refused"
        ),
        nothing,
        lambda r: str(sum(one["refused"] for one in r.of("guard")["trainings"].values())),
    ),
    (
        "tables with one wild row: refused with that row named, seeds; did no harm",
        nothing,
        lambda r: "{named} of {of}; {harmless}".format(**r.of("guard")["planted"]),
    ),
    (
        lambda r: f"`--rehearse`, {len(r.of('rehearsal'))} stories: seconds",
        nothing,
        lambda r: span([one["seconds"] for one in r.of("rehearsal").values()], 0),
    ),
    (
        "a command with nothing to do: processor seconds beside its imports, at most; where 1 GB was touched",
        nothing,
        lambda r: f"{max(idle(r)):.2f}; {r.of('noop')['text']['prepare, touched']['cpu_difference']:.2f}",
    ),
    (
        lambda r: f"report page of a run of {r.of('report')['steps']:,} steps: size, seconds until painted",
        nothing,
        lambda r: (
            f"{r.of('report')['page_bytes'] / 1000:.0f} kB, "
            f"{r.of('report')['painted_ms']['median'] / 1000:.2f}"
        ),
    ),
    (
        "share of a training step outside forward, backward, norm and optimizer: 0.8 M transformer, 11 k MLP",
        nothing,
        lambda r: all_of([f"{100 * r.of('overhead')[n]['overhead']['mean']:.1f} %" for n in TRAINED]),
    ),
    (
        lambda r: (
            f"`describe` before {len(r.of('predictions_cpu'))} trainings on a CPU: what they took by what "
            "was said, memory, seconds of a step (median; least to most)"
        ),
        nothing,
        lambda r: ", ".join(
            f"{statistics.median(found):.2f} ({span(found, 2)})"
            for key in ("peak_bytes", "step_seconds")
            if (found := [1 + one["error"][key] for one in r.of("predictions_cpu").values()])
        ),
    ),
    (
        "the first change that it proposes where a training does not fit: runs then, on a CPU, of how many",
        nothing,
        lambda r: "{first_runs} of {cases}".format(**r.of("fit_search_cpu")),
    ),
    ("`llmtool --help`, seconds", nothing, lambda r: f"{r.of('overhead')['help_seconds']['median']:.2f}"),
]


def table(results: Results) -> str:
    """The table in Markdown."""
    lines = ["| what | peer | llmtool |", "|---|---|---|"]
    for what, peer, ours in ROWS:
        try:
            cells = [what(results) if callable(what) else what, peer(results), ours(results)]
        except MissingError:
            continue
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def updated(readme: str, results: Results) -> str:
    """The README with the table as it should stand."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no lines {BEGIN} and {END}: the table goes between them")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main() -> None:
    """Rewrite the table, or check it."""
    readme = README.read_text(encoding="utf-8")
    wanted = updated(readme, Results())
    if "--check" in sys.argv[1:]:
        if readme != wanted:
            raise SystemExit("the README's table is not that of the results: python scripts/figures.py")
        return
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
