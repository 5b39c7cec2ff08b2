# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from tests.support import ROOT
from torch_utils import misc, persistence, safe_pickle
from torch_utils.ops import layout
from training import networks
from training.augment import AugmentPipe
from training.files import snapshot

SHAPE = {"c_dim": 2, "img_resolution": 8, "img_channels": 1}
WIDTHS = {"channel_base": 64, "channel_max": 8}


def make_G(**synthesis_kwargs):
    return networks.Generator(
        z_dim=4, w_dim=4, mapping_kwargs={"num_layers": 2}, synthesis_kwargs={**WIDTHS, **synthesis_kwargs}, **SHAPE
    )


def make_D(**kwargs):
    return networks.Discriminator(**SHAPE, **WIDTHS, **kwargs)


def scores(D):
    img = torch.from_numpy(np.random.RandomState(0).randn(2, 1, 8, 8)).float()
    return D(img, torch.eye(2))


def pictures(G):
    return G(torch.from_numpy(np.random.RandomState(0).randn(2, 4)).float(), torch.eye(2), noise_mode="const")


@pytest.fixture
def data():
    return {
        "G": make_G(),
        "D": make_D(),
        "G_ema": make_G().eval(),
        "augment_pipe": AugmentPipe(xflip=1, brightness=0.5),
        "training_set_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip"},
    }


@pytest.fixture
def path(data, tmp_path):
    snapshot.save_snapshot(tmp_path / "net.pkl", data)
    return str(tmp_path / "net.pkl")


@pytest.mark.parametrize("trust", [False, True])
def test_networks_come_back_the_same(data, path, trust):
    snap = snapshot.load_snapshot(path, trust=trust)
    assert list(snap) == list(snapshot.KEYS) and len(snap) == 5
    assert snap.path == path and snap.sha256 == hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    assert snap["training_set_kwargs"] == data["training_set_kwargs"]
    for key in snapshot.NETWORK_KEYS:
        network = snap[key]
        assert type(network) is type(data[key]) and snap[key] is network
        assert not network.training and network.init_kwargs == data[key].init_kwargs
        ours = dict(misc.named_params_and_buffers(data[key]))
        theirs = dict(misc.named_params_and_buffers(network))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()
        assert not any(tensor.requires_grad for tensor in theirs.values())
        assert {tensor.device.type for tensor in theirs.values()} == {"cpu"}
    assert torch.equal(pictures(snap["G_ema"]), pictures(data["G_ema"]))
    assert torch.equal(scores(snap["D"]), scores(data["D"].eval()))


def test_saving_leaves_the_networks_as_they_are(data, tmp_path):
    data["D"].train().requires_grad_(True)
    snapshot.save_snapshot(tmp_path / "net.pkl", data)
    assert data["D"].training and next(data["D"].parameters()).requires_grad
    assert os.listdir(tmp_path) == ["net.pkl"]


def test_a_failed_write_leaves_the_old_file(data, path):
    before = pathlib.Path(path).read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        snapshot.save_snapshot(path, {**data, "training_set_kwargs": {"a": lambda: None}})
    assert pathlib.Path(path).read_bytes() == before and os.listdir(os.path.dirname(path)) == ["net.pkl"]


def test_stored_form_is_that_of_stylegan2_ada(path):
    entries = safe_pickle.loads(pathlib.Path(path).read_bytes())
    assert list(entries) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]
    for key, name in [("G", "Generator"), ("D", "Discriminator"), ("augment_pipe", "AugmentPipe")]:
        stored = entries[key]
        assert (stored.class_name, stored.version, stored.state["training"]) == (name, 6, False)
        source = "augment" if key == "augment_pipe" else "networks"
        assert stored.module_src == (ROOT / "training" / f"{source}.py").read_text()
    block = entries["G"].state["_modules"]["synthesis"].state["_modules"]["b8"]
    assert block.class_name == "SynthesisBlock" and "conv0" in block.state["_modules"]


