"""Features in a folder of Parquet files, one for each block of pictures: what several processes compute, resumably."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import read_json, replacing, write_json
from ..data import Observed
from ..data.tables import from_arrow

BLOCK = 1024
"""Pictures in a shard: a multiple of those that `Encoder.embed` takes at a time, so that features are the same bits."""

MANIFEST, NOTE = "manifest.json", b"chaffinch"
"""The file that says what the shards hold, and the note in each of them."""


@dataclass(frozen=True, eq=False)
class Shards:
    """A folder of shards; ``table:FOLDER`` opens it as a dataset.

    Each has the columns id, label and embedding (D float32) of its pictures, in their order. A shard is there whole or
    not at all, under a name that says which block it is: one that is written twice is there once.

    Attributes:
        folder: where they lie.
        observed: whose pictures.
        key: of everything that the features depend on.
        block: pictures in a shard; the last has what is left.
    """

    folder: Path
    observed: Observed
    key: str
    block: int = BLOCK

    def begin(self, about: Mapping[str, Any]) -> None:
        """Make the folder, or go on in one that was begun for the same features.

        Args:
            about: what to tell people in the manifest.

        Raises:
            InputError: the folder holds something else, or cannot be written.
        """
        if self.block < 1:
            raise InputError(f"a shard must hold at least one picture, got {self.block}")
        path, own = self.folder / MANIFEST, {"key": self.key, "block": self.block}
        try:
            if path.exists():
                found = read_json(path)
                if not isinstance(found, dict) or {name: found.get(name) for name in own} != own:
                    raise InputError(
                        f"{self.folder} holds shards of other features, or of another size ({MANIFEST} says of which); "
                        "choose another folder, or remove it"
                    )
            elif self.folder.is_dir() and any(file.name[0] != "." for file in self.folder.iterdir()):
                raise InputError(f"{self.folder} holds other files; choose a new or an empty folder")
            else:
                write_json(path, {**about, **own, "n": len(self.observed), "shards": len(self)})
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror or error}") from error

    def __len__(self) -> int:
        return -(-len(self.observed) // self.block)

    def path(self, block: int) -> Path:
        """Where a shard lies, or will."""
        return self.folder / f"shard-{block:06d}.parquet"

    def rows(self, block: int) -> slice:
        """Positions of its pictures."""
        return slice(block * self.block, min((block + 1) * self.block, len(self.observed)))

    def missing(self) -> list[int]:
        """The blocks without a readable shard of these features."""
        return [block for block in range(len(self)) if self._note(block) is None]

    def _note(self, block: int) -> dict[str, Any] | None:
        """What a shard says of itself; None where it is missing, damaged, or of other features."""
        import pyarrow.parquet as pq

        rows = self.rows(block)
        try:
            found = pq.read_metadata(self.path(block))
            note: dict[str, Any] = json.loads(found.metadata[NOTE])
        except Exception:  # Arrow raises of every kind where a file is damaged
            return None
        return note if note["key"] == self.key and found.num_rows == rows.stop - rows.start else None

    def write(self, block: int, features: NDArray[np.float32], undecoded: NDArray[np.int64]) -> None:
        """Write one shard, whole or not at all.

        Args:
            block: which.
            features: (M, D) of its pictures.
            undecoded: positions, in the block, of pictures that could not be decoded.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, names = self.rows(block), np.array(self.observed.classes, object)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        columns = [pa.array(self.observed.ids[rows].tolist()), pa.array(names[self.observed.labels[rows]].tolist())]
        note = json.dumps({"key": self.key, "undecoded": undecoded.tolist()})
        table = pa.table([*columns, embedding], names=["id", "label", "embedding"], metadata={NOTE: note})
        with replacing(self.path(block)) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)

    def read(self) -> dict[str, NDArray[Any]]:
        """``features`` (N, D) float32 and, if there are any, positions ``undecoded``, of all shards together.

        Raises:
            InputError: a shard is missing or damaged, or its ids are not those of its pictures.
        """
        import pyarrow.parquet as pq

        found, undecoded = list[NDArray[np.float32]](), list[int]()
        for block in range(len(self)):
            path, rows, note = self.path(block), self.rows(block), self._note(block)
            try:
                table = pq.read_table(path, page_checksum_verification=True)
                whole = note is not None and table["id"].to_pylist() == self.observed.ids[rows].tolist()
                found.append(np.asarray(from_arrow(table["embedding"], "embedding"), np.float32))
            except Exception as error:  # as above
                raise InputError(f"{path} is damaged; remove it and start the command again") from error
            if note is None or not whole:
                raise InputError(f"{path} is not of these pictures; remove it and start the command again")
            undecoded += [rows.start + place for place in note["undecoded"]]
        arrays: dict[str, NDArray[Any]] = {"features": np.concatenate(found)}
        return arrays | ({"undecoded": np.array(undecoded)} if undecoded else {})
