"""The formats that rows come in, and the pictures: what a part of a mixture may be, and what it may not."""

from __future__ import annotations

from llmtool.data.csv_source import CsvSource, TsvSource
from llmtool.data.games.pgn import PgnSource
from llmtool.data.games.sources import OthelloRandomSource, WthorSource
from llmtool.data.image_sources import CifarSource, IdxSource, ImageFolderSource
from llmtool.data.json_sources import JsonlSource, JsonSource
from llmtool.data.parquet_source import ParquetSource
from llmtool.data.sources import TextSource

Rows = (
    CsvSource
    | TsvSource
    | JsonlSource
    | JsonSource
    | TextSource
    | ParquetSource
    | PgnSource
    | WthorSource
    | OthelloRandomSource
)
Pictures = ImageFolderSource | IdxSource | CifarSource
PICTURES = ("image_folder", "idx", "cifar")  # formats whose rows name pictures