def test_plain_pickle_reads_it_with_only_the_support_packages(data, path, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("raise ImportError('not ours')")
    for package in ("dnnlib", "torch_utils"):
        (tmp_path / package).symlink_to(ROOT / package)
    code = (
        "import pickle, sys, torch; data = pickle.load(open(sys.argv[1], 'rb')); G = data['G_ema'];"
        "z = torch.tensor(eval(sys.argv[2])); img = G(z, torch.eye(2), noise_mode='const');"
        "print([round(v, 4) for v in img.flatten().tolist()])"
    )
    z = np.random.RandomState(0).randn(2, 4).astype(np.float32).tolist()
    run = subprocess.run(
        [sys.executable, "-c", code, path, str(z)], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert np.allclose(eval(run.stdout), pictures(data["G_ema"]).flatten().tolist(), atol=2e-4)


def test_opening_runs_no_code_and_draws_no_random_numbers(path, monkeypatch):
    monkeypatch.setattr(persistence, "_find_class", None)
    monkeypatch.setattr(pickle, "loads", None)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    snap = snapshot.load_snapshot(path)
    for key in snap:
        assert snap[key] is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_entries(data, tmp_path):
    path = str(tmp_path / "net.pkl")
    del data["training_set_kwargs"]
    snapshot.save_snapshot(path, {**data, "augment_pipe": None, "G": None})
    snap = snapshot.load_snapshot(path)
    assert set(snap) == {"D", "G_ema"} and "G" not in snap and snap.get("augment_pipe", 3) == 3
    assert snap.get("D") is snap["D"]
    for key in ("G", "augment_pipe", "training_set_kwargs", "nonsense"):
        with pytest.raises(UserError, match=rf"net\.pkl holds no {key}; it has D, G_ema"):
            snap[key]


def test_entries_of_the_wrong_type(data, tmp_path):
    path = str(tmp_path / "net.pkl")
    snapshot.save_snapshot(path, {**data, "G": 3, "training_set_kwargs": [1]})
    snap = snapshot.load_snapshot(path)
    for key in ("G", "training_set_kwargs"):
        with pytest.raises(UserError, match=rf"{key} in .*net\.pkl is not"):
            snap[key]


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"PK\x03\x04",
        pickle.dumps(3),
        pickle.dumps({}),
        pickle.dumps({"state_dict": {}}),
        pickle.dumps([]),
    ],
)
def test_files_that_are_not_snapshots(tmp_path, content, trust):
    path = tmp_path / "net.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"net\.pkl"):
        snapshot.load_snapshot(path, trust=trust)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_snapshot(path, part):
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match=r"net\.pkl .*damaged"):
        snapshot.load_snapshot(path)


def test_paths_without_a_file(tmp_path):
    for path in (tmp_path / "none.pkl", tmp_path, tmp_path / "none" / "net.pkl"):
        with pytest.raises(UserError, match=str(path)):
            snapshot.load_snapshot(path)


def test_file_urls(path):
    assert "G" in snapshot.load_snapshot(pathlib.Path(path).as_uri())


def test_code_in_a_snapshot_is_refused(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"D": os.getcwd}))
    with pytest.raises(safe_pickle.UnsafePickleError, match=r"net\.pkl .*getcwd.*--trust-pickle"):
        snapshot.load_snapshot(path)


def test_tensorflow_pickle_without_arguments_is_a_user_error(tmp_path):
    path = tmp_path / "net.pkl"
    network = b"cdnnlib.tflib.network\nNetwork\n)\x81}X\x07\x00\x00\x00versionK\x04sb"
    path.write_bytes(b"\x80\x02" + network * 3 + b"\x87.")
    with pytest.raises(UserError, match=r"net\.pkl .*TensorFlow"):
        snapshot.load_snapshot(path)["D"]


def stored_again(network, **changes):
    """A network as stored in a file, with other metadata."""
    stored = safe_pickle.loads(pickle.dumps(network))
    for name, value in changes.items():
        setattr(stored, name, value)
    return stored


