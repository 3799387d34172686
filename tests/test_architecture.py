"""The ladder of the house: imports go strictly down, `--help` loads nothing heavy, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "llmtool"
RUNGS = {
    "core": 1,
    "data": 2, "models": 2, "metrics": 2,
    "tasks": 3, "training": 3, "evaluation": 3,
    "experiment": 4, "stages": 5, "commands": 6, "cli": 7, "__main__": 8,
}  # fmt: skip
# Imported where they are used: optional packages, scikit-learn with scipy, whose import takes 2 seconds, and
# pandas (0.3 s), which commands that read no rows do without.
LAZY = {"pyarrow", "zstandard", "sklearn", "scipy", "threadpoolctl", "pandas", "tensorboard"}
LAZY |= {"onnxruntime", "huggingface_hub", "bitsandbytes", "transformers", "onnx", "onnxscript", "gguf"}
LAZY |= {"rensa", "ftfy", "py3langid", "ray", "fsspec", "aiohttp"}
SLOW = ("torch.distributed.device_mesh", "torch.distributed.fsdp", "torch.distributed.tensor")
SLOW += ("llmtool.models.tensor_parallel",)  # imports the last of these
NO_TORCH = ("core/seeds.py", "data/normal.py")  # processes that clean and tokenise load these, and not torch
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            yield node.module or "", node.lineno
            if node.module == "llmtool":
                for name in node.names:
                    yield f"llmtool.{name.name}", node.lineno


def test_imports_go_strictly_down() -> None:
    wrong = []
    for path in FILES:
        here = room(path)
        if here == "__init__":
            continue
        for module, line in imports(ast.parse(path.read_text())):
            parts = module.split(".")
            if parts[0] != "llmtool" or len(parts) < 2 or parts[1] == "__version__":
                continue
            there = parts[1]
            if there != here and RUNGS[there] >= RUNGS[here]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} {here} imports {there}")
    assert not wrong, wrong


def test_nothing_is_imported_lazily_but_what_is_optional_or_slow() -> None:
    wrong = []
    for path in FILES:
        if room(path) == "cli":
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for module, line in imports(function):
                    place = path.relative_to(PACKAGE).as_posix()
                    slow = module.startswith(SLOW) or (module == "torch" and place in NO_TORCH)
                    if module.split(".")[0] not in LAZY and not slow:
                        wrong.append(f"{place}:{line} {module}")
    assert not wrong, wrong


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("torch", "pandas", "numpy", "sklearn", "pydantic")
    code = f"import sys, llmtool.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_and_functions_stay_short_and_say_what_they_hold() -> None:
    wrong = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 500:
            wrong.append(f"{path.name}: {text.count(chr(10))} lines")
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            wrong.append(f"{path.name}: no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 60:
                wrong.append(
                    f"{path.name}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno} lines"
                )
    assert not wrong, wrong


def test_no_door_runs_code_from_data() -> None:
    doors = (
        "import pickle",
        "torch.load(",
        "weights_only=False",
        "yaml.load(",
        "shell=True",
        "allow_pickle=True",
    )
    doors += ("trust_remote_code", "extractall", "joblib", "eval(compile", "exec(")
    texts = {path.name: path.read_text().replace('exec("")', "") for path in FILES}  # which runs nothing
    wrong = [f"{name}: {door}" for name, text in texts.items() for door in doors if door in text]
    assert not wrong, wrong
