# SPDX-License-Identifier: Apache-2.0
"""The precision of a run by flag, device and CPU, and how networks take it."""

import copy
import subprocess
import sys
import types

import pytest
import torch

from dnnlib.util import UserError
from tests import conftest
from tests.support import ROOT
from torch_utils import precision
from training.flags import PRECISIONS
from training.networks import Discriminator, Generator

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def detected(monkeypatch):
    """Detection from the CPU, without the override of the environment."""
    monkeypatch.delenv(precision.FAST_BF16_VARIABLE, raising=False)


@pytest.mark.usefixtures("detected")
@pytest.mark.parametrize("flags", ["fpu avx2 avx512f amx_bf16 amx_tile", "fpu avx512_bf16"])
def test_a_cpu_with_bf16_instructions_is_recognised(tmp_path, flags):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert precision.cpu_has_fast_bf16(str(cpuinfo))


@pytest.mark.usefixtures("detected")
@pytest.mark.parametrize("text", ["flags\t: fpu avx512f avx512_vnni\n", "model name\t: amx_bf16\n", "", None])
def test_a_cpu_without_them_or_of_unknown_flags_is_not(tmp_path, text):
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert not precision.cpu_has_fast_bf16(str(cpuinfo))


@pytest.mark.parametrize(("value", "flags"), [("1", "fpu"), ("0", "amx_bf16")])
def test_the_environment_overrides_the_cpu(tmp_path, monkeypatch, value, flags):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t: {flags}\n")
    monkeypatch.setenv(precision.FAST_BF16_VARIABLE, value)
    assert precision.cpu_has_fast_bf16(str(cpuinfo)) == (value == "1")


def test_another_value_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(precision.FAST_BF16_VARIABLE, "yes")
    with pytest.raises(UserError, match=r"STYLEGAN2_FAST_BF16 must be 0 or 1, not 'yes'"):
        precision.cpu_has_fast_bf16()


def test_child_processes_inherit_the_override(fast_bf16):
    code = "import torch; from torch_utils.precision import run_dtype; print(run_dtype('auto', torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(torch.bfloat16 if fast_bf16 else torch.float32)


@pytest.mark.parametrize(("option", "fast"), [("on", True), ("off", False)])
def test_the_option_of_the_suite_sets_it(monkeypatch, option, fast):
    monkeypatch.setenv(precision.FAST_BF16_VARIABLE, "")  # restored afterwards
    conftest.pytest_configure(types.SimpleNamespace(getoption={"--fast-bf16": option}.get))
    assert precision.cpu_has_fast_bf16() is fast


def test_auto_on_the_cpu_follows_its_instructions(fast_bf16):
    assert precision.run_dtype("auto", CPU) == (torch.bfloat16 if fast_bf16 else torch.float32)


@pytest.mark.usefixtures("fast_bf16")
def test_named_precisions():
    assert precision.run_dtype("fp32", CPU) == precision.run_dtype("fp32", CUDA) == torch.float32
    assert precision.run_dtype("bf16", CPU) == torch.bfloat16
    assert precision.run_dtype("fp16", CUDA) == precision.run_dtype("auto", CUDA) == torch.float16
    assert precision.run_dtype("auto", MPS) == torch.float32


@pytest.mark.parametrize(("name", "device"), [("fp16", CPU), ("fp16", MPS), ("bf16", MPS), ("half", CPU)])
def test_what_a_device_cannot_do_is_refused_in_one_sentence(name, device):
    with pytest.raises(UserError, match="--precision") as err:
        precision.run_dtype(name, device)
    assert "\n" not in str(err.value)


def test_the_flag_offers_what_there_is():
    assert PRECISIONS == precision.PRECISIONS


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("fp32", CUDA, "in fp32"),
        ("auto", MPS, "in fp32"),
        ("bf16", CPU, "in bf16 (lower resolutions in fp32)"),
        ("fp16", CUDA, "in fp16 (lower resolutions in fp32)"),
    ],
)
def test_description(name, device, words):
    G, D = networks()
    assert precision.describe({"G": G, "D": D}, precision.run_dtype(name, device)) == words


def test_description_of_networks_without_half_precision():
    D = Discriminator(0, 16, 3, channel_base=64, channel_max=8)
    assert precision.describe({"D": D}, torch.bfloat16) == "in fp32 (no half-precision resolutions)"


def test_description_of_networks_of_another_project():
    G, _D = networks()
    own = torch.nn.Linear(2, 1)
    assert precision.describe({"G": own, "D": own}, torch.float32) == "in their own precision"
    mixed = precision.describe({"G": G, "D": own}, torch.bfloat16)
    assert mixed == "with G in bf16 (lower resolutions in fp32), D in its own precision"


def networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(7)
    shared = {"channel_base": 512, "channel_max": 32, "num_fp16_res": 2, "conv_clamp": 256}
    G = Generator(16, 0, 16, 32, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=shared)
    return G.eval(), Discriminator(0, 32, 3, **shared).eval()


@pytest.mark.parametrize("by_call", [False, True])
def test_bf16_is_in_the_highest_resolutions_only(by_call):
    G, D = networks()
    kwargs = {"half_dtype": torch.bfloat16} if by_call else {}
    if not by_call:
        precision.set_half_dtype(G, torch.bfloat16)
        precision.set_half_dtype(D, torch.bfloat16)
    dtypes = {}

    def note(module, _inputs, out):
        dtypes[names[module]] = out.dtype

    names = {getattr(G.synthesis, f"b{res}").conv1: ("G", res) for res in (8, 16, 32)}
    names |= {getattr(D, f"b{res}").conv1: ("D", res) for res in (8, 16, 32)}
    for module in names:
        module.register_forward_hook(note)
    before = {name: value.clone() for net in (G, D) for name, value in net.state_dict().items()}
    img = G(torch.randn(4, 16), None, noise_mode="const", **kwargs)
    logits = D(img, None, **kwargs)
    assert img.dtype == logits.dtype == torch.float32
    in_bf16 = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert in_bf16 == {(net, res) for net in "GD" for res in (16, 32)} and len(dtypes) == 6
    after = {name: value for net in (G, D) for name, value in net.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)


def test_force_fp32_overrides_the_precision_of_the_run():
    G, D = networks()
    z = torch.randn(2, 16)
    plain = G(z, None, noise_mode="const")
    logits = D(plain, None)
    precision.set_half_dtype(G, torch.bfloat16)
    precision.set_half_dtype(D, torch.bfloat16)
    assert torch.equal(plain, G(z, None, noise_mode="const", force_fp32=True))
    assert not torch.equal(plain, G(z, None, noise_mode="const"))
    assert torch.equal(logits, D(plain, None, force_fp32=True))
    assert torch.equal(plain, G(z, None, noise_mode="const", half_dtype=torch.float32))  # and so does a call's own type


def test_resetting_the_type_of_a_network_leaves_no_trace():
    G, D = networks()
    before = [dict(vars(module)) for module in G.modules()]
    for dtype in (torch.bfloat16, torch.float32, None):
        precision.set_half_dtype(G, dtype)
        assert precision.get_half_dtype(G) is dtype
        assert precision.get_half_dtype(D) is None  # one network at a time
        assert precision.get_half_dtype(copy.deepcopy(G)) is dtype
    assert [dict(vars(module)) for module in G.modules()] == before


def test_a_network_of_another_project_is_left_alone():
    class Block(torch.nn.Module):
        use_fp16 = True

    network = torch.nn.Sequential(Block(), torch.nn.Linear(2, 2))
    before = [dict(vars(module)) for module in network.modules()]
    precision.set_half_dtype(network, torch.bfloat16)
    assert [dict(vars(module)) for module in network.modules()] == before
    assert precision.get_half_dtype(network) is None and not precision.is_supported(network)


TF32 = """
import sys, torch
from torch_utils.precision import allow_tf32
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
for on in (True, False, True):
    allow_tf32(on)
    states = {matmul.allow_tf32, cudnn.allow_tf32}
    if hasattr(matmul, "fp32_precision"):
        states |= {part.fp32_precision == "tf32" for part in (matmul, cudnn.conv, cudnn.rnn)}
    assert states == {on}, states
"""


def test_tf32_follows_the_switch_without_warnings():
    """In a separate process: the settings are global, and each warning comes once in a process."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", TF32], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class Names:
    """Stand-in for torch.backends of a version with only these names."""

    def __init__(self, **names):
        self.__dict__.update(names)


def test_tf32_by_the_names_of_older_versions(monkeypatch):
    backends = Names(cuda=Names(matmul=Names(allow_tf32=None)), cudnn=Names(allow_tf32=None))
    monkeypatch.setattr(precision.torch, "backends", backends)
    precision.allow_tf32(True)
    assert backends.cuda.matmul.allow_tf32 is backends.cudnn.allow_tf32 is True


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_gpu_that_only_emulates_bf16_is_refused(monkeypatch, has_bf16):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    if has_bf16:
        assert precision.run_dtype("bf16", CUDA) == torch.bfloat16
    else:
        with pytest.raises(UserError, match="--precision=bf16"):
            precision.run_dtype("bf16", CUDA)
