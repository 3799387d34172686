"""Looking at folders, and at the files beside one that is named train."""

import struct

import pytest

from llmtool.core.errors import ConfigError, DataError
from llmtool.data.surroundings import look

TABLE = "age,kind\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(20))


def pictures(folder, names, count=3, size=(8, 6)):
    image = pytest.importorskip("PIL.Image")
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image.new("RGB", size, (number, 40, 90)).save(folder / name / f"{number}.png")


def test_train_and_test_beside_each_other(tmp_path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(TABLE)
    for path in (tmp_path / "train.csv", tmp_path):
        sight = look(str(path))
        assert sight.source["path"] == {
            "train": str(tmp_path / "train.csv"),
            "test": str(tmp_path / "test.csv"),
        }
        assert "test.csv" in sight.why["path"]
        assert sight.rows == 20
        assert len(sight.other) == 20


def test_a_test_file_without_the_target_is_left_out(tmp_path):
    (tmp_path / "train.csv").write_text(TABLE)
    (tmp_path / "test.csv").write_text("age\n" + "3\n" * 9)
    for path in (tmp_path / "train.csv", tmp_path):
        sight = look(str(path))
        assert sight.source["path"] == str(tmp_path / "train.csv")
        assert "test.csv beside it was left out" in sight.why["beside"]


def test_a_folder_of_files(tmp_path):
    for number in range(3):
        (tmp_path / f"part{number}.jsonl").write_text('{"text": "a b"}\n' * 5)
    sight = look(str(tmp_path))
    assert sight.source == {"format": "jsonl", "path": str(tmp_path)}
    assert (sight.rows, sight.exact) == (15, False)
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_text("one line\nand another\n" * 9)
    assert look(str(tmp_path / "texts")).rows == 4


def test_class_folders(tmp_path):
    pictures(tmp_path / "plain", ["cat", "dog"])
    sight = look(str(tmp_path / "plain"))
    assert sight.source == {"format": "image_folder", "path": str(tmp_path / "plain")}
    assert sight.pictures | {"names": 0} == {
        "classes": 2, "names": 0, "counts": [3, 3], "height": 6, "width": 8, "channels": 3, "alike": True,
    }  # fmt: skip
    pictures(tmp_path / "plain", [".ipynb_checkpoints", "cat/far", "dog/far"], count=1)
    assert look(str(tmp_path / "plain")).pictures["counts"] == [4, 4]  # what the source reads
    for split in ("train", "val"):
        pictures(tmp_path / "split" / split, ["cat", "dog"])
    assert look(str(tmp_path / "split")).source["path"] == {
        "train": str(tmp_path / "split/train"), "validation": str(tmp_path / "split/val"),
    }  # fmt: skip


def test_what_lies_elsewhere_is_copied_here_first():
    with pytest.raises(ConfigError, match=r"^https://h/a\.csv: init looks at files of this machine; copy"):
        look("https://anna:geheim@h/a.csv?sig=verraten")


def test_a_folder_that_holds_one_folder(tmp_path):
    pictures(tmp_path / "unpacked" / "animals" / "train", ["cat", "dog"])
    pictures(tmp_path / "unpacked" / "animals" / "test", ["cat", "dog"])
    assert list(look(str(tmp_path)).source["path"]) == ["train", "test"]


def test_pictures_without_class_folders(tmp_path):
    pictures(tmp_path, ["flat"])
    with pytest.raises(ConfigError, match="no class folders"):
        look(str(tmp_path / "flat"))


def test_idx_and_cifar_files(tmp_path):
    for name, count in (("train", 20), ("t10k", 10)):
        data = struct.pack(">4B3I", 0, 0, 8, 3, count, 4, 4) + bytes(count * 16)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(data)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(count)
        )
    for path in (tmp_path, tmp_path / "train-images-idx3-ubyte"):
        sight = look(str(path))
        assert list(sight.source["path"]) == ["train", "test"]
        assert (sight.rows, sight.pictures["height"], sight.pictures["channels"]) == (20, 4, 1)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "data_batch_1.bin").write_bytes(bytes(3073 * 4))
    assert (look(str(tmp_path / "c")).form, look(str(tmp_path / "c")).rows) == ("cifar", 4)
    for name in ("data_batch_2", "test_batch"):
        (tmp_path / "c" / f"{name}.bin").write_bytes(bytes(3073 * 4))
    sight = look(str(tmp_path / "c"))
    train = [str(tmp_path / "c" / f"data_batch_{number}.bin") for number in (1, 2)]
    assert sight.source["path"] == {"train": train, "test": str(tmp_path / "c" / "test_batch.bin")}
    assert sight.rows == 8


def test_games(tmp_path):
    (tmp_path / "WTH_2001.wtb").write_bytes(
        struct.pack("<4BII4B", 20, 1, 5, 5, 7, 0, 8, 0, 0, 0) + bytes(7 * 68)
    )
    sight = look(str(tmp_path))
    assert (sight.kind, sight.game, sight.rows) == ("games", "othello", 7)


@pytest.mark.parametrize("names", [[], ["a.xyz", "b.xyz"]])
def test_folders_of_nothing_that_is_known(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(
        ConfigError if names else DataError, match="no form of data" if names else "empty folder"
    ):
        look(str(tmp_path))
