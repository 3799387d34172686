"""Scores of evaluation suites beside lm-evaluation-harness's: the same model on the same rows.

    python scripts/benchmarks/lm_eval.py --harness /path/to/python --model DIRECTORY --data DIRECTORY [--save]

--harness: a Python that has lm-eval, transformers and torch. --model: a Hugging Face directory of a small
decoder. --data: a directory with eval_lambada/lambada_test.jsonl, gsm8k/{train,test}.jsonl and
wikitext2/test.txt. Rows in the formats of HellaSwag and ARC are made of the passages of LAMBADA: how one goes
on, among how others do. Theirs runs with its own task files (hellaswag, arc_easy, gsm8k, lambada_openai,
wikitext), whose data alone is replaced; one row at a time, float32, on the CPU, without a network.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = {"hellaswag": 300, "arc": 300, "lambada": 500, "gsm8k": 40, "wikitext": 8}
SHORT = dict.fromkeys(ROWS, 8)
SHOTS, TOKENS = 1, 128
# Their task -> what stands in the place of its data, and which rows are the examples.
TASKS = {
    "hellaswag": {"task": "hellaswag", "validation_split": "test", "training_split": None},
    "arc": {"task": "arc_easy", "validation_split": None, "training_split": None},
    "lambada": {"task": "lambada_openai"},
    "gsm8k": {
        "task": "gsm8k", "num_fewshot": SHOTS, "fewshot_config": {"sampler": "first_n", "split": "train"},
    },
    "wikitext": {"task": "wikitext", "validation_split": None, "training_split": None},
}  # fmt: skip
# (suite, our figure) -> their name of it
FIGURES = {
    ("hellaswag", "accuracy"): "acc,none",
    ("hellaswag", "accuracy_norm"): "acc_norm,none",
    ("arc", "accuracy"): "acc,none",
    ("arc", "accuracy_norm"): "acc_norm,none",
    ("lambada", "accuracy"): "acc,none",
    ("lambada", "perplexity"): "perplexity,none",
    ("gsm8k", "exact_match"): "exact_match,strict-match",
    ("gsm8k", "exact_match_flexible"): "exact_match,flexible-extract",
    ("wikitext", "word_perplexity"): "word_perplexity,none",
    ("wikitext", "byte_perplexity"): "byte_perplexity,none",
    ("wikitext", "bits_per_byte"): "bits_per_byte,none",
}


# --- the rows -----------------------------------------------------------------------------------------------


def write_rows(data: Path, place: Path, counts: dict[str, int]) -> None:
    """The file of each suite, the same for both; a function of the data alone."""
    lambada = lines(data / "eval_lambada/lambada_test.jsonl")
    drawn = random.Random(0)
    halves = [half for half in (cut(row["text"]) for row in lambada) if half]
    hellaswag, arc = [], []
    for number in range(max(counts["hellaswag"], counts["arc"])):
        before, after = halves[number]
        endings = [after, *(halves[place][1] for place in drawn.sample(range(len(halves)), 3))]
        order = drawn.sample(range(4), 4)
        choices, right = [endings[place] for place in order], order.index(0)
        first, _, second = before.rpartition(". ")
        hellaswag.append(
            {"activity_label": "Reading [title] a story", "ctx_a": f"{first}.", "ctx_b": second,
             "endings": choices, "label": str(right)}
        )  # fmt: skip
        labels = ["A", "B", "C", "D"] if number % 2 else ["1", "2", "3", "4"]
        short = [" ".join(choice.split()[:6]) for choice in choices]
        arc.append(
            {"question": before, "choices": {"text": short, "label": labels}, "answerKey": labels[right]}
        )
    pages = articles((data / "wikitext2/test.txt").read_text(encoding="utf-8"))
    write(place / "hellaswag.jsonl", hellaswag[: counts["hellaswag"]])
    write(place / "arc.jsonl", arc[: counts["arc"]])
    write(place / "lambada.jsonl", lambada[: counts["lambada"]])
    write(place / "gsm8k.jsonl", lines(data / "gsm8k/test.jsonl")[: counts["gsm8k"]])
    write(place / "gsm8k_examples.jsonl", lines(data / "gsm8k/train.jsonl")[:SHOTS])
    write(place / "wikitext.jsonl", [{"page": page, "text": page} for page in pages[: counts["wikitext"]]])


def cut(passage: str) -> tuple[str, str] | None:
    """A passage of several sentences: all but the last one, and the last one."""
    before, _, after = " ".join(passage.split()).rpartition(". ")
    return (before, after) if ". " in before and len(after.split()) > 6 else None


def articles(text: str) -> list[str]:
    """The articles of WikiText; a heading has one equals sign on each side."""
    found: list[list[str]] = []
    for line in text.split("\n"):
        bare = line.strip()
        if bare.startswith("= ") and bare.endswith(" =") and "= =" not in bare:
            found.append([])
        if found:
            found[-1].append(line)
    return ["\n".join(part) for part in found]


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- theirs, in a process of its own ------------------------------------------------------------------------


def theirs(place: Path, model: str) -> None:
    """Run lm-evaluation-harness on the files in `place`; writes theirs.json there."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    language_model = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=1)
    yamls = place / "tasks"
    yamls.mkdir()
    home = Path(lm_eval.__file__).parent / "tasks"
    for name, change in TASKS.items():
        source = next(
            p for p in home.rglob("*.yaml") if f"\ntask: {change['task']}\n" in f"\n{p.read_text()}"
        )
        data = {"test": str(place / f"{name}.jsonl")}
        if name == "gsm8k":
            data["train"] = str(place / "gsm8k_examples.jsonl")
        more: dict[str, Any] = {
            "include": str(source), "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": data}, "test_split": "test",
            **change, "task": f"local_{name}",
        }  # fmt: skip
        if name == "gsm8k":
            more["generation_kwargs"] = {
                "until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0,
                "max_gen_toks": TOKENS,
            }  # fmt: skip
        (yamls / f"local_{name}.yaml").write_text(json.dumps(more))
    manager = TaskManager(include_path=str(yamls))
    found, seconds = {}, {}
    for name in TASKS:
        began = time.perf_counter()
        result = lm_eval.simple_evaluate(
            model=language_model, tasks=[f"local_{name}"], task_manager=manager, bootstrap_iters=0
        )
        seconds[name] = time.perf_counter() - began
        samples = sorted(result["samples"][f"local_{name}"], key=lambda one: (one["doc_id"], one["filter"]))
        found[name] = {
            "figures": {key: value for key, value in result["results"][f"local_{name}"].items()
                        if isinstance(value, int | float)},
            "answers": [[one["resps"][0][0] if name in ("gsm8k", "wikitext") else
                         [answer[0][0] for answer in one["resps"]]][0] for one in samples
                        if one["filter"] in ("none", "strict-match")],
        }  # fmt: skip
    (place / "theirs.json").write_text(json.dumps({"suites": found, "seconds": seconds}))


