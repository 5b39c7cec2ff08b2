# SPDX-License-Identifier: Apache-2.0
"""Our snapshots in other people's trees: plain `pickle`, their `torch_utils` and `dnnlib`, none of our code."""

import ast
import json
import os
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest
import torch

from dnnlib.util import EasyDict
from tests import tolerances
from tests.compat import stand_in_tree
from tests.support import ROOT, rnd
from tests.training.files import biggan_checkpoint
from training.augment import AugmentPipe
from training.files import snapshot
from training.networks import Discriminator, Generator

OPEN = """
import json, os, pickle, sys
import numpy as np
import torch

here = os.getcwd()
result = {}
for name in ("coloured", "grey"):
    with open(name + ".pkl", "rb") as f:
        data = pickle.load(f)
    with np.load(name + ".npz") as arrays:
        t = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    G, D, pipe = data["G_ema"], data["D"], data["augment_pipe"]
    with torch.no_grad():
        ours = {
            "ws": G.mapping(t["z"], t["c"], truncation_psi=0.6, truncation_cutoff=3),
            "img": G(t["z"], t["c"], noise_mode="const"),
            "img_plain": G(t["z"], t["c"], noise_mode="none", fused_modconv=False),
            "logits": D(t["images"], t["c"]),
        }
        torch.manual_seed(5)
        ours["augmented"] = pipe(t["images"], debug_percentile=0.7)
        ours["drawn"] = pipe(t["images"])
    result[name] = {
        "differences": {key: float((value - t[key]).abs().max()) for key, value in ours.items()},
        "settings": [G.z_dim, G.c_dim, G.w_dim, G.num_ws, G.img_resolution, G.img_channels, G.mapping.num_ws,
                     G.synthesis.block_resolutions, sorted(G.init_kwargs), D.init_kwargs["c_dim"], G.training],
        "nested arguments": [G.init_kwargs["mapping_kwargs"].num_layers, G.init_kwargs["synthesis_kwargs"].channel_max],
    }
with open("biggan.pkl", "rb") as f:
    data = pickle.load(f)
with np.load("biggan.npz") as arrays:
    t = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
G, D = data["G_ema"], data["D"]
with torch.no_grad():
    ours = {
        "img": G(t["z"], t["c"], truncation_psi=0.7, noise_mode="const"),
        "logits": D(t["images"], t["c"]),
        "img_train": G.train()(t["z"], t["c"]),
        "u0": G.linear.u0,
    }
result["biggan"] = {
    "differences": {key: float((value - t[key]).abs().max()) for key, value in ours.items()},
    "settings": [G.z_dim, G.c_dim, G.img_resolution, G.img_channels, G.init_kwargs["ch"], D.init_kwargs["c_dim"]],
}
packages = {name: name.split(".")[0] for name in sys.modules}
support = [sys.modules[name] for name in packages if packages[name] in ("torch_utils", "dnnlib")]
result["elsewhere"] = [m.__file__ for m in support if not m.__file__.startswith(here)]
result["loaded"] = [name for name in packages if packages[name] in ("training", "metrics", "dgl", "legacy")]
print(json.dumps(result))
"""

SHAPES = {
    "coloured": {"c_dim": 3, "img_resolution": 16, "img_channels": 3},
    "grey": {"c_dim": 0, "img_resolution": 16, "img_channels": 1},
}
WIDTHS = {"channel_base": 128, "channel_max": 12}
G_KWARGS = {
    "coloured": {"num_fp16_res": 2, "conv_clamp": 256, "fp16_channels_last": True},
    "grey": {"architecture": "resnet", "activation": "swish", "resample_filter": [1, 2, 1]},
}
D_KWARGS = {
    "coloured": {"num_fp16_res": 2, "conv_clamp": 256, "block_kwargs": {"freeze_layers": 2}},
    "grey": {"architecture": "skip", "epilogue_kwargs": {"mbstd_group_size": 2}},
}
ALL_EFFECTS = dict.fromkeys(
    ["xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", "brightness", "contrast", "lumaflip", "hue"]
    + ["saturation", "imgfilter", "noise", "cutout"],
    1,
)


