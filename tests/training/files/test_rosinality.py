# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in rosinality's layout: golden outputs, round trips, and refusals in one sentence."""

import hashlib
import time

import pytest
import torch

from dnnlib.util import UserError
from tests import tolerances
from tests.compat import canary
from tests.support import golden_arrays, rnd
from tests.training.files import rosinality_checkpoint as checkpoint
from training.files import rosinality
from training.files.snapshot import load_snapshot, save_snapshot
from training.networks import Discriminator, Generator

ARRAYS = golden_arrays("rosinality")


@pytest.fixture
def notices(capsys):
    """Lines on stderr since the last call, also those that this process has printed before."""
    rosinality._announce.cache_clear()
    return lambda: capsys.readouterr().err.splitlines()


def close(found: torch.Tensor, name: str) -> bool:
    expected = torch.as_tensor(ARRAYS[name])
    return torch.allclose(found, expected, rtol=0, atol=tolerances.GOLDEN_NETWORKS * float(expected.abs().max()))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def tiny(**changes) -> dict[str, torch.nn.Module]:
    """G, D and G_ema of 16x16; `changes` of G_kwargs, synthesis_kwargs, mapping_kwargs, D_kwargs."""
    widths = {"channel_base": 100, "channel_max": 8}
    shape = {"c_dim": 0, "img_resolution": 16, "img_channels": 3}
    G_kwargs = {**shape, "z_dim": 8, "w_dim": 8, **changes.get("G_kwargs", {})}
    mapping, synthesis = changes.get("mapping_kwargs", {}), {**widths, **changes.get("synthesis_kwargs", {})}
    mapping = {"num_layers": 2, **mapping}
    G, G_ema = (Generator(**G_kwargs, mapping_kwargs=mapping, synthesis_kwargs=synthesis) for _ in range(2))
    if hasattr(G.mapping, "w_avg"):
        G.mapping.w_avg.copy_(rnd("w_avg", (8,)))
        G_ema.mapping.w_avg.copy_(G.mapping.w_avg)
    D = Discriminator(**{**shape, **widths, **changes.get("D_kwargs", {})})
    return {key: net.eval().requires_grad_(False) for key, net in {"G": G, "D": D, "G_ema": G_ema}.items()}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", checkpoint.CASES)
def test_outputs_are_the_golden_ones(tmp_path, notices, case, zipped):
    path = checkpoint.save(tmp_path / "x.pt", checkpoint.converted(case), zipped)
    snap = load_snapshot(path)
    assert list(snap) == ["G", "D", "G_ema"] and snap.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    size, z, c = checkpoint.CASES[case]["size"], rnd("z", (4, 64)), torch.zeros(4, 0)
    for key in ("G", "G_ema"):
        G = snap[key]
        assert not G.training and torch.equal(G.mapping.w_avg, checkpoint.latent_avg())
        assert close(G.mapping(z, c)[:, 0], f"{case}.w")
        assert close(G(z, c, noise_mode="const"), f"{case}.img")
        assert close(G(z, c, truncation_psi=0.7, noise_mode="const"), f"{case}.img_trunc")
    assert close(snap["D"](rnd("img", (4, 3, size, size)) * 0.5, c), f"{case}.logits")
    assert notices() == []


def test_recorded_arguments_are_those_of_the_shapes(tmp_path):
    snap = load_snapshot(checkpoint.save(tmp_path / "x.pt", checkpoint.converted("r32")))
    assert snap["G"].init_kwargs == {
        "z_dim": 64,
        "c_dim": 0,
        "w_dim": 64,
        "img_resolution": 32,
        "img_channels": 3,
        "mapping_kwargs": {"num_layers": 4},
        "synthesis_kwargs": {"channel_base": 256, "channel_max": 24},
    }
    widths = {"channel_base": 256, "channel_max": 24}
    assert snap["D"].init_kwargs == {"c_dim": 0, "img_resolution": 32, "img_channels": 3, **widths}


