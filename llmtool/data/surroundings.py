"""Looks at a path: a file with those beside it, or a folder of pictures, games or files of one format."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtool.core.errors import ConfigError, DataError
from llmtool.core.urls import shown
from llmtool.data import pictures, remote
from llmtool.data.image_sources import class_folders, empty_class, pictures_in
from llmtool.data.looking import (
    Sight,
    form_by_content,
    form_by_name,
    look_at,
    packed_pictures,
    unpacked_size,
)

if TYPE_CHECKING:
    import pandas as pd

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar", ".tar.bz2", ".tar.xz")
NAMES = {  # how others call the splits
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "t10k", "eval"),
}


def look(path: str) -> Sight:
    """What lies at `path`. DataError for what cannot be read, ConfigError for what is no data of ours."""
    if remote.is_url(path):
        raise ConfigError(f"{shown(path)}: init looks at files of this machine; copy one of them here")
    place = Path(path)
    if not place.exists():
        raise DataError(f"{path}: no such file or folder")
    if place.is_dir():
        return _folder(path)
    if path.lower().endswith(ARCHIVES):
        raise ConfigError(f"{path}: an archive; unpack it and name the folder, or the file in it")
    form = form_by_name(path)
    if form is None:
        form = form_by_content(place)
    sight = look_at(path, form)
    return _with_siblings(sight, path)


# --- folders ----------------------------------------------------------------------------------------------


def _folder(path: str) -> Sight:
    """A folder: pictures in class folders, IDX files, games, or files of one format."""
    place = Path(path)
    inside = [entry for entry in place.iterdir() if not entry.name.startswith(".")]
    if len(inside) == 1 and inside[0].is_dir():  # an archive unpacked into a folder of its own
        return _folder(str(inside[0]))
    files = list(itertools.islice(_files(place), 20_000))
    if not files:
        raise DataError(f"{path}: an empty folder")
    forms = [form for file in files if (form := form_by_name(file.name))]
    many = sum(file.suffix.lower() in pictures.ENDINGS for file in files)
    if many > len(files) / 2:
        return _picture_folder(path)
    counts = {form: forms.count(form) for form in dict.fromkeys(forms)}
    if not counts:
        shown = ", ".join(file.name for file in files[:3])
        raise ConfigError(f"{path}: no form of data that is known here ({shown} ...)")
    form = max(counts, key=lambda name: (name != "text" or len(counts) == 1, counts[name]))
    mine = [file for file in files if form_by_name(file.name) == form]
    if form == "idx":
        images = sorted(file for file in mine if "images" in file.name)
        first = next((file for file in images if "train" in file.name), images[0] if images else mine[0])
        return _with_siblings(packed_pictures(str(first), "idx"), str(first))
    by_split = _by_split(mine)
    rest = [str(file) for file in mine if str(file) not in by_split.get("test", [])]
    if form == "cifar" and "test" in by_split and "train" not in by_split and rest:  # data_batch_1.bin ...
        by_split["train"] = rest
    main = by_split["train"] if "train" in by_split else [str(file) for file in mine]
    found = look_at(main[0], form)
    if "train" in by_split and all(len(names) == 1 for names in by_split.values()):
        return _joined(found, {split: names[0] for split, names in by_split.items()}, "the folder holds")
    of = {split: _one_or_all(by_split[split]) for split in NAMES if split in by_split}
    found.source["path"] = of if "train" in of and len(of) > 1 else path if len(mine) > 1 else main[0]
    if isinstance(found.source["path"], dict):
        found.why["path"] = "the files' names say train, validation or test"
    sizes = sum(unpacked_size(Path(name)) for name in main)
    rows = round(found.rows * sizes / max(1, unpacked_size(Path(main[0]))))
    if form == "text" and found.source.get("documents") == "file":
        rows = len(main)
    return replace(found, rows=rows, exact=found.exact and len(main) == 1, size=sizes)


def _one_or_all(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _picture_folder(path: str) -> Sight:
    """Class folders below the folder, or below folders for the splits."""
    place = Path(path)
    inner = sorted(folder.name for folder in place.iterdir() if folder.is_dir() and folder.name[0] != ".")
    if not inner:
        raise ConfigError(
            f"{path}: pictures, but no class folders: put those of each class into a folder of its name, or "
            "name them in a table with a column of paths (format: csv, encode: {as: images})"
        )
    splits = {split: name for name in inner if (split := split_of(name))}
    source: dict[str, Any] = {"format": "image_folder", "path": path}
    why = {"format": f"folders of pictures: {', '.join(inner[:4])}{' ...' if len(inner) > 4 else ''}"}
    root = place
    if "train" in splits:
        source["path"] = {split: str(place / splits[split]) for split in NAMES if split in splits}
        why["path"] = "folders for the splits, with class folders in each"
        root = place / splits["train"]
    found = {Path(folder): pictures_in(folder)[0] for folder in class_folders(root)}
    if empty := [folder for folder, names in found.items() if not names]:
        raise empty_class(str(empty[0]))
    counts = [len(names) for names in found.values()]
    shown = [Path(name) for names in list(found.values())[:8] for name in names[:4]]
    seen: dict[str, Any] = {"classes": len(found), "names": [folder.name for folder in found]}
    seen |= {"counts": counts, **_sizes(shown)}
    return Sight("pictures", source, why, rows=sum(counts), pictures=seen)


def _sizes(files: list[Path]) -> dict[str, Any]:
    """Height, width and channels of most of these pictures, by their headers alone."""
    found = []
    for file in files:
        try:
            picture = pictures.opened(pictures.read(file))
            height, width = pictures.turned_size(picture)
            found.append((height, width, 1 if pictures.is_grey(picture) else 3))
        except (pictures.BadPicture, OSError):
            continue
    if not found:
        raise DataError(f"{files[0].parent if files else 'the folder'}: none of its pictures can be opened")
    height, width, channels = max(set(found), key=found.count)
    return {"height": height, "width": width, "channels": channels, "alike": len(set(found)) == 1}


# --- train, validation, test ------------------------------------------------------------------------------


def split_of(name: str) -> str | None:
    """The split that a name speaks of."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((split for split, names in NAMES.items() if words & set(names)), None)