def test_every_tensor_that_does_not_fit_is_named():
    stored = stored_again(make_D())
    stored.state["_modules"]["b4"].state["_buffers"]["other"] = torch.zeros(2)
    del stored.state["_modules"]["b8"].state["_modules"]["skip"]
    stored.state["_modules"]["b8"].state["_modules"]["conv0"].state["_parameters"]["bias"] = torch.zeros(5)
    with pytest.raises(UserError) as caught:
        snapshot.rebuild(stored, "D in x.pkl")
    sentence = str(caught.value)
    for part in (
        "D in x.pkl does not fit Discriminator",
        "b4.other [2] is unknown here",
        "b8.skip.weight [8, 8, 1, 1] is missing there",
        "b8.conv0.bias is [5] there and [8] here",
    ):
        assert part in sentence


def test_unknown_classes_and_versions():
    with pytest.raises(UserError, match="SynthesisNetwork"):
        snapshot.rebuild(stored_again(make_G().synthesis), "G")
    for version in (5, 7, None, "6"):
        with pytest.raises(UserError, match=f"format version {version}"):
            snapshot.rebuild(stored_again(make_D(), version=version), "D")


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_base": 2**40},
        {"img_resolution": 2**18},
        {"img_resolution": 2**18, "channel_base": 2**19, "channel_max": 2**19},
        {"img_channels": 2**20},
        {"c_dim": 10**30},
        {"c_dim": -1},
        {"mapping_kwargs": {"num_layers": 10**9}},
        {"mapping_kwargs": {"layer_features": 2**20}},
        {"mapping_kwargs": [[[[1]]]]},
        {"architecture": ["x"] * 5},
        {"architecture": "x" * 1000},
        {"nonsense": 1},
        {"img_resolution": "8"},
        {"img_resolution": None},
        {"block_kwargs": {"activation": "nonsense"}},
    ],
)
def test_invalid_constructor_arguments_are_refused(changes):
    stored = stored_again(make_D())
    stored.state["_init_kwargs"].update(changes)
    with pytest.raises(UserError, match="D in x"):
        snapshot.rebuild(stored, "D in x")


STYLEGAN3_SOURCE = "def forward(self, fused_modconv_default='inference_only', update_emas=False): raise RuntimeError"


def test_our_source_is_not_taken_for_that_of_stylegan3():
    source = (ROOT / "training" / "networks.py").read_text()
    stored = stored_again(make_G(), module_src=source)
    assert snapshot.rebuild(stored, "G").init_kwargs.synthesis_kwargs == WIDTHS


@pytest.mark.parametrize("source", ["", STYLEGAN3_SOURCE])
def test_generator_of_stylegan3s_repository(source):
    stored = stored_again(make_G(), module_src=source)
    kwargs = stored.state["_init_kwargs"]
    kwargs.update(kwargs.pop("synthesis_kwargs"), fused_modconv_default="inference_only")
    kwargs["mapping_kwargs"] = {"num_layers": 2}
    G = snapshot.rebuild(stored, "G")
    assert G.init_kwargs.synthesis_kwargs == {**WIDTHS, "num_fp16_res": 4, "conv_clamp": 256}
    assert G.init_kwargs.mapping_kwargs == {"num_layers": 2, "w_avg_beta": 0.998}
    assert G.synthesis.b8.use_fp16 and G.synthesis.b8.conv1.conv_clamp == 256 and G.mapping.w_avg_beta == 0.998
    kwargs.update(num_fp16_res=0, conv_clamp=None)
    G = snapshot.rebuild(stored, "G")
    assert not G.synthesis.b8.use_fp16 and G.synthesis.b8.conv1.conv_clamp is None


def test_generator_of_stylegan3s_repository_with_only_defaults():
    G = networks.Generator(4, 0, 4, 8, 1, {"num_layers": 1}, {})
    assert not snapshot.rebuild(stored_again(G), "G").synthesis.b8.use_fp16
    stored = stored_again(G, module_src=STYLEGAN3_SOURCE)
    stored.state["_init_args"] = stored.state["_init_args"][:6]
    rebuilt = snapshot.rebuild(stored, "G")
    assert rebuilt.synthesis.b8.use_fp16 and rebuilt.mapping.w_avg_beta == 0.998
    assert torch.equal(rebuilt.synthesis.b8.torgb.weight, G.synthesis.b8.torgb.weight)