# --- ours ---------------------------------------------------------------------------------------------------


def ours(place: Path, model: str) -> dict[str, Any]:
    """The same files through llmtool's suites."""
    import torch

    from llmtool.data.prompts import PromptTokenizer
    from llmtool.evaluation.exact_match import ExactMatch
    from llmtool.evaluation.last_word import LastWord
    from llmtool.evaluation.multiple_choice import MultipleChoice
    from llmtool.evaluation.perplexity import Perplexity
    from llmtool.evaluation.scorer import Scorer
    from llmtool.models import pretrained

    scorer = Scorer(
        pretrained.load(Path(model)),
        PromptTokenizer.read(Path(model)),
        torch.device("cpu"),  # type: ignore[arg-type]
    )
    suites: list[Any] = [
        MultipleChoice(kind="multiple_choice", path=str(place / "hellaswag.jsonl")),
        MultipleChoice(kind="multiple_choice", path=str(place / "arc.jsonl")),
        LastWord(kind="last_word", path=str(place / "lambada.jsonl")),
        ExactMatch(
            kind="exact_match", path=str(place / "gsm8k.jsonl"), tokens=TOKENS, shots=SHOTS,
            examples=str(place / "gsm8k_examples.jsonl"),
        ),
        Perplexity(kind="perplexity", path=str(place / "wikitext.jsonl"), documents="wikitext"),
    ]  # fmt: skip
    found, seconds = {}, {}
    for suite in suites:
        began = time.perf_counter()
        tally = suite.answers(suite.questions(), scorer, lambda count: None)
        seconds[suite.name] = time.perf_counter() - began
        answers = {"gsm8k": "text", "lambada": "nats", "wikitext": "nats"}.get(suite.name, "log_likelihoods")
        signed = [[-v] if answers == "nats" and suite.name == "lambada" else -v if answers == "nats" else v
                  for v in (record[answers] for record in tally.records)]  # fmt: skip
        found[suite.name] = {"figures": tally.metrics(), "answers": signed, "questions": tally.units}
    return {"suites": found, "seconds": seconds}