def _by_split(files: list[Path]) -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {}
    for file in files:
        if split := split_of(file.name) or split_of(file.parent.name):
            by_split.setdefault(split, []).append(str(file))
    return by_split


def _with_siblings(sight: Sight, path: str) -> Sight:
    """Where the file is named train, the files for test and validation beside it that have its columns."""
    place = Path(path)
    if split_of(place.name) != "train" or not re.search("train", place.name, re.IGNORECASE):
        return sight
    found: dict[str, str] = {"train": path}
    for split, names in NAMES.items():
        for name in () if split == "train" else names:
            other = place.with_name(re.sub("train(ing)?", name, place.name, count=1, flags=re.IGNORECASE))
            if other.is_file() and split not in found:
                found[split] = str(other)
    return _joined(sight, found, "beside it lies")


def _joined(sight: Sight, found: dict[str, str], seen: str) -> Sight:
    """The data of the train file with those files of the other splits that have its columns."""
    why, other_rows = dict(sight.why), None
    for split in [name for name in found if name != "train"]:
        if sight.frame is None:
            continue
        rows = _sibling_rows(sight, found[split])
        if rows is None:
            why["beside"] = f"{Path(found.pop(split)).name} beside it was left out: its columns are others"
        elif split == "test":
            other_rows = rows
    if len(found) == 1:
        return replace(sight, source={**sight.source, "path": found["train"]}, why=why)
    names = " and ".join(Path(name).name for split, name in found.items() if split != "train")
    path = {split: found[split] for split in NAMES if split in found}
    return replace(
        sight, source={**sight.source, "path": path}, why={**why, "path": f"{seen} {names}"}, other=other_rows
    )


def _sibling_rows(sight: Sight, path: str) -> pd.DataFrame | None:
    """Rows of a file beside, read the same way; None where its columns are others."""
    assert sight.frame is not None
    try:
        rows = look_at(path, sight.form).frame
    except (DataError, ConfigError):
        return None
    if rows is None or list(rows.columns) != list(sight.frame.columns):
        return None
    return rows
