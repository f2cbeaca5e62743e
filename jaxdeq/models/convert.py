"""PyTorch's checkpoint files, made readable without PyTorch.

python -m jaxdeq.models.convert FILE OUT

FILE is what `torch.save` wrote: a state dict, or a dict that holds one under `state_dict`. OUT is a
safetensors file if its name ends so, else the directory of an orbax checkpoint. Names stay the
file's. To go on, in Python:

    from jaxdeq.models import convert, load_torch_state_dict
    load_torch_state_dict(model, convert.load(OUT))

Only the conversion needs PyTorch (`pip install torch`), and only safetensors needs an extra
(`pip install 'jaxdeq[convert]'`). A file that wants to run code is refused.
"""

import argparse
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["arrays", "load", "main", "read", "write"]

NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put state dicts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; what is wrong is one line on the standard error, and exit status 1.

    Example:
      >>> main(["missing.pth", "out"])
      Traceback (most recent call last):
      SystemExit: error: ...
    """
    about, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m jaxdeq.models.convert",
        description=about,
        epilog=more.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a .pth or .pkl file that torch.save wrote")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="a new directory, or a new file that ends in .safetensors"
    )
    options = parser.parse_args(arguments)
    try:
        _check_new(options.out)
        found, left_out = read(options.file)
        write(found, options.out)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    numbers = sum(array.size for array in found.values())
    print(f"{options.out}: {len(found)} arrays, {numbers:,} numbers")
    if left_out:
        print("not tensors of the state dict, and left out:", ", ".join(left_out))


def read(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays in a PyTorch file by name, and what else was in it; runs no code that it brings.

    Raises:
      ImportError: PyTorch is not installed.
      OSError: the file cannot be opened.
      ValueError: it holds anything but tensors and plain containers, is no PyTorch file, or has no
        state dict.

    Example:
      >>> from pathlib import Path
      >>> try:
      ...     read(Path("missing.pth"))
      ... except (ImportError, OSError):  # no PyTorch here, or no such file
      ...     print("not read")
      not read
    """
    try:
        import torch
    except ImportError:
        raise ImportError("a PyTorch file can only be read with PyTorch; pip install torch") from None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is refused: it holds more than tensors and plain containers, and reading that could run any "
            f"code. If you trust where it comes from, save its state_dict() alone with torch.save. {_reason(error)}"
        ) from error
    except Exception as error:  # of many types: a damaged file, or no PyTorch file at all
        raise ValueError(f"{file} must be a file that torch.save wrote; got {error!r} when reading it") from error
    return arrays(found)


def arrays(found: Any) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a state dict by name, bit for bit, and what else there was, each with its type.

    Args:
      found: tensors by name, or a mapping that holds such under `state_dict`.

    Raises:
      ValueError: no tensors, or one that numpy has no type for.

    Example:
      >>> arrays({"step": 3})
      Traceback (most recent call last):
      ValueError: a state dict must hold tensors by name; got step (int)
    """
    left_out: list[str] = []
    where = ""
    while isinstance(found, Mapping) and (key := next((k for k in NESTED if isinstance(found.get(k), Mapping)), None)):
        left_out += [_name(f"{where}{k}", v) for k, v in found.items() if k != key]
        found, where = found[key], f"{where}{key}."
    entries = found.items() if isinstance(found, Mapping) else ()
    tensors = {str(name): tensor for name, tensor in entries if hasattr(tensor, "detach")}
    left_out += [_name(f"{where}{name}", value) for name, value in entries if not hasattr(value, "detach")]
    if not tensors:
        inside = ", ".join(left_out) or type(found).__name__
        raise ValueError(f"a state dict must hold tensors by name; got {inside}")
    return {name: _array(name, tensor) for name, tensor in tensors.items()}, left_out


def write(arrays: Mapping[str, np.ndarray], out: Path) -> None:
    """Writes arrays for `load`: a safetensors file if the name ends so, else an orbax checkpoint.

    Raises:
      ImportError: safetensors is not installed.
      OSError: `out` exists, or cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> out = Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> write({"weight": np.ones((2, 3))}, out)
      >>> load(out)["weight"].shape
      (2, 3)
    """
    _check_new(out)
    if out.suffix == ".safetensors":
        # In row-major order: safetensors writes whatever lies in memory.
        _safetensors().save_file({name: np.array(x, order="C") for name, x in arrays.items()}, out)
        return
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(out.absolute(), dict(arrays))


def load(out: Path | str) -> dict[str, np.ndarray]:
    """The arrays that `write` wrote, for `load_torch_state_dict`.

    Raises:
      ImportError: safetensors is not installed.
      OSError: there is no such file or directory.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> out = Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> write({"weight": np.ones((2, 3))}, out)
      >>> load(out)["weight"].shape
      (2, 3)
    """
    out = Path(out)
    if not out.exists():
        raise FileNotFoundError(f"there must be a safetensors file or an orbax checkpoint at {out}; got nothing")
    if out.is_file():
        return _safetensors().load_file(out)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(out.absolute())


def _array(name, tensor):
    """A copy of its own in row-major order, as tensors may be views of each other."""
    tensor = tensor.detach()
    narrow = str(tensor.dtype) == "torch.bfloat16"  # which numpy itself does not know; float32 holds it exactly
    try:
        array = (tensor.float() if narrow else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} must be a dense tensor of a type that numpy has; got {tensor.dtype}") from error
    return np.array(array, dtype=jnp.bfloat16 if narrow else None, order="C")


def _name(name, value):
    return f"{name} ({type(value).__name__})"


def _reason(error):
    """The line in which PyTorch says what it found; the others advise to run the code."""
    lines = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line]
    return f"PyTorch says: {lines[0].partition('WeightsUnpickler error: ')[2]}" if lines else ""


def _check_new(out):
    if out.exists():
        raise FileExistsError(f"nothing is overwritten; {out} exists, and a new name would do")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"there must be a folder to write to; got {out.parent}, which is none")


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("safetensors files need an extra; pip install 'jaxdeq[convert]'") from None
    return safetensors.numpy


if __name__ == "__main__":
    main()
