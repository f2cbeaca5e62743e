"""Recorded arrays of the PyTorch code, and which of them a test has read."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

HERE = Path(os.environ.get("JAXDEQ_RECORDINGS", Path(__file__).parent.parent / "data" / "recordings"))


class Recording(Mapping[str, np.ndarray]):
    """The arrays of one file by name, and of `dropout_masks*.npz` beside it as `dropout/<name>`.

    Looking at names counts as nothing; looking at an array counts as read.
    """

    def __init__(self, path: Path):
        self.name = path.stem
        with np.load(path, allow_pickle=False) as file:
            self._arrays = {key: file[key] for key in file.files}
        for masks in sorted(path.parent.glob("dropout_masks*.npz")):
            with np.load(masks, allow_pickle=False) as file:
                mine = [key for key in file.files if key.startswith(f"{self.name}/")]
                self._arrays |= {key.replace(self.name, "dropout", 1): file[key] for key in mine}
        self._read: set[str] = set()

    @property
    def config(self) -> dict:
        return json.loads(str(self["meta/config_json"]))

    def __getitem__(self, key: str) -> np.ndarray:
        self._read.add(key)
        return self._arrays[key]

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays under a prefix, without it: `under("sd/")` is the state dict."""
        return {key.removeprefix(prefix): self[key] for key in self if key.startswith(prefix)}

    def unread(self) -> list[str]:
        return sorted(set(self._arrays) - self._read)
