"""Turns the ResNet-20 for CIFAR-10 in ../shared/data, a pickle of torch's, into a checkpoint directory.

    python scripts/convert_resnet20.py data/resnet20                     write the directory
    python scripts/convert_resnet20.py data/resnet20 --score 10000       and score it on so many test pictures

llmtool itself reads no pickles; here torch's own restricted reader is asked for tensors and nothing else. The
pictures (JPEG, in folders by class) are those of ../shared/data/cifar10_images; Pillow decodes them. Of all
10,000 it has 8,103 right, which is what that directory's README says it must.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llmtool.core.contracts import Classes, Images  # noqa: E402
from llmtool.models import preprocessing, pretrained  # noqa: E402
from llmtool.models.convnet import ConvNetConfig  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
PICKLE = SHARED / "checkpoint_resnet20_cifar10" / "resnet20-12fca82f.th"
PICTURES = SHARED / "cifar10_images" / "cifar10_images.tar.gz"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RECIPE = {  # of akamaster/pytorch_resnet_cifar10: ImageNet's means and deviations
    "do_resize": False,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 32, "width": 32},
    "image_processor_type": "ViTImageProcessor",
}
OUTSIDE = {"conv1": "stem.convolution", "bn1": "stem.norm", "linear": "head"}
PARTS = {"conv": "convolution", "bn": "norm"}


def ours(name: str) -> str:
    """What we call their module.layer1.0.conv1.weight: stages.0.0.parts.0.convolution.weight."""
    _, *modules, leaf = name.split(".")
    if modules[0] in OUTSIDE:
        return f"{OUTSIDE[modules[0]]}.{leaf}"
    stage, block, (*kind, part) = modules
    return f"stages.{int(stage[-1]) - 1}.{block}.parts.{int(part) - 1}.{PARTS[''.join(kind)]}.{leaf}"


def convert(path: Path, directory: Path) -> None:
    """Write the directory; every tensor must find its place."""
    found = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {ours(name): tensor for name, tensor in found.items() if "num_batches_tracked" not in name}
    config = ConvNetConfig(stem="small", shortcut="padding")
    model: Any = config.build(Images(3, 32, 32), Classes(len(CLASSES)))
    model.load_state_dict(state)
    model.labels, model.preprocessing = CLASSES, RECIPE
    directory.mkdir(parents=True, exist_ok=True)
    pretrained.save(model, directory)


@torch.no_grad()
def score(directory: Path, archive: Path, count: int) -> tuple[int, int]:
    """Right answers and pictures, of `count` test pictures taken evenly from all classes."""
    from PIL import Image

    model: Any = pretrained.load(directory).eval()
    how = preprocessing.standardisation(model.preprocessing, directory / preprocessing.FILE)
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (how.mean, how.deviation))
    pictures, targets = [], []
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            if parts[1:2] != ("test",) or not member.isfile() or int(parts[-1][:4]) >= count // len(CLASSES):
                continue
            data = files.extractfile(member)
            assert data is not None
            pixels = np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB"))
            values = torch.from_numpy(pixels.copy()).permute(2, 0, 1) * how.factor  # (h, w, c) -> (c, h, w)
            pictures.append((values - mean) / deviation)
            targets.append(model.labels.index(parts[2]))
    right = 0
    for rows, wanted in zip(torch.stack(pictures).split(500), torch.tensor(targets).split(500), strict=True):
        right += int((model(rows).argmax(dim=1) == wanted).sum())
    return right, len(targets)


def main() -> None:
    """Convert, then score if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pickle", type=Path, default=PICKLE)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--score", type=int, default=0, metavar="PICTURES")
    options = parser.parse_args()
    convert(options.pickle, options.directory)
    print(f"{options.directory}: written")
    if options.score:
        right, count = score(options.directory, options.pictures, options.score)
        print(f"{right:,} of {count:,} test pictures right: accuracy {right / count:.4f}")


if __name__ == "__main__":
    main()
