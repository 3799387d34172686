"""llmtool init: what it writes loads, trains as it stands, explains every guess, and never overwrites."""

import json
import re
import struct

import pytest

from llmtool import experiment
from tests.conftest import people, story
from tests.photos import folder

REVIEWS = [
    f"this film number {n} was {'good and fine' if n % 2 else 'bad and dull'} to the end" for n in range(120)
]


def csv(columns):
    return "\n".join([",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]) + "\n"


def idx(folder):
    folder.mkdir()
    for name, count in (("train", 60), ("t10k", 20)):
        head = struct.pack(">4B3I", 0, 0, 8, 3, count, 8, 8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            head + bytes((n * 7) % 256 for n in range(count * 64))
        )
        labels = bytes(n % 10 for n in range(count))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels)


def class_folders(folder):
    image = pytest.importorskip("PIL.Image")
    for split, count in (("train", 12), ("val", 4)):
        for name, shade in (("day", 250), ("night", 10)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                picture = image.new("RGB", (16, 16), (shade, number, count))
                picture.save(folder / split / name / f"{number}.png")


def data(name, place):
    """A little data of each kind; its path."""
    path = place / name
    if name == "numbers":
        idx(path)
    elif name == "photos":
        class_folders(path)
    elif name == "games.txt":
        from llmtool.data.games.sources import OthelloRandomSource

        chunks = OthelloRandomSource(format="othello_random", games=60).read()
        path.write_text("\n".join(text for chunk in chunks for text in chunk.frame["moves"]) + "\n")
    else:
        path.write_text(CONTENT[name])
    return name


CONTENT = {
    "people.csv": people(),
    "reviews.csv": csv({"review": REVIEWS, "sentiment": ["pos" if n % 2 else "neg" for n in range(120)]}),
    "titles.csv": csv({"title": [" ".join(text.split()[2:5]) for text in REVIEWS], "topic": ["a", "b"] * 60}),
    "sizes.csv": "\n".join(["size;weight", *(f"{n},5;{n % 7},25" for n in range(120))]) + "\n",
    "tags.csv": csv({"review": REVIEWS, "tags": ["good", "good;long", "bad", "bad;long"] * 30}),
    "story.txt": story(400),
    "texts.jsonl": "".join(json.dumps({"story": text}) + "\n" for text in REVIEWS),
    "chats.jsonl": "".join(
        json.dumps({"instruction": f"say {n}", "output": f"it is {n}"}) + "\n" for n in range(80)
    ),
}
KINDS = {
    "people.csv": ("features", None), "reviews.csv": ("text", "sentiment"),
    "titles.csv": ("text", "topic"), "tags.csv": ("text", "tags"), "sizes.csv": ("features", "weight"),
    "story.txt": ("tokens", None),
    "texts.jsonl": ("tokens", None), "chats.jsonl": ("chat", None), "games.txt": ("moves", None),
    "numbers": ("images", None), "photos": ("images", None),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_trains_as_it_stands(llmtool, tmp_path, name):
    ended = llmtool("init", data(name, tmp_path), "--output", "a.yaml", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    encoding, target = KINDS[name]
    text = (tmp_path / "a.yaml").read_text()
    loaded = experiment.load(str(tmp_path / "a.yaml"))
    assert loaded.experiment.data.encode.as_ == encoding
    assert ended.json["encode"]["as"] == encoding
    assert target is None or ended.json["target"] == target
    assert ended.json["model"]["family"] in text
    trained = llmtool("train", "a.yaml", "--set", "train.budget={steps: 1}", cwd=tmp_path)
    assert trained.code == 0, trained.err
    explained(text)
    assert not re.search(r"[{]\w+[:.}]\S*[}]", " ".join(re.findall("#.*", text)))  # no f-string left behind
    assert ("llmtool generate a.yaml" if encoding in ("tokens", "chat") else "llmtool predict a.yaml") in text


@pytest.mark.parametrize(
    ("letters", "trains"), [(9_000, True), (15_000, True), (28_000, True), (2_000, False)]
)
def test_a_short_text_is_split_so_that_it_trains_or_refused(llmtool, tmp_path, letters, trains):
    (tmp_path / "a.txt").write_text(story(400)[:letters])
    ended = llmtool("init", "a.txt", cwd=tmp_path)
    assert ended.code == (0 if trains else 4), ended.err
    if trains:
        assert llmtool("prepare", "config.yaml", cwd=tmp_path).code == 0
    else:
        assert "about 2.00k characters: too little to learn from and to judge by" in ended.err


def test_a_text_that_only_repeats_itself_is_refused(llmtool, tmp_path):
    (tmp_path / "a.txt").write_text("Hello world. this is a text.\n" * 500)
    ended = llmtool("init", "a.txt", cwd=tmp_path)
    assert ended.code == 4, ended.err
    assert "a.txt: the text repeats itself (2 of its 8 pieces of about 2,048" in ended.error
    assert not (tmp_path / "config.yaml").exists()


def test_data_with_more_bad_rows_than_usual_trains_too(llmtool, tmp_path):
    openings = [f"1. {file}{to} {reply}{answer} *" for file in "abcdefgh" for to in "34"
                for reply in "abcd" for answer in "65"]  # fmt: skip
    games = [f'[Event "x"]\n\n{moves}\n\n' for moves in openings]
    variants = ['[Event "x"]\n[Variant "Atomic"]\n\n1. d4 *\n\n'] * 4
    (tmp_path / "a.pgn").write_text("".join(games + variants))
    (tmp_path / "a.csv").write_text(people() + "1,2\n" * 5)
    for name, share in (("a.pgn", 0.05), ("a.csv", 0.05)):
        ended = llmtool("init", name, "--output", f"{name}.yaml", cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert experiment.load(str(tmp_path / f"{name}.yaml")).experiment.data.max_bad == share
        assert llmtool("prepare", f"{name}.yaml", cwd=tmp_path).code == 0


def test_dates_are_read_in_the_order_that_fits_all_of_them(llmtool, tmp_path):
    days = [f"{n % 28 + 1}/{n // 28 + 1}/2021" for n in range(120)]
    unclear = [f"{n % 12 + 1}/{n % 11 + 1}/{2000 + n // 60}" for n in range(120)]
    columns = {"when": days, "born": unclear, "y": [str(n * 0.5) for n in range(120)]}
    (tmp_path / "a.csv").write_text(csv(columns))
    ended = llmtool("init", "a.csv", "--output", "a.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    made = experiment.load(str(tmp_path / "a.yaml")).experiment.data
    assert [(step.columns, step.dates) for step in made.clean] == [({"when": "date"}, "day/month/year")]
    assert (made.split.by, made.split.on, made.encode.ignore) == ("time", "when", ["born"])
    said = " ".join(re.sub("\n *# ", " ", (tmp_path / "a.yaml").read_text()).split())
    assert "in which order: day/month/year or month/day/year" in said
    assert llmtool("prepare", "a.yaml", cwd=tmp_path).code == 0
    card = json.loads((tmp_path / "runs/a/prepare/card.json").read_text())
    assert card["reading"]["clean"][0]["dates"] == "day/month/year"  # as predict will read them


def explained(text):
    """Every guessed key has a comment beside it or above it; lines stay short."""
    lines = text.splitlines()
    assert all(len(line) <= 112 for line in lines)
    section = ""
    for number, line in enumerate(lines):
        if re.match(r"\w+:", line):
            section = line.partition(":")[0]
        guessed = re.match(
            r"\s+(as|target|target_kind|label_separator|text|tokenizer|length|scale|missing|markers|split|documents|encoding|"
            r"delimiter|header|quote|skip_space|decimal|family|budget|size|game):",
            line,
        )
        if guessed and section in ("data", "model", "train"):
            above = lines[number - 1].strip()
            assert "#" in line or above.startswith("#"), line


def test_the_next_step_is_printed(llmtool, tmp_path):
    data("people.csv", tmp_path)
    ended = llmtool("init", "people.csv", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "llmtool train config.yaml" in ended.out
    again = llmtool("init", "people.csv", cwd=tmp_path)
    assert again.code == 2
    assert "config.yaml exists and is not written over" in again.err
    shown = llmtool("init", "people.csv", "--output", "-", cwd=tmp_path)
    assert shown.code == 0
    assert shown.out == (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing.csv"], 4, "no such file or folder"),
        (["people.csv", "--target", "nothing"], 2, "no such column"),
        (["people.csv", "--task", "painting"], 2, "expected one of classification, regression, language"),
        (["people.csv", "--task", "language"], 2, "no column holds texts"),
        (["people.csv", "--task", "language", "--target", "x"], 2, "there is no --target"),
        (["people.csv", "--output", "no/where.yaml"], 2, "no such folder"),
        (["empty.csv"], 4, "empty"),
        (["one.csv"], 2, "nothing to predict from"),
        (["binary.csv"], 4, "not text"),
        (["two.csv"], 4, "2 usable rows are too few"),
        (["pictures"], 4, "dog: this class folder has no picture in it"),
        (["."], 0, ""),
    ],
)
def test_mistakes(llmtool, tmp_path, arguments, code, words):
    data("people.csv", tmp_path)
    if arguments != ["."]:
        (tmp_path / "empty.csv").write_bytes(b"")
        (tmp_path / "one.csv").write_text("number\n" + "".join(f"{n}\n" for n in range(30)))
        (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 20)
        (tmp_path / "two.csv").write_text("a,b,y\n1,2,p\n3,4,q\n")
        (folder(tmp_path / "pictures", classes=("cat", "hen")) / "dog").mkdir()
    ended = llmtool("init", *arguments, cwd=tmp_path)
    assert ended.code == code, ended.err
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert "internal" not in ended.err


def test_target_and_task_are_the_users(llmtool, tmp_path):
    (tmp_path / "t.csv").write_text(
        csv({"grade": [str(n % 6) for n in range(90)], "town": ["ab"[n % 2] for n in range(90)],
             "size": [str((n * 37) % 91) for n in range(90)]})
    )  # fmt: skip
    data("tags.csv", tmp_path)
    for more in ([], ["--task", "labels"], ["--task", "multilabel"]):
        ended = llmtool("init", "tags.csv", *more, "--output", "-", cwd=tmp_path)
        assert "# cells hold one label or more, such as good;long (60 of 120 rows have several)" in ended.out
        for line in ("    target_kind: labels\n", "    label_separator: ;", "task: {kind: multilabel}  # 3 "):
            assert line in ended.out
    kinds = {}
    for task in ("classification", "regression"):
        ended = llmtool(
            "init", "t.csv", "--target", "grade", "--task", task, "--output", f"{task}.yaml", cwd=tmp_path
        )
        assert ended.code == 0, ended.err
        loaded = experiment.load(str(tmp_path / f"{task}.yaml")).experiment
        kinds[task] = (loaded.task.kind, loaded.data.encode.target_kind)
    assert kinds == {"classification": ("classification", "classes"), "regression": ("regression", "values")}