def test_published_widths_give_the_published_base():
    for multiplier, base in ((2, 32768), (1, 16384)):
        for most in (8, 9, 10):
            widths = {2**n: 512 if n <= 5 else (512 * multiplier) >> (n - 5) for n in range(2, most + 1)}
            tensors = {f"synthesis.b{r}.conv1.weight": torch.empty(w, 0, 3, 3) for r, w in widths.items()}
            expected = {"channel_base": base, "channel_max": 512}
            assert rosinality._width_arguments(tensors, halving=False) == expected
    tensors = {f"synthesis.b{2**n}.conv1.weight": torch.empty(512, 0, 3, 3) for n in range(2, 6)}
    assert rosinality._width_arguments(tensors, halving=False)["channel_base"] == 32768, "of 32x32, where 512 is all"


@pytest.mark.parametrize("zipped", [False, True])
def test_checkpoints_of_training(tmp_path, notices, zipped):
    """Flags and optimizers are skipped; the mean w is estimated, and a line says so."""
    content = checkpoint.from_training("r16")
    path = checkpoint.save(tmp_path / "x.pt", content, zipped)
    snap = load_snapshot(path)
    assert list(snap) == ["G", "D", "G_ema"] and notices() == []
    w_avg = snap["G_ema"].mapping.w_avg
    expected = f"Notice: G_ema in {path}: the file has no latent_avg: estimated from 10,000 z with seed 0."
    assert notices() == [expected]
    z = torch.randn([10_000, 64], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(w_avg, snap["G_ema"].mapping(z, None)[:, 0].mean(dim=0), rtol=0, atol=1e-4)
    assert torch.equal(load_snapshot(path)["G"].mapping.w_avg, w_avg)


def test_without_an_average_g_stands_for_it(tmp_path):
    content = checkpoint.converted("r16")
    del content["g_ema"], content["d"]
    snap = load_snapshot(checkpoint.save(tmp_path / "x.pt", content))
    assert list(snap) == ["G", "G_ema"]
    assert same(snap["G"].state_dict(), snap["G_ema"].state_dict()) and snap["G"] is not snap["G_ema"]


def test_parts_of_a_checkpoint(tmp_path):
    only_ema = {"g_ema": checkpoint.state("r16", "G"), "latent_avg": checkpoint.latent_avg()[None], "g": None}
    snap = load_snapshot(checkpoint.save(tmp_path / "x.pt", only_ema))
    assert list(snap) == ["G_ema"] and torch.equal(snap["G_ema"].mapping.w_avg, checkpoint.latent_avg())
    with pytest.raises(UserError, match=r"x\.pt holds no G; it has G_ema"):
        snap["G"]
    assert list(load_snapshot(checkpoint.save(tmp_path / "d.pt", {"d": checkpoint.state("r16", "D")}))) == ["D"]


def test_older_files_without_noise_maps_or_kernels(tmp_path, notices):
    content = checkpoint.converted("r16")
    content["g_ema"] = {
        name: tensor for name, tensor in content["g_ema"].items() if "kernel" not in name and "noises" not in name
    }
    path = checkpoint.save(tmp_path / "x.pt", content)
    G = load_snapshot(path)["G_ema"]
    assert notices() == [f"Notice: G_ema in {path}: the file lacks noise maps: drawn with seed 0."]
    maps = [tensor for name, tensor in G.named_buffers() if name.endswith("noise_const")]
    assert len(maps) == 5 and all(0.5 < float(noise.std()) < 1.5 for noise in maps)
    assert same(load_snapshot(path)["G_ema"].state_dict(), G.state_dict())
    images = [net(rnd("z", (2, 64)), None, noise_mode="none") for net in (G, load_snapshot(path)["G"])]
    assert torch.equal(*images)


def test_half_precision(tmp_path):
    content = checkpoint.converted("r16")
    content["d"] = {name: tensor.half() for name, tensor in content["d"].items()}
    D = load_snapshot(checkpoint.save(tmp_path / "x.pt", content))["D"]
    assert torch.equal(D.b4.out.weight, content["d"]["final_linear.1.weight"].float())


@pytest.mark.parametrize("case", checkpoint.CASES)
def test_their_names_come_back(tmp_path, case):
    """From their layout to a pickle and back: the same names, shapes and values, also of the filters."""
    content = checkpoint.converted(case)
    save_snapshot(tmp_path / "x.pkl", dict(load_snapshot(checkpoint.save(tmp_path / "x.pt", content))))
    assert rosinality.write(tmp_path / "y.pt", dict(load_snapshot(tmp_path / "x.pkl")), "x.pkl") == []
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    assert found.keys() == content.keys() and torch.equal(found["latent_avg"], content["latent_avg"])
    assert all(same(found[key], content[key]) for key in ("g", "d", "g_ema"))


def test_our_networks_come_back(tmp_path):
    """Widths that are no power of two, from a base that no resolution divides."""
    networks = tiny()
    assert rosinality.write(tmp_path / "x.pt", networks, "x.pkl") == []
    snap = load_snapshot(tmp_path / "x.pt")
    assert all(same(snap[key].state_dict(), network.state_dict()) for key, network in networks.items())
    z = rnd("z", (4, 8))
    assert torch.equal(snap["G"](z, None, noise_mode="const"), networks["G"](z, None, noise_mode="const"))


def test_what_the_layout_does_not_record(tmp_path):
    clamped = {"conv_clamp": 256, "num_fp16_res": 4}
    networks = tiny(synthesis_kwargs=clamped, D_kwargs={"epilogue_kwargs": {"mbstd_group_size": 8}})
    networks["G"].mapping.w_avg.zero_()
    lost = rosinality.write(tmp_path / "x.pt", networks, "x.pkl")
    assert lost == ["conv_clamp=256", "half precision", "mbstd_group_size=8", "the mean w of G"]
    assert torch.equal(load_snapshot(tmp_path / "x.pt")["G"].mapping.w_avg, networks["G_ema"].mapping.w_avg)


UNWRITABLE = {
    "it has labels": {"G_kwargs": {"c_dim": 3}},
    "its images are not RGB": {"D_kwargs": {"img_channels": 1}},
    r"its filters are not \[1, 3, 3, 1\]": {"synthesis_kwargs": {"resample_filter": [1, 2, 1]}},
    "its architecture is another": {"D_kwargs": {"architecture": "skip"}},
    "its activations are not lrelu": {"synthesis_kwargs": {"activation": "relu"}},
    "z and w differ in size": {"G_kwargs": {"z_dim": 4}},
    "layers of another kind": {"mapping_kwargs": {"lr_multiplier": 0.1}},
    "it has no noise": {"synthesis_kwargs": {"use_noise": False}},
    "no minibatch-stddev channel": {"D_kwargs": {"epilogue_kwargs": {"mbstd_num_channels": 0}}},
}


@pytest.mark.parametrize("reason", UNWRITABLE)
def test_networks_that_do_not_fit_are_not_written(tmp_path, reason):
    with pytest.raises(UserError, match=rf"^[GD] in x\.pkl cannot be written .*: .*{reason}"):
        rosinality.write(tmp_path / "x.pt", tiny(**UNWRITABLE[reason]), "x.pkl")
    assert list(tmp_path.iterdir()) == []


REFUSED = {  # key in the file, changes of its tensors, and the message
    "pruned": (
        "g_ema",
        {"conv1.conv.weight": torch.zeros(1, 20, 24, 3, 3)},
        r"has 20 at 4x4, 24 at 8x8, 16 at 16x16 channels, .* pruned to free widths",
    ),
    "pruned inside a block": ("g_ema", {"convs.2.conv.weight": torch.zeros(1, 12, 24, 3, 3)}, "12/16 at 16x16"),
    "D pruned": ("d", {"convs.2.conv1.0.weight": torch.zeros(20, 24, 3, 3)}, "24 at 4x4, 20/24 at 8x8"),
    "another filter": ("g_ema", {"convs.0.conv.blur.kernel": torch.ones(4, 4) / 4}, r"blur.kernel .* \[1, 3, 3, 1\]"),
    "a filter of another gain": ("d", {"convs.1.skip.0.kernel": checkpoint.kernel(4)}, "skip.0.kernel that is not"),
    "a filter of NaN": ("d", {"convs.1.skip.0.kernel": torch.full((4, 4), torch.nan)}, "skip.0.kernel that is not"),
    "a smaller filter": ("g_ema", {"to_rgbs.0.upsample.kernel": torch.ones(3, 3)}, "upsample.kernel that is not"),
    "grey": ("g_ema", {"to_rgb1.bias": torch.zeros(1, 1, 1, 1)}, "images of 1 channels, where only RGB"),
    "D grey": ("d", {"convs.0.0.weight": torch.zeros(16, 1, 1, 1)}, "images of 1 channels, where only RGB"),
    "unknown": ("g_ema", {"extra\x1b[2J": torch.zeros(1)}, r"has unknown tensors: extra\\x1b"),
    "missing": ("d", {"final_conv.0.weight": None}, r"lacks tensors of a StyleGAN2: final_conv\.0\.weight"),
    "no tensors by name": ("g_ema", {"style.1.weight": 3}, r"style\.1\.weight is of type int"),
    "numbers as names": ("g_ema", {1: torch.zeros(2)}, "does not hold tensors only: <int>"),
    "other axes": (
        "g_ema",
        {"input.input": torch.zeros(2, 24, 4, 4)},
        r"has input\.input of the shape \[2, 24, 4, 4\]",
    ),
    "a scalar": ("g_ema", {"conv1.conv.weight": torch.zeros([])}, r"has conv1\.conv\.weight of the shape \[\]"),
    "z of another size": ("g_ema", {"style.1.weight": torch.zeros(64, 32)}, r"has style\.1 of another size than w"),
    "a wrong shape": ("d", {"final_linear.1.bias": torch.zeros(2)}, r"b4\.out\.bias is \[2\] there"),
    "complex": ("d", {"final_linear.1.bias": torch.zeros(1, dtype=torch.complex64)}, r"b4\.out\.bias is complex"),
    "too many layers": ("g_ema", {f"style.{i}.weight": torch.zeros(1) for i in range(9, 30)}, "has more than 16 parts"),
    "too many blocks": ("g_ema", {f"to_rgbs.{i}.bias": torch.zeros(1) for i in range(30)}, "has more than 10 parts"),
    "nothing": ("d", dict.fromkeys(checkpoint.CASES["r16"]["D"]), r"lacks tensors .*: convs\.0\.0\.weight, .*"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_in_one_sentence(tmp_path, name, zipped):
    key, changes, reason = REFUSED[name]
    content = checkpoint.converted("r16")
    state = {**content[key], **changes}
    content[key] = {name: tensor for name, tensor in state.items() if tensor is not None}
    path = checkpoint.save(tmp_path / "x.pt", content, zipped)
    with canary.at_most(1 << 29), pytest.raises(UserError, match=reason) as caught:
        load_snapshot(path)[{"g_ema": "G_ema", "d": "D"}[key]]
    sentence = str(caught.value)
    assert not canary.ran_out(caught.value)
    assert sentence.startswith(f"{'D' if key == 'd' else 'G_ema'} ") and str(path) in sentence
    assert len(sentence) < 3000 and sentence.isprintable()


def test_other_mean_w(tmp_path):
    for mean in (torch.zeros(63), 3, "text", [0.0] * 64):
        content = {**checkpoint.converted("r16"), "latent_avg": mean}
        with pytest.raises(UserError, match="has w of 64 numbers, which latent_avg is not"):
            load_snapshot(checkpoint.save(tmp_path / "x.pt", content))


def test_small_files_cannot_ask_for_large_networks(tmp_path):
    """Tensors that show one element everywhere, so the file stays small."""
    one, state = torch.zeros([1]), checkpoint.state("r16", "G")
    wide = {name: one.expand(len(tensor), 1024) for name, tensor in state.items() if "modulation.w" in name}
    wide |= {f"style.{i}.weight": one.expand(1024, 1024) for i in range(1, 9)}
    wide |= {f"style.{i}.bias": one.expand(1024) for i in range(1, 9)}
    content = {"g": {**state, **wide}}
    high = {name: one.expand(1 << 9, 1 << 9) for name in checkpoint.CASES["r16"]["D"]}
    for number, changed in enumerate((content, {"d": high})):
        path = checkpoint.save(tmp_path / f"{number}.pt", changed)
        assert path.stat().st_size < 1 << 20
        started = time.process_time()
        with canary.at_most(1 << 29), pytest.raises(UserError) as caught:
            load_snapshot(path)["D" if "d" in changed else "G"]
        assert not canary.ran_out(caught.value) and time.process_time() - started < 2
