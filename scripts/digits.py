"""Writes the 1,797 handwritten digits that scikit-learn ships (8 x 8 pixels) as a pair of IDX files.

    python scripts/digits.py            configs/data/digits-images-idx3-ubyte.gz and its labels

They are half of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, CC BY 4.0,
https://archive.ics.uci.edu/dataset/80), whose values of 0 to 16 become 0 to 255 here.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DIRECTORY = Path(__file__).resolve().parents[1] / "configs" / "data"


def write(name: str, values: np.ndarray) -> None:
    """One IDX file of bytes, packed; the same bytes at every run."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    packed = gzip.compress(header + values.tobytes(), mtime=0)
    (DIRECTORY / f"digits-{name}-ubyte.gz").write_bytes(packed)


def main() -> None:
    """Both files."""
    digits = load_digits()
    write("images-idx3", np.round(digits.images * (255 / 16)).astype(np.uint8))
    write("labels-idx1", digits.target.astype(np.uint8))


if __name__ == "__main__":
    main()
