"""PyTorch files made readable without PyTorch. A stand-in plays PyTorch where it is not installed."""

import collections
import pickle
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq.models import ResNet, ResNetConfig, convert, load_torch_state_dict, to_torch_state_dict

ROOT = Path(__file__).parents[2]
FORMATS = ["checkpoint", "weights.safetensors"]
ARRAYS = {
    "module.a.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "module.a.0.bias": np.array([1.5, -2.25], jnp.bfloat16),
    "module.a.1.num_batches_tracked": np.array(2**40),
    "module.exact": np.array([1 / 3]),
    "half": np.array([1, 65504], np.float16),
}


class Tensor:
    """As much of PyTorch's as the conversion uses."""

    def __init__(self, array):
        self.array = array
        self.dtype = f"torch.{array.dtype}"

    def detach(self):
        return self

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def numpy(self):
        if self.dtype in ("torch.bfloat16", "torch.complex32"):
            raise TypeError("unsupported ScalarType")
        return self.array


TENSORS = {name: Tensor(array) for name, array in ARRAYS.items()}


def equal(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert type(got[name]) is np.ndarray, name
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def pretend(monkeypatch, answer):
    """Puts a module `torch` in place whose `load` returns the answer, or raises it."""
    calls = []

    def load(file, **settings):
        calls.append(settings)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    return calls


def test_state_dicts_as_training_scripts_nest_them():
    plain, nothing = convert.arrays(collections.OrderedDict(TENSORS))
    equal(plain, ARRAYS)
    assert nothing == []
    saved = {"epoch": 3, "model": "mdeq", "state_dict": TENSORS | {"steps": 7}, "optimizer": {"lr": [0.1]}}
    got, left_out = convert.arrays(saved)
    equal(got, ARRAYS)
    assert left_out == ["epoch (int)", "model (str)", "optimizer (dict)", "state_dict.steps (int)"]
    equal(convert.arrays({"model": {"state_dict": TENSORS}})[0], ARRAYS)


def test_arrays_own_their_memory_in_rows():
    table = np.arange(6.0).reshape(2, 3)
    got = convert.arrays({"a": Tensor(table.T), "b": Tensor(table)})[0]
    assert got["a"].flags.c_contiguous
    assert not any(np.shares_memory(array, table) for array in got.values())


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([1], "must hold tensors by name; got list"),
        ({}, "must hold tensors by name; got dict"),
        ({"epoch": 3, "state_dict": {"note": "x"}}, r"got epoch \(int\), state_dict.note \(str\)"),
    ],
)
def test_a_file_without_tensors(found, text):
    with pytest.raises(ValueError, match=text):
        convert.arrays(found)


def test_a_type_that_numpy_lacks():
    odd = Tensor(np.zeros(2))
    odd.dtype = "torch.complex32"
    with pytest.raises(ValueError, match=r"a\.weight must be a dense tensor of a type that numpy has; got torch.compl"):
        convert.arrays({"a.weight": odd})


@pytest.mark.parametrize("out", FORMATS)
def test_round_trip_is_exact(tmp_path, out):
    convert.write(ARRAYS, tmp_path / out)
    equal(convert.load(tmp_path / out), ARRAYS)
    equal(convert.load(str(tmp_path / out)), ARRAYS)
    with pytest.raises(FileExistsError, match=f"nothing is overwritten; .*{out} exists"):
        convert.write(ARRAYS, tmp_path / out)
    with pytest.raises(FileNotFoundError, match="must be a safetensors file or an orbax checkpoint"):
        convert.load(tmp_path / f"no_{out}")


@pytest.mark.parametrize("out", FORMATS)
def test_arrays_are_written_as_they_read_and_not_as_they_lie(tmp_path, out):
    turned = {"weight": np.arange(6.0).reshape(2, 3).T, "count": np.asarray(7)}
    convert.write(turned, tmp_path / out)
    equal(convert.load(tmp_path / out), turned)


@pytest.mark.parametrize("out", FORMATS)
def test_from_the_command_line_into_a_model(tmp_path, monkeypatch, capsys, out):
    model = nnx.eval_shape(lambda: ResNet(ResNetConfig((1,), classes=2, width=4), rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    make = lambda value: nnx.merge(graphdef, jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), state))
    sd = to_torch_state_dict(make(3))
    calls = pretend(monkeypatch, {"state_dict": {f"module.{k}": Tensor(v) for k, v in sd.items()}, "epoch": 3})
    convert.main([str(tmp_path / "x.pth"), str(tmp_path / out)])
    assert calls == [{"map_location": "cpu", "weights_only": True}]
    said = capsys.readouterr().out
    assert f"{len(sd)} arrays, {sum(x.size for x in sd.values()):,} numbers" in said
    assert "left out: epoch (int)" in said
    model = make(0)
    load_torch_state_dict(model, convert.load(tmp_path / out))
    equal(to_torch_state_dict(model), sd)


