# SPDX-License-Identifier: Apache-2.0
"""Which precision a run gets, by flag and device."""

import subprocess
import sys

import pytest
import torch

from dnnlib.util import UserError
from tests.support import ROOT
from torch_utils import precision
from training.networks import Discriminator, Generator
from training.options import PRECISIONS

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.mark.parametrize("flags", ["fpu avx2 avx512f amx_bf16 amx_tile", "fpu avx512_bf16"])
def test_a_processor_with_bf16_instructions_is_recognised(tmp_path, flags):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert precision.cpu_has_fast_bf16(str(cpuinfo))


@pytest.mark.parametrize("text", ["flags\t: fpu avx512f avx512_vnni\n", "model name\t: amx_bf16\n", "", None])
def test_a_processor_without_them_or_that_does_not_say_is_not(tmp_path, text):
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert not precision.cpu_has_fast_bf16(str(cpuinfo))


@pytest.mark.parametrize("fast", [False, True])
def test_auto_on_the_cpu_follows_the_processor(monkeypatch, fast):
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: fast)
    assert precision.forward_kwargs("auto", CPU) == ({"half_dtype": torch.bfloat16} if fast else {})


def test_named_precisions():
    assert precision.forward_kwargs("fp32", CPU) == precision.forward_kwargs("fp32", CUDA) == {"force_fp32": True}
    assert precision.forward_kwargs("bf16", CPU) == {"half_dtype": torch.bfloat16}
    assert precision.forward_kwargs("fp16", CUDA) == precision.forward_kwargs("auto", CUDA) == {}


@pytest.mark.parametrize(("name", "device"), [("fp16", CPU), ("fp16", MPS), ("bf16", MPS), ("half", CPU)])
def test_what_a_device_cannot_do_is_refused_in_one_sentence(name, device):
    with pytest.raises(UserError, match="--precision") as err:
        precision.forward_kwargs(name, device)
    assert "\n" not in str(err.value)


def test_the_flag_offers_what_there_is():
    assert PRECISIONS == precision.PRECISIONS


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("fp32", CUDA, "fp32"),
        ("auto", MPS, "fp32"),
        ("bf16", CPU, "bf16 (lower resolutions in fp32)"),
        ("fp16", CUDA, "fp16 (lower resolutions in fp32)"),
    ],
)
def test_description(name, device, words):
    G, D = networks()
    kwargs = precision.forward_kwargs(name, device)
    assert precision.describe([G, D], kwargs, device) == words


def test_description_of_networks_without_half_precision():
    D = Discriminator(0, 16, 3, channel_base=64, channel_max=8)
    kwargs = {"half_dtype": torch.bfloat16}
    assert precision.describe([D], kwargs, CPU).startswith("fp32 (these networks")


def networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(7)
    shared = {"channel_base": 512, "channel_max": 32, "num_fp16_res": 2, "conv_clamp": 256}
    G = Generator(16, 0, 16, 32, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=shared)
    return G.eval(), Discriminator(0, 32, 3, **shared).eval()


def test_bf16_is_in_the_highest_resolutions_only_and_leaves_no_trace():
    G, D = networks()
    dtypes = {}

    def note(module, _inputs, out):
        dtypes[names[module]] = out.dtype

    names = {getattr(G.synthesis, f"b{res}").conv1: ("G", res) for res in (8, 16, 32)}
    names |= {getattr(D, f"b{res}").conv1: ("D", res) for res in (8, 16, 32)}
    for module in names:
        module.register_forward_hook(note)
    before = {name: value.clone() for net in (G, D) for name, value in net.state_dict().items()}
    img = G(torch.randn(4, 16), None, half_dtype=torch.bfloat16, noise_mode="const")
    logits = D(img, None, half_dtype=torch.bfloat16)
    assert img.dtype == logits.dtype == torch.float32
    in_bf16 = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert in_bf16 == {(net, res) for net in "GD" for res in (16, 32)} and len(dtypes) == 6
    after = {name: value for net in (G, D) for name, value in net.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert not any("half" in name for net in (G, D) for module in net.modules() for name in vars(module))


def test_force_fp32_overrules_a_half_type():
    G, D = networks()
    z = torch.randn(2, 16)
    plain = G(z, None, noise_mode="const")
    assert torch.equal(plain, G(z, None, noise_mode="const", half_dtype=torch.bfloat16, force_fp32=True))
    assert not torch.equal(plain, G(z, None, noise_mode="const", half_dtype=torch.bfloat16))
    assert torch.equal(D(plain, None), D(plain, None, half_dtype=torch.bfloat16, force_fp32=True))


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
    """In a process of its own, for the settings are global, and warnings there come once."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", TF32], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class Names:
    """Stands for torch.backends of a version that has only these names."""

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
        assert precision.forward_kwargs("bf16", CUDA) == {"half_dtype": torch.bfloat16}
    else:
        with pytest.raises(UserError, match="--precision=bf16"):
            precision.forward_kwargs("bf16", CUDA)
