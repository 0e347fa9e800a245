"""Reads the tensors of a PyTorch state dict, in the legacy and in the zip format, without PyTorch.

A checkpoint is a pickle, and a pickle can run any code. This reader allows only the names that a plain state dict needs
(see `_ALLOWED`). Any other name raises `CheckpointError` before it is called.

Both formats contain one pickle that describes the tensors, and separately the raw storages that they view:

* legacy: the pickles magic number, protocol version, system information, state dict and storage keys, in
  this order; then for each key an int64 count of elements and the elements;
* zip: `<name>/data.pkl`, and each storage as `<name>/data/<key>`.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


# The exceptions that the readers below raise on bytes that are not a pickle of the expected form.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
)


class CheckpointError(Exception):
    """The file is not a plain state dict, or is damaged."""


@dataclass(frozen=True)
class _Storage:
    """A storage that the pickle names. Its bytes are read later."""

    key: str
    dtype: np.dtype[Any]
    elements: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage. Offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def resolve(self, storages: Mapping[str, bytes]) -> np.ndarray:
        """Copies the view from its storage. Refuses a view that exceeds it."""
        raw = storages.get(self.storage.key)
        if raw is None or len(raw) != self.storage.elements * self.storage.dtype.itemsize:
            raise CheckpointError(f"storage {self.storage.key!r} is missing or has another size than announced")
        flat = np.frombuffer(raw, self.storage.dtype)
        if self.offset < 0 or len(self.shape) != len(self.strides) or min((*self.shape, *self.strides, 0)) < 0:
            raise CheckpointError("a tensor has a negative extent")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= flat.size:
            raise CheckpointError(f"a tensor reaches outside storage {self.storage.key!r}")
        byte_strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, byte_strides).copy()


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_ignored: object
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_ignored: object) -> _Tensor:
    return tensor


# A storage type is represented by the type of its elements.
_STORAGE_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}

_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that allows only the names of a state dict."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise CheckpointError(
                f"the file uses {module}.{name}, which is not part of a plain state dict; "
                "save the weights alone: torch.save(model.state_dict(), FILE)"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as elements):
                return _Storage(key, dtype, elements)
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as elements, None):
                return _Storage(key, dtype, elements)
        raise CheckpointError("the file names a storage in an unknown form")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict by name, in the order of the file."""
    reader: Callable[[Path], tuple[Any, dict[str, bytes]]] = _read_zip if zipfile.is_zipfile(path) else _read_legacy
    try:
        described, storages = reader(path)
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file: {error}") from error
    if not isinstance(described, dict) or not all(isinstance(tensor, _Tensor) for tensor in described.values()):
        raise CheckpointError(f"{path} is not a state dict of tensors")
    return {str(name): tensor.resolve(storages) for name, tensor in described.items()}


def _read_zip(path: Path) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} contains no data.pkl, so it is not a PyTorch file")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder").strip() != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine")
        described = _TensorUnpickler(io.BytesIO(archive.read(pickles[0]))).load()
        prefix = f"{root}data/"
        storages = {name.removeprefix(prefix): archive.read(name) for name in names if name.startswith(prefix)}
    return described, storages


def _read_legacy(path: Path) -> tuple[Any, dict[str, bytes]]:
    with path.open("rb") as file:
        if _load(file) != _LEGACY_MAGIC or _load(file) != _LEGACY_PROTOCOL:
            raise CheckpointError(f"{path} is not a PyTorch file")
        system = _load(file)
        if not system.get("little_endian", True):
            raise CheckpointError(f"{path} was written on a big-endian machine")
        described = _load(file)
        keys = _load(file)
        item_sizes = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in described.values()}
        storages = {}
        for key in keys:
            elements = int.from_bytes(file.read(8), "little")
            storages[key] = file.read(elements * item_sizes[key])
    return described, storages


def _load(file: BinaryIO) -> Any:
    return _TensorUnpickler(file).load()
