"""A folder of .npy volumes as an endless stream, cut by rank and worker; small enough to follow by eye."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import get_worker_info


class NpyStream:
    """Samples in an order drawn per pass; `fail_after` makes it break off, for tests of failing data."""

    def __init__(self, folder: Path, *, rank: int = 0, world_size: int = 1):
        self.paths = sorted(Path(folder).glob("*.npy"))
        self.rank, self.world_size = rank, world_size
        self.epoch, self.position = 0, 0

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            order = np.random.default_rng([7, self.epoch]).permutation(len(self.paths))
            share = order[self.rank * turns + turn :: self.world_size * turns]
            while self.position < len(share):
                path = self.paths[share[self.position]]
                self.position += 1
                yield {"id": path.stem, "hu": np.load(path), "spacing": (1.0, 1.0, 1.0), "epoch": self.epoch}
            self.epoch, self.position = self.epoch + 1, 0
            if not len(share):
                return

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def write_volumes(folder: Path, number: int = 7, side: int = 12) -> Path:
    """Write small random volumes."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(number):
        hu = generator.integers(-1000, 1000, (side + index % 3, side, side + 2)).astype(np.int16)
        np.save(folder / f"scan{index}.npy", hu)
    return folder
