"""Every random stream is a pure function of (seed, names): nothing to save, nothing to restore at resume."""

import numpy as np
import xxhash


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of the run's `seed`."""
    text = "/".join([str(seed), *map(str, names)])
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called `names`."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def seed_torch(seed: int, *names: str | int) -> None:
    """Seed torch's global streams (dropout, initialisation) on every device for the stream called `names`."""
    import torch

    torch.manual_seed(derive(seed, *names))