def test_discriminator_of_stylegan3s_repository():
    D = snapshot.rebuild(stored_again(make_D(), module_src=STYLEGAN3_SOURCE), "D")
    assert D.b8.use_fp16 and D.b8.conv0.conv_clamp == 256
    D = snapshot.rebuild(stored_again(make_D(num_fp16_res=0), module_src=STYLEGAN3_SOURCE), "D")
    assert not D.b8.use_fp16


def test_alias_free_generator_is_refused_on_access(data, tmp_path):
    path = tmp_path / "net.pkl"
    snapshot.save_snapshot(path, data)
    snap = snapshot.load_snapshot(path)
    synthesis = snap._entries["G_ema"].state["_modules"]["synthesis"]
    synthesis.state["_modules"]["input"] = safe_pickle.StoredObject(
        "SynthesisInput", "", {"_buffers": {"freqs": torch.zeros(2)}}, 6
    )
    assert torch.equal(scores(snap["D"]), scores(data["D"].eval()))
    with pytest.raises(UserError, match="alias-free StyleGAN3 generator"):
        snap["G_ema"]


def test_keeping_the_newest(tmp_path):
    for name in (
        "network-snapshot-000000.pkl",
        "network-snapshot-000200.pkl",
        "network-snapshot-001000.pkl",
        "log.txt",
    ):
        (tmp_path / name).write_text("")
    snapshot.keep_newest(tmp_path, 5)
    assert len(os.listdir(tmp_path)) == 4
    snapshot.keep_newest(tmp_path, 2)
    left = ["log.txt", "network-snapshot-000200.pkl", "network-snapshot-001000.pkl"]
    assert sorted(os.listdir(tmp_path)) == left
    snapshot.keep_newest(tmp_path, 1, besides="network-snapshot-000200.pkl")
    assert sorted(os.listdir(tmp_path)) == left


def test_mutated_snapshots_raise_only_user_errors(path):
    content = pathlib.Path(path).read_bytes()
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng = np.random.RandomState(seed)
    refused = 0
    for _ in range(60):
        mutant = bytearray(content)
        for position in rng.randint(len(mutant), size=rng.randint(1, 20)):
            mutant[position] = rng.randint(256)
        pathlib.Path(path).write_bytes(mutant)
        try:
            snap = snapshot.load_snapshot(path)
            for key in snap:
                snap[key]
        except UserError:
            refused += 1
    assert refused > 0


MEASURE = """
import re, sys, time
from training.files import snapshot

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

before, start = peak(), time.process_time()
snap = snapshot.load_snapshot(sys.argv[1])
networks = [snap[key] for key in ("G", "D", "G_ema")]
print(time.process_time() - start, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_large_snapshot_opens_quickly_in_little_memory(tmp_path):
    path = tmp_path / "net.pkl"
    shape = {"c_dim": 0, "img_resolution": 1024, "img_channels": 3}
    G = networks.Generator(z_dim=512, w_dim=512, **shape)
    snapshot.save_snapshot(path, {"G": G, "D": networks.Discriminator(**shape), "G_ema": G})
    run = subprocess.run([sys.executable, "-c", MEASURE, path], cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, peak = map(float, run.stdout.split())
    print(f"{seconds:.1f} s of one core, {peak / path.stat().st_size:.2f} times the file's size")
    assert seconds < 5 and 1 < peak / path.stat().st_size < 2.5


def test_the_cpu_layout_is_not_stored(tmp_path):
    G = layout.prepare(make_G(), torch.device("cpu"))
    assert not G.synthesis.b8.conv0.weight.is_contiguous() and not G.synthesis.b8.conv1.weight.is_contiguous()
    snapshot.save_snapshot(tmp_path / "G.pkl", {"G_ema": G})
    with open(tmp_path / "G.pkl", "rb") as file:
        stored = pickle.load(file)["G_ema"]
    assert all(tensor.is_contiguous() for tensor in [*stored.parameters(), *stored.buffers()])
    for name, tensor in G.state_dict().items():
        assert torch.equal(stored.state_dict()[name], tensor), name