def make_data(name):
    """The content of a snapshot; all tensors differ from their initial values."""
    shape = SHAPES[name]
    synthesis = {**WIDTHS, **G_KWARGS[name]}
    G = Generator(z_dim=8, w_dim=12, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=synthesis, **shape)
    D = Discriminator(**shape, **WIDTHS, **D_KWARGS[name])
    with torch.no_grad():
        for network in (G, D):
            for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
                if not key.endswith("resample_filter"):
                    tensor += rnd(key, tensor.shape) * 0.3
    kwargs = EasyDict(class_name="training.dataset.ImageFolderDataset", path="x.zip", xflip=False, resolution=16)
    pipe = AugmentPipe(**ALL_EFFECTS)
    names = {"class_names": ["a", "b", "c"]} if shape["c_dim"] else {}
    return {"G": G, "D": D, "G_ema": G, "augment_pipe": pipe, "training_set_kwargs": kwargs, **names}


def inputs_and_outputs(name, data):
    """Inputs of the networks, and their outputs here."""
    shape, G, D, pipe = SHAPES[name], data["G_ema"].eval(), data["D"].eval(), data["augment_pipe"].eval()
    z, images = rnd("z", (4, 8)), rnd("images", (4, shape["img_channels"], 16, 16)) * 0.5
    c = torch.eye(4)[:, : shape["c_dim"]]
    with torch.no_grad():
        tensors = {
            "z": z,
            "c": c,
            "images": images,
            "ws": G.mapping(z, c, truncation_psi=0.6, truncation_cutoff=3),
            "img": G(z, c, noise_mode="const"),
            "img_plain": G(z, c, noise_mode="none", fused_modconv=False),
            "logits": D(images, c),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            tensors["augmented"] = pipe(images, debug_percentile=0.7)
            tensors["drawn"] = pipe(images)
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def biggan(folder):
    """A snapshot of BigGAN's networks, and inputs and outputs, in `folder`."""
    data = biggan_checkpoint.networks()
    snapshot.save_snapshot(folder / "biggan.pkl", data)
    tensors = {"z": rnd("z", (4, 8)), "c": torch.eye(3)[[0, 2, 1, 1]], "images": rnd("images", (4, 3, 32, 32)) * 0.5}
    G, D = data["G_ema"], data["D"]
    with torch.no_grad():
        outputs = {"img": G(tensors["z"], tensors["c"]), "logits": D(tensors["images"], tensors["c"])}
        outputs |= {"img_train": G.train()(tensors["z"], tensors["c"]), "u0": G.linear.u0}
    np.savez(folder / "biggan.npz", **{key: value.numpy() for key, value in {**tensors, **outputs}.items()})


def prepare(folder):
    """The stand-in tree, snapshots and their expected outputs, in `folder`."""
    stand_in_tree.write(folder)
    biggan(folder)
    for name in SHAPES:
        data = make_data(name)
        np.savez(folder / f"{name}.npz", **inputs_and_outputs(name, data))
        snapshot.save_snapshot(folder / f"{name}.pkl", data)


def test_a_tree_with_only_the_agreed_names_gets_equal_outputs(tmp_path):
    prepare(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", OPEN], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["elsewhere"] == [] and result["loaded"] == []
    for name, shape in SHAPES.items():
        with np.load(tmp_path / f"{name}.npz") as arrays:
            for key, difference in result[name]["differences"].items():
                assert difference < tolerances.READ_BY_OTHERS * np.abs(arrays[key]).max(), (name, key)
        G = make_data(name)["G_ema"]
        expected = [8, shape["c_dim"], 12, G.num_ws, 16, shape["img_channels"], G.num_ws, [4, 8, 16]]
        assert result[name]["settings"] == [*expected, sorted(G.init_kwargs), shape["c_dim"], False]
        assert result[name]["nested arguments"] == [2, 12]
    assert result["biggan"]["settings"] == [8, 3, 32, 3, 2, 3]
    with np.load(tmp_path / "biggan.npz") as arrays:
        for key, difference in result["biggan"]["differences"].items():
            assert difference < tolerances.READ_BY_OTHERS * np.abs(arrays[key]).max(), key


def names_in(pickled: bytes) -> set[str]:
    """The global names of a pickle, nested ones of its storages included."""
    found, strings = set(), []
    for opcode, argument, _position in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
        elif opcode.name.startswith("INST"):
            found.add(f"protocol 0: {argument}")
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            strings.append(argument)
        elif isinstance(argument, bytes) and len(argument) > 20:
            found |= nested_names(argument)
    return found


def nested_names(storage: bytes) -> set[str]:
    """The names in a storage in torch's format, which starts with four pickles."""
    found = set()
    for _ in range(4):
        end = next(position for opcode, _, position in pickletools.genops(storage) if opcode.name == "STOP") + 1
        found |= names_in(storage[:end])
        storage = storage[end:]
    return found


def test_the_pickle_names_nothing_that_older_versions_lack(tmp_path):
    """Names of PyTorch 1.7, and no numpy objects, since numpy 2 writes different names."""
    path = tmp_path / "net.pkl"
    snapshot.save_snapshot(path, make_data("coloured"))
    with open(path, "rb") as file:
        pickled = file.read()
    assert pickled[:2] == b"\x80\x04", "protocol 4 is the newest that Python 3.7 reads"
    # A memoised string may be written as a reference, so names are taken from protocol 2, which writes them as lines.
    plain = pickle.dumps(pickle.loads(pickled), 2).replace(b"__builtin__\n", b"builtins\n")
    assert names_in(plain) == {
        "builtins.set",
        "_codecs.encode",
        "collections.OrderedDict",
        "dnnlib.util.EasyDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.storage._load_from_bytes",
        "torch_utils.persistence._reconstruct_persistent_obj",
    }


SHIPPED = ["training/networks.py", "training/augment.py", "training/networks_biggan.py"]
OUTSIDE = {"collections", "itertools", "math", "numpy", "scipy", "torch", "typing"}


def test_the_source_is_stored_once_per_module():
    pickled = pickle.dumps([make_data("coloured"), biggan_checkpoint.networks()], 4)
    for name in SHIPPED:
        assert pickled.count((ROOT / name).read_bytes()) == 1


def names_used(source: str) -> set[str]:
    """'module.name' of everything that a source text uses from `torch_utils` and `dnnlib`.

    Raises AssertionError for imports that are relative, of other parts of the project, or of a whole package, and for
    uses of an imported module other than as `module.name`.
    """
    tree = ast.parse(source)
    modules = {}
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= OUTSIDE, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative: {ast.unparse(node)}"
            if node.module.split(".")[0] in OUTSIDE | {"__future__"}:
                continue
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in stand_in_tree.ALLOWED:
                    modules[alias.asname or alias.name] = name
                else:
                    used.add(name)
    taken = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.add(f"{modules[node.value.id]}.{node.attr}")
            taken.add(node.value)
    bare = [
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in modules and node not in taken
    ]
    assert bare == [], f"a module is used as a whole: {bare}"
    return used


def not_allowed(source: str) -> set[str]:
    allowed = {f"{module}.{name}" for module, names in stand_in_tree.ALLOWED.items() for name in names}
    return names_used(source) - allowed


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_sources_use_only_the_agreed_names(name):
    source = (ROOT / name).read_text(encoding="utf-8")
    assert not_allowed(source) == set()
    assert "torch_utils.persistence.persistent_class" in names_used(source)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_sources_parse_as_python_3_7(name):
    """StyleGAN2-ADA runs on Python 3.7; newer annotations are fine as long as they are not evaluated."""
    source = (ROOT / name).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    assert "\nfrom __future__ import annotations\n" in source
    for newer in ("itertools.pairwise", "math.prod", "functools.cache\n", "removeprefix", "zip(strict", "strict=True"):
        assert newer not in source


@pytest.mark.parametrize("name", SHIPPED)
def test_only_the_gain_of_the_activation_table_is_used(name):
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and child.attr == "activation_funcs":
                assert isinstance(node, ast.Subscript), "a look-up of one activation"
        if isinstance(node, ast.Attribute) and "activation_funcs[" in ast.unparse(node.value):
            assert node.attr == "def_gain"


@pytest.mark.parametrize(
    "source",
    [
        "from torch_utils import images\nimages.to_uint8(x)",
        "from torch_utils import misc\nmisc.nan_to_num(x)",
        "from torch_utils.ops import upfirdn2d\nupfirdn2d.upfirdn2d(x)",
        "from torch_utils.ops.upfirdn2d import filter2d",
        "import torch_utils",
        "import torch_utils.misc",
        "import dnnlib",
        "import requests",
        "from training import dataset",
        "from . import networks",
        "from torch_utils import misc\nm = misc",
        "from torch_utils import misc\ngetattr(misc, 'constant')",
    ],
)
def test_other_names_are_found(source):
    try:
        found = not_allowed(source)
    except AssertionError:
        return
    assert found