# --- both ---------------------------------------------------------------------------------------------------


def compared(our: dict[str, Any], their: dict[str, Any]) -> dict[str, Any]:
    """Figure by figure, and the answers to each question."""
    figures: dict[str, Any] = {}
    for (name, figure), key in FIGURES.items():
        mine, other = our["suites"][name]["figures"][figure], their["suites"][name]["figures"][key]
        figures[f"{name} {figure}"] = {
            "ours": mine, "theirs": other, "difference": mine - other,
            "relative": abs(mine - other) / abs(other) if other else abs(mine),
        }  # fmt: skip
    answers = {}
    for name, found in our["suites"].items():
        mine, other = found["answers"], their["suites"][name]["answers"]
        assert len(mine) == len(other), name
        if name == "gsm8k":
            same = sum(a == b for a, b in zip(mine, other, strict=True))
            answers[name] = {"questions": len(mine), "equal_texts": same}
            continue
        pairs = [
            (a, b) for x, y in zip(mine, other, strict=True)
            for a, b in (zip(x, y, strict=True) if isinstance(x, list) else [(x, y)])
        ]  # fmt: skip
        answers[name] = {
            "questions": len(mine),
            "log_likelihoods": len(pairs),
            "largest_relative_difference": max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs),
        }
    return {
        "figures": figures,
        "answers": answers,
        "seconds": {"ours": our["seconds"], "theirs": their["seconds"]},
    }


def main() -> None:
    if sys.argv[1:2] == ["theirs"]:
        theirs(Path(sys.argv[2]), sys.argv[3])
        return
    from common import parser, save, table, versions

    made: argparse.ArgumentParser = parser(__doc__ or "")
    for name in ("harness", "model", "data"):
        made.add_argument(f"--{name}", required=True)
    options = made.parse_args()
    counts = SHORT if options.short else ROWS
    with tempfile.TemporaryDirectory() as folder:
        place, model = Path(folder), str(Path(options.model).resolve())
        write_rows(Path(options.data), place, counts)
        our = ours(place, model)
        # -P: this file has the name of their package
        command = [options.harness, "-P", str(Path(__file__).resolve()), "theirs", str(place), model]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "home")}
        done = subprocess.run(
            command, env={**os.environ, **offline, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"lm-evaluation-harness failed:\n{done.stderr[-3000:]}")
        their = json.loads((place / "theirs.json").read_text(encoding="utf-8"))
    found = compared(our, their)
    rows = [[name, f["ours"], f["theirs"], f["difference"]] for name, f in found["figures"].items()]
    table("suites beside lm-evaluation-harness", ["figure", "llmtool", "lm-eval", "difference"], rows)
    for name, said in found["answers"].items():
        print(name, said)
    worst = max(f["relative"] for f in found["figures"].values())
    print(f"largest relative difference of a figure: {worst:.2g}")
    assert math.isfinite(worst)
    packages = versions("torch", "tokenizers") | {
        f"lm-eval's {name}": value
        for name, value in versions("lm-eval", "transformers", "torch", python=options.harness).items()
    }
    sys.argv[1:] = ["--harness", "PYTHON", "--model", Path(model).parent.name, "--data", "DATA", "--save"]
    save(options, "lm_eval", found, packages)


if __name__ == "__main__":
    main()