FOUND = "Unsupported global: GLOBAL os.system was not an allowed global by default."


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            pickle.UnpicklingError(f"Run it with weights_only=False!\n\tWeightsUnpickler error: {FOUND}\nDo."),
            rf"x.pth is refused: .* could run any code\. .*PyTorch says: {FOUND}$",
        ),
        (pickle.UnpicklingError("invalid load key"), "is refused"),
        (EOFError("Ran out of input"), r"must be a file that torch.save wrote; got EOFError\('Ran out of input'\)"),
        (FileNotFoundError(2, "No such file", "x.pth"), "No such file: 'x.pth'"),
        ({"epoch": 1}, r"got epoch \(int\)"),
        (None, "can only be read with PyTorch; pip install torch"),
    ],
)
def test_what_it_refuses_and_its_status(tmp_path, monkeypatch, answer, text):
    pretend(monkeypatch, answer)
    if answer is None:
        monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=text) as stop:
        convert.main(["x.pth", str(tmp_path / "out")])
    assert isinstance(stop.value.code, str), "which Python prints to the standard error, with status 1"
    assert "weights_only" not in stop.value.code
    assert not list(tmp_path.iterdir())


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxdeq\[convert\]'"):
        convert.write(ARRAYS, tmp_path / "weights.safetensors")


def test_nothing_is_read_for_an_output_that_exists_or_cannot(tmp_path, monkeypatch):
    calls = pretend(monkeypatch, TENSORS)
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        convert.main(["x.pth", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"must be a folder to write to; got .*none"):
        convert.main(["x.pth", str(tmp_path / "none" / "x.safetensors")])
    assert not calls


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_models_load_none_of_it():
    code = "import sys, jaxdeq.models.convert; print({'torch', 'orbax', 'safetensors'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_status_of_the_command(tmp_path):
    run = python("-m", "jaxdeq.models.convert", str(tmp_path / "none.pth"), str(tmp_path / "out"))
    assert run.returncode == 1
    assert run.stderr.startswith("error: "), "with or without PyTorch"
    assert "Traceback" not in run.stderr
    assert "FILE OUT" in python("-m", "jaxdeq.models.convert", "--help").stdout


class Code:
    """What a pickle runs when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestWithPyTorch:
    """The same with PyTorch's own files, where it is installed."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    def tensors(self, torch):
        kinds = {jnp.bfloat16: torch.bfloat16}
        make = lambda a: torch.tensor(a.tolist(), dtype=kinds.get(a.dtype.type) or getattr(torch, a.dtype.name))
        return collections.OrderedDict((name, make(array)) for name, array in ARRAYS.items())

    @pytest.mark.parametrize("zipped", [True, False])
    def test_files(self, torch, tmp_path, zipped):
        saved = {"state_dict": self.tensors(torch), "epoch": 3}
        torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        got, left_out = convert.read(tmp_path / "x.pth")
        equal(got, ARRAYS)
        assert left_out == ["epoch (int)"]

    def test_parameters_and_views(self, torch, tmp_path):
        weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        torch.save({"a": weight, "b": weight.T}, tmp_path / "x.pkl")
        table = np.arange(6, dtype=np.float32).reshape(2, 3)
        equal(convert.read(tmp_path / "x.pkl")[0], {"a": table, "b": table.T})

    def test_code_is_not_run(self, torch, tmp_path):
        file, mark = tmp_path / "x.pth", tmp_path / "ran"
        torch.save({"a": torch.ones(2), "b": Code(mark)}, file)
        with pytest.raises(SystemExit, match="is refused"):
            convert.main([str(file), str(tmp_path / "out")])
        assert not mark.exists()
        torch.load(file, weights_only=False)
        assert mark.exists(), "the file would have run it"

    def test_no_pytorch_file(self, torch, tmp_path):
        (tmp_path / "x.pth").write_bytes(b"junk")
        with pytest.raises(ValueError, match=r"must be a file that torch\.save wrote"):
            convert.read(tmp_path / "x.pth")
