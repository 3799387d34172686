"""A little data of the shape of each set of `scripts/fetch.py` that a story reads, so that every story runs.

One function per set, named as it; each writes below data/<set>/ what the stories name there.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llmtool.core.contracts import Classes, Images
from llmtool.data.games.chess import Chess
from llmtool.data.games.othello_many import random_games
from llmtool.models import pretrained
from llmtool.models.convnet import ConvNetConfig
from tests.conftest import others_encoder, others_model

CLASSES = [f"kind_{letter}" for letter in "abcdefgh"]


def bank_marketing(folder: Path) -> None:
    """Semicolons, two classes."""
    _table(folder / "bank-additional.csv", "y", ["yes", "no"], ";", more="duration")


def wine_quality(folder: Path) -> None:
    """No header, three marks."""
    chance = random.Random(0)
    for name in ("red", "white"):
        rows = [
            [f"{chance.random():.4f}" for _ in range(11)] + [str(chance.randint(4, 6))] for _ in range(400)
        ]
        _write(folder / f"winequality-{name}.csv", [",".join(row) for row in rows])


def ames_housing(folder: Path) -> None:
    """Prices, words, `NA` in both kinds of column."""
    chance = random.Random(0)
    lines = ["Order,PID,MS SubClass,Mo Sold,Lot Frontage,Alley,SalePrice"]
    for row in range(400):
        cells = [row + 1, 5263 + 7 * row, chance.choice(["020", "060"]), chance.randint(1, 12)]
        front, alley = chance.choice(["NA", chance.randint(20, 90)]), chance.choice(["NA", "Pave"])
        lines.append(",".join(map(str, [*cells, front, alley, chance.randint(50_000, 400_000)])))
    _write(folder / "AmesHousing.csv", lines)


def bike_share(folder: Path) -> None:
    """A count for each hour, which is the sum of two others."""
    chance = random.Random(0)
    lines = ["datetime,season,temp,casual,registered,count"]
    for hour in range(400):
        day = f"2011-{1 + hour // 200:02}-{1 + hour // 24 % 8:02} {hour % 24:02}:00:00"
        one, two = chance.randint(0, 50), chance.randint(1, 300)
        lines.append(f"{day},{chance.randint(1, 4)},{chance.uniform(0, 40):.2f},{one},{two},{one + two}")
    _write(folder / "bikeshare.csv", lines)


def california_housing(folder: Path) -> None:
    """A number to predict."""
    _table(folder / "housing.csv", "median_house_value", None)


def letter_recognition(folder: Path) -> None:
    """Three letters."""
    _table(folder / "LetterRecognition.csv", "lettr", ["A", "B", "C"])


def minilm(folder: Path) -> None:
    """An encoder with new weights."""
    others_encoder(folder, context=256)


def ag_news(folder: Path) -> None:
    """Texts of four words and their topics."""
    chance = random.Random(0)
    for name in ("train_5k.csv", "test_rows.csv"):
        texts = [" ".join(chance.choices(["film", "town", "fine", "dull"], k=9)) for _ in range(300)]
        _write(folder / name, [f'"{text}",{number % 4}' for number, text in enumerate(texts)])


def imdb(folder: Path) -> None:
    """Reviews of two kinds, packed."""
    chance = random.Random(0)
    for name in ("train.csv.gz", "test.csv.gz"):
        lines = ["review,sentiment"]
        for number in range(200):
            words = chance.choices(["film", "plot", "fine", "dull", "<br />"], k=12)
            lines.append(f'"{" ".join(words)}",{"positive" if number % 2 else "negative"}')
        _pack(folder / name, lines)


def titanic(folder: Path) -> None:
    """Names, tickets and what else is known of passengers; some ages are missing."""
    chance = random.Random(0)
    lines = ["PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked"]
    for number in range(1, 301):
        age = "" if number % 5 == 0 else chance.randint(1, 80)
        name = f'"{chance.choice(["Braund", "Allen"])}, {chance.choice(["Mr.", "Mrs."])} Owen"'
        cells = [number, number % 2, chance.randint(1, 3), name, chance.choice(["male", "female"]), age]
        cells += [0, chance.randint(0, 2), f"PC {chance.randint(100, 130)}", f"{chance.uniform(5, 90):.2f}"]
        lines.append(",".join(map(str, [*cells, "", chance.choice("SCQ")])))
    _write(folder / "train.csv", lines)


def chinese_poetry(folder: Path) -> None:
    """Poems of two kinds, a list of lines each; a table of three kinds in GB18030, by fifty poets."""
    chance = random.Random(0)
    for kind in ("tang", "ci"):
        poems = [
            {"author": "x", "paragraphs": ["".join(chance.choices("春江花月夜山水", k=5)) + "。"] * 4}
            for _ in range(60)
        ]
        _write(folder / kind / f"poet.{kind}.0.json", [json.dumps(poems, ensure_ascii=False)])
    lines = ["kind,author,text"]
    for number in range(240):
        text = "".join(chance.choices("山水花月春秋風雪天地人心", k=20))
        lines.append(f"{('唐詩', '宋詩', '宋詞')[number % 3]},poet{number % 50},{text}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "poems.csv").write_text("\n".join(lines), encoding="gb18030")


def tinystories_ru(folder: Path) -> None:
    """Stories with lists of what they are like."""
    chance = random.Random(0)
    for part in range(6):
        lines = []
        for _ in range(40):
            words = chance.choices(["жил", "был", "кот", "дом", "лес", "день"], k=12)
            features = [
                name for name in ("поучительная", "с диалогом", "плохой конец") if chance.random() < 0.5
            ]
            lines.append(json.dumps({"story": " ".join(words), "features": features}, ensure_ascii=False))
        _pack(folder / f"part{part}.jsonl.gz", lines)


def stories260k(folder: Path) -> None:
    """A language model with new weights."""
    others_model(folder)


def african_storybook(folder: Path) -> None:
    """Forty stories of a few lines."""
    for number in range(40):
        _write(folder / "en" / f"{number}.md", ["the lion ran"] * (3 + number % 5))


def mnist(folder: Path) -> None:
    """Ten digits, noise for pictures."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for name, count in (("train", 300), ("t10k", 60)):
        pictures = chance.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, values in (
            ("images-idx3", pictures),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 10),
        ):
            header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))


