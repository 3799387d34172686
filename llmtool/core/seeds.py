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


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """uint64 numbers as others that look drawn by chance, each different as before.

    The finalizer of SplitMix64, Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def seed_torch(seed: int, *names: str | int) -> None:
    """Seed torch's global streams (dropout, initialisation) on every device for the stream called `names`."""
    import torch

    torch.manual_seed(derive(seed, *names))
