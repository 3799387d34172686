"""How fast pictures go from files to batches: preparing, reading batches, and listing a large folder.

    python scripts/fetch.py cifar10_images clothing_photos
    python scripts/benchmarks/images.py --save     60,000 JPEG of CIFAR-10, 300 photographs, 100,000 files

`prepare` is the whole command, twice: as arrays and as encoded files; `again` is the command when nothing
has changed. Batches are read by chance order from the finished datasets, 128 rows at a time, once through the
train split. The index is of empty files in 1,000 class folders on the local disk, whose names lie in the
system's memory after the first look; 1.3 million files are extrapolated from it, in proportion. Beside wall
seconds stand the processor's, which a busy machine disturbs less.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import common

IMAGENET = 1_281_167  # training pictures
SOURCES = {
    "cifar10": ("{{train: {data}/cifar10_images/cifar10/train, "
                "test: {data}/cifar10_images/cifar10/test}}", "auto"),
    "clothing": ("{{train: {data}/clothing_photos/clothing/train, "
                 "validation: {data}/clothing_photos/clothing/validation}}", "224"),
}  # fmt: skip
FILE = """\
run: {run}
data:
  source: {{format: image_folder, path: {path}}}
  encode: {{as: images, store: {store}, size: {size}}}
"""


def preparing(name: str, store: str, directory: Path, data: Path) -> dict[str, Any]:
    """Prepare a set of pictures, and find that nothing has changed."""
    path, size = SOURCES[name]
    run = directory / f"{name}-{store}"
    config = directory / f"{name}-{store}.yaml"
    config.write_text(FILE.format(run=run, path=path.format(data=data), store=store, size=size))
    first = common.timed(common.llmtool("prepare", config))
    again = common.timed(common.llmtool("prepare", config))
    card = common.read_json(run / "prepare" / "card.json")
    rows = sum(split["rows"] for split in card["splits"].values())
    stored = sum(path.stat().st_size for path in (run / "prepare").glob("*.bin"))
    return {
        "rows": rows, "size": [card["inputs"]["height"], card["inputs"]["width"]], "bytes": stored,
        "seconds": first.seconds, "cpu_seconds": first.cpu_seconds, "rows_a_second": rows / first.seconds,
        "again_seconds": again.seconds, "again_cpu_seconds": again.cpu_seconds, **reading(run),
    }  # fmt: skip


def reading(run: Path, size: int = 128) -> dict[str, float]:
    """Once through train in its random order."""
    from llmtool.data.batches import open_batches
    from llmtool.data.store import Dataset

    batches = open_batches(Dataset.open(run / "prepare"), "train", 0)
    batches.batch(0, 1)
    worked, began, read = time.process_time(), time.perf_counter(), 0
    for start in range(0, batches.rows - size + 1, size):
        read += batches.batch(start, size).inputs.numel()
    seconds = time.perf_counter() - began
    rows = batches.rows // size * size
    return {
        "batch_rows_a_second": rows / seconds, "batch_megabytes_a_second": read / seconds / 1e6,
        "batch_cpu_seconds": time.process_time() - worked,
    }  # fmt: skip


def index(directory: Path, files: int, classes: int = 1000) -> dict[str, Any]:
    """List so many files: their rows, and the hash of their names, sizes and times."""
    from llmtool.data.image_sources import ImageFolderSource, listing_hash

    root = directory / "many"
    for number in range(classes):
        (root / f"n{number:08d}").mkdir(parents=True)
        for at in range(files // classes):
            (root / f"n{number:08d}" / f"n{number:08d}_{at}.JPEG").touch()
    found: dict[str, Any] = {"files": files, "classes": classes}
    source = ImageFolderSource(format="image_folder", path=str(root))
    next(source.read(1))  # what is imported for it
    for name, work in (
        ("rows", lambda: sum(len(chunk) for chunk in source.read())),
        ("listing", lambda: listing_hash(root)),
        ("stamps", source.stamps),
    ):
        began, worked = time.perf_counter(), time.process_time()
        work()
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        more = IMAGENET / files
        found[name] = {"seconds": seconds, "cpu_seconds": cpu, "extrapolated": seconds * more,
                       "extrapolated_cpu": cpu * more}  # fmt: skip
    return found


def main() -> None:
    """Run all of it, show it, save it where --save is given."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, default=common.ROOT / "data", help="where the sets lie")
    options = parser.parse_args()
    names = ["clothing"] if options.short else list(SOURCES)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for name in names:
            for store in ("arrays", "encoded"):
                figures[f"{name} {store}"] = preparing(name, store, directory, options.data.absolute())
        figures["index"] = index(directory, 10_000 if options.short else 100_000)
    rows = [[name, one["rows"], one["rows_a_second"], one["cpu_seconds"], one["again_seconds"],
             one["batch_rows_a_second"], one["bytes"] / 1e6]
            for name, one in figures.items() if name != "index"]  # fmt: skip
    columns = ["pictures", "rows", "prepared/s", "cpu s", "again s", "in batches/s", "MB"]
    common.table("from files to batches", columns, rows)
    found = figures["index"]
    keys = ["seconds", "cpu_seconds", "extrapolated", "extrapolated_cpu"]
    rows = [[name, *(found[name][key] for key in keys)] for name in ("rows", "listing", "stamps")]
    columns = ["", "seconds", "cpu s", f"{IMAGENET:,} files: seconds", "cpu s"]
    common.table(f"{found['files']:,} files", columns, rows)
    common.save(options, "images", figures, common.versions("pillow", "numpy", "torch"))


if __name__ == "__main__":
    main()