def fashion_mnist(folder: Path) -> None:
    """The same form."""
    mnist(folder)


def cifar10_images(folder: Path) -> None:
    """JPEG files of 32 x 32 pixels in class folders."""
    _pictures(folder / "cifar10", {"train": 24, "test": 6}, (32, 32))


def clothing_photos(folder: Path) -> None:
    """JPEG files of another shape."""
    _pictures(folder / "clothing", {"train": 6, "validation": 3}, (40, 52))


def resnet20(folder: Path) -> None:
    """A small network for pictures with new weights, as scripts/convert_resnet20.py leaves it."""
    torch.manual_seed(0)
    config = ConvNetConfig(stem="small", stem_width=4, widths=[4, 8], depths=[1, 1], shortcut="padding")
    model = config.build(Images(3, 32, 32), Classes(len(CLASSES)))
    model.labels = CLASSES
    recipe = {"do_resize": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    recipe |= {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.2],
        "size": {"height": 32, "width": 32},
    }
    vars(model)["preprocessing"] = recipe | {"image_processor_type": "ViTImageProcessor"}
    (folder / "model").mkdir(parents=True)
    pretrained.save(model, folder / "model")


def _pictures(folder: Path, counts: dict[str, int], size: tuple[int, int]) -> None:
    """So many pictures of noise of each class for each split."""
    chance = np.random.default_rng(0)
    for split, count in counts.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.jpg")


def _pack(path: Path, lines: list[str]) -> None:
    """As `_write`, through gzip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def othello_wthor(folder: Path) -> None:
    """Two years of games by chance."""
    for year in (1999, 2000):
        games = random_games(year, 0, 60)
        head = bytes([20, 15, 9, 30, 60, 0, 0, 0, 0, 0]) + year.to_bytes(2, "little") + bytes([8, 0, 24, 0])
        moves = np.where(games >= 0, 10 * (games // 8 + 1) + games % 8 + 1, 0).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"WTH_{year}.wtb").write_bytes(head + b"".join(bytes(8) + row.tobytes() for row in moves))


def chess_pgn(folder: Path) -> None:
    """Ten masters, and two files of others, who move by chance."""
    chance, rules = random.Random(0), Chess()
    (folder / "masters").mkdir(parents=True, exist_ok=True)
    masters = ("Adams", "Karpov", "Kasparov", "Korchnoi", "Leko", "Marshall", "Morozevich", "PolgarJ", "Tal",
               "Topalov")  # fmt: skip
    for name in (*(f"masters/{master}" for master in masters), "lichess_titled_player", "lichess_amateur"):
        lines = []
        for number in range(24):
            position, moves = rules.start(), []
            for _ in range(12):
                moves.append(chance.choice(rules.legal(position)))
                position = rules.play(position, moves[-1])
            lines += [f'[Event "{number}"]', f'[White "{name}"]', "", " ".join(moves) + " *", ""]
        with gzip.open(folder / f"{name}.pgn.gz", "wt") as file:
            file.write("\n".join(lines))


def _table(
    path: Path, target: str, classes: list[str] | None, delimiter: str = ",", more: str = "more"
) -> None:
    """400 rows of two numbers and a word, and a target by chance: a class, or a number."""
    chance = random.Random(0)
    lines = [delimiter.join([target, "some", more, "place"])]
    for _ in range(400):
        answer = chance.choice(classes) if classes else f"{chance.uniform(1e4, 5e5):.1f}"
        cells = [answer, chance.randint(0, 90), f"{chance.random():.3f}", chance.choice("xyz")]
        lines.append(delimiter.join(map(str, cells)))
    _write(path, lines)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


SETS = (
    wine_quality,
    ames_housing,
    bike_share,
    bank_marketing,
    california_housing,
    letter_recognition,
    minilm,
    ag_news,
    imdb,
    titanic,
    chinese_poetry,
    tinystories_ru,
    stories260k,
    african_storybook,
    othello_wthor,
    chess_pgn,
    mnist,
    fashion_mnist,
    cifar10_images,
    clothing_photos,
    resnet20,
)
