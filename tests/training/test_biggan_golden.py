# SPDX-License-Identifier: Apache-2.0
"""BigGAN against the golden numbers, in float64 (recipe: tests/golden/README.md)."""

import copy
import math

import numpy as np
import pytest
import torch

from dgl.loss_biggan import DGLBigGANLoss
from dgl.student import count_macs, count_params
from metrics.inception_score import inception_score
from tests import tolerances
from tests.support import golden_arrays, golden_json, rnd
from training import biggan_import, biggan_step, ema, loss_biggan, networks_biggan, standing_stats
from training.files.snapshot import save_snapshot
from training.sampling import truncated_z

SPEC = golden_json("biggan")
ARRAYS = golden_arrays("biggan")
F64 = torch.float64


def value(name: str, shape, prefix: str = "") -> torch.Tensor:
    """The recipe's value of a tensor with a name of the reference."""
    v = rnd(prefix + name, tuple(shape), F64)
    if name.endswith(".sv0"):
        return 1 + 0.1 * v
    if name.endswith(".u0"):
        return v
    if name.endswith(".stored_var"):
        return 0.5 + v.abs()
    if name.endswith((".stored_mean", ".gain.weight", ".bias.weight")):
        return 0.3 * v
    if name.endswith(".gamma"):
        return 0.7 + 0.1 * v
    if name == "output_layer.0.gain":
        return 0.5 + 0.1 * v
    return 0.1 * v if name.endswith(".bias") else v


def fill(net: torch.nn.Module, prefix: str = "", linear_bias: float | None = None) -> torch.nn.Module:
    net = net.double()
    names = biggan_import.reference_names(net)
    state = {names[own]: value(names[own], t.shape, prefix) for own, t in net.state_dict().items()}
    if linear_bias is not None:
        state["linear.bias"].fill_(linear_bias)
    biggan_import.load_state(net, state)
    return net


def one_hot(indices: list[int], c_dim: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(indices) % c_dim, c_dim).to(F64)


def labels(count: int, c_dim: int, first: int = 1) -> torch.Tensor:
    return one_hot([2 * i + first for i in range(count)], c_dim)


def images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(F64) / 127.5 - 1


def close(found: torch.Tensor, key: str, tolerance: float) -> None:
    expected = ARRAYS[key]
    found = found.detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-300), key


def image_close(img: torch.Tensor, key: str, tolerance: float = tolerances.BIGGAN["networks"]) -> None:
    step = img.shape[2] // 16
    close(img[:, :, step // 2 :: step, step // 2 :: step], key, tolerance)
    sums = torch.stack([img.sum(), img.square().sum(), (img * rnd("rsum", tuple(img.shape), F64)).sum()])
    close(sums, f"{key}.sums", tolerance)


def row(name: str, tensor: torch.Tensor) -> list[float]:
    return [tensor.norm().item(), (tensor * rnd(f"r/{name}", tuple(tensor.shape), F64)).sum().item()]


def rows_close(tensors: dict[str, torch.Tensor], names: list[str], key: str, tolerance: float) -> None:
    """Rows of (norm, random projection), relative to each norm but never below a millionth of the largest row."""
    assert sorted(tensors) == sorted(names)
    found, expected = np.array([row(name, tensors[name].detach()) for name in names]), ARRAYS[key]
    scale = np.maximum(expected[:, :1], 1e-6 * np.abs(expected).max())
    worst = np.abs(found - expected) / scale
    assert worst.max() <= tolerance, (key, names[worst.max(axis=1).argmax()], worst.max())


def grads(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in net.named_parameters()}


def buffers(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.named_buffers())


@pytest.mark.parametrize("name", SPEC["G"])
def test_generator(name):
    spec = SPEC["G"][name]
    G = networks_biggan.Generator(**spec["kwargs"])
    assert {key: list(t.shape) for key, t in G.state_dict().items()} == spec["state"]
    assert sum(p.numel() for p in G.parameters()) == spec["num_params"]
    G = fill(G).eval()
    z = rnd("z", (spec["batch"], G.z_dim), F64).requires_grad_()
    c = labels(spec["batch"], G.c_dim)
    with torch.no_grad():
        image_close(G(z, c), f"{name}.eval")
    img = G.train()(z, c)
    image_close(img, f"{name}.train")
    (img * rnd("ry", tuple(img.shape), F64)).sum().backward()
    close(z.grad, f"{name}.dz", tolerances.BIGGAN["grads"])
    rows_close(grads(G), spec["params"], f"{name}.grads", tolerances.BIGGAN["grads"])
    for own, tensor in buffers(G).items():
        close(tensor, f"{name}.buf/{own}", tolerances.BIGGAN["networks"])
    with torch.no_grad():
        image_close(G.eval()(z, c), f"{name}.eval_after")


@pytest.mark.parametrize("name", SPEC["D"])
def test_discriminator(name):
    spec = SPEC["D"][name]
    D = networks_biggan.Discriminator(**spec["kwargs"])
    assert {key: list(t.shape) for key, t in D.state_dict().items()} == spec["state"]
    assert sum(p.numel() for p in D.parameters()) == spec["num_params"]
    D = fill(D).eval()
    shape = (spec["batch"], D.img_channels, D.img_resolution, D.img_resolution)
    img = (rnd("img", shape, F64) * 0.5).requires_grad_()
    c = labels(spec["batch"], D.c_dim)
    logits = D(img, c)
    close(logits, f"{name}.eval", tolerances.BIGGAN["networks"])
    (dimg,) = torch.autograd.grad(logits.sum(), img)
    image_close(dimg, f"{name}.dimg", tolerances.BIGGAN["grads"])
    logits = D.train()(img, c)
    close(logits, f"{name}.train", tolerances.BIGGAN["networks"])
    (logits * rnd("ry", tuple(logits.shape), F64)).sum().backward()
    rows_close(grads(D), spec["params"], f"{name}.grads", tolerances.BIGGAN["grads"])
    for own, tensor in buffers(D).items():
        close(tensor, f"{name}.buf/{own}", tolerances.BIGGAN["networks"])
    with torch.no_grad():
        close(D.eval()(img, c), f"{name}.eval_after", tolerances.BIGGAN["networks"])


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu():
    nets = {"g32attn": networks_biggan.Generator, "d32": networks_biggan.Discriminator}
    for name, cls in nets.items():
        spec, results = SPEC["G" if name.startswith("g") else "D"][name], []
        for device in ("cpu", "cuda"):
            net = fill(cls(**spec["kwargs"])).to(device).train()
            x = rnd("z", (4, net.z_dim), F64) if name.startswith("g") else rnd("img", (4, 3, 32, 32), F64)
            net(x.to(device), labels(4, net.c_dim).to(device)).square().sum().backward()
            results.append([tensor.cpu() for tensor in (*grads(net).values(), *buffers(net).values())])
        for host, gpu in zip(*results):
            assert (host - gpu).norm() <= tolerances.BIGGAN["grads"] * max(host.norm(), 1)


def test_hinge():
    real, fake = (1.5 * rnd(key, (12, 1), F64) for key in ("hinge", "hinge2"))
    real.requires_grad_(), fake.requires_grad_()
    loss_real, loss_fake = loss_biggan.d_hinge_real(real).mean(), loss_biggan.d_hinge_fake(fake).mean()
    tolerance = tolerances.BIGGAN["networks"]
    for key, found in {"real": loss_real, "fake": loss_fake, "gen": loss_biggan.g_hinge(fake).mean()}.items():
        close(found, f"hinge.{key}", tolerance)
    for key, found in zip(("d_real", "d_fake"), torch.autograd.grad(loss_real + loss_fake, [real, fake])):
        close(found, f"hinge.{key}", tolerance)


LOSS = SPEC["loss"]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pkl"
    save_snapshot(path, {"D": networks_biggan.Discriminator(**LOSS["teacher"])})
    return path


@pytest.mark.parametrize("case", ["Dmain", "Gmain", "Gdgl"])
def test_phase(case, teacher_file):
    G = fill(networks_biggan.Generator(**LOSS["G"])).requires_grad_(False)
    D = fill(networks_biggan.Discriminator(**LOSS["D"]), linear_bias=LOSS["D_linear_bias"]).requires_grad_(False)
    trained = (D if case == "Dmain" else G).requires_grad_(True)
    if case == "Gdgl":
        loss = DGLBigGANLoss(
            torch.device("cpu"), G, D, teachers=[{"path": str(teacher_file)}], dgl_weight=LOSS["dgl_weight"]
        )
        teacher = fill(loss.teachers[0].D, prefix="T/")
        before = copy.deepcopy(teacher.state_dict())
    else:
        loss = loss_biggan.BigGANLoss(torch.device("cpu"), G, D)
    z, c = rnd("z", (LOSS["batch"], G.z_dim), F64), labels(LOSS["batch"], G.c_dim)
    seen = {"logits": [], "teacher_scores": [], "loss": []}
    D.register_forward_hook(lambda _m, _i, logits: seen["logits"].append(logits.detach()))
    if case == "Gdgl":
        teacher.register_forward_hook(lambda _m, _i, scores: seen["teacher_scores"].append(scores.detach()))
        loss.begin_iteration(0, True)
    phase = "Dmain" if case == "Dmain" else "Gmain"
    real = images(ARRAYS["loss.real"])
    loss.accumulate_gradients(phase, real, labels(len(real), G.c_dim, 2), z, c, sync=True, gain=LOSS["gain"])
    if case == "Dmain":
        close(seen["logits"][0], "Dmain.logits", tolerances.BIGGAN["networks"])
        fake, real_logits = seen["logits"][0].chunk(2)
        total = loss_biggan.d_hinge_fake(fake).mean() + loss_biggan.d_hinge_real(real_logits).mean()
    else:
        total = -seen["logits"][0].mean()
    if case == "Gdgl":
        close(seen["teacher_scores"][0], "Gdgl.teacher_scores", tolerances.BIGGAN["networks"])
        total = total - LOSS["dgl_weight"] * seen["teacher_scores"][0].mean()
        assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())
    close(total, f"{case}.loss", tolerances.BIGGAN["networks"])
    names = LOSS["D_params" if case == "Dmain" else "G_params"]
    rows_close(grads(trained), names, f"{case}.grads", tolerances.BIGGAN["grads"])
    for net, key in ((G, "G"), (D, "D")):
        rows_close(buffers(net), LOSS[f"{key}_buffers"], f"{case}.{key}_buf", tolerances.BIGGAN["networks"])


@pytest.mark.parametrize("case", SPEC["step"])
def test_iterations(case):
    spec = SPEC["step"][case]
    G = fill(networks_biggan.Generator(**spec["G"])).requires_grad_(False)
    D = fill(networks_biggan.Discriminator(**spec["D"]), linear_bias=spec["D_linear_bias"]).requires_grad_(False)
    G_ema = copy.deepcopy(G)
    start = {"G": copy.deepcopy(G.state_dict()), "D": copy.deepcopy(D.state_dict())}
    start["E"] = start["G"]
    G_opt, D_opt = (
        torch.optim.Adam(net.parameters(), lr=spec[f"{key}_lr"], betas=spec["betas"], eps=spec["eps"])
        for net, key in ((G, "g"), (D, "d"))
    )
    sizes = {key: spec[key] for key in ("batch", "d_steps", "d_accum", "g_accum", "g_ortho", "d_ortho")}
    shown = spec["d_steps"] * spec["d_accum"] * spec["batch"]
    chunks = spec["d_steps"] * spec["d_accum"] + spec["g_accum"]
    z = rnd("step.z", (spec["iterations"], chunks * spec["batch"], G.z_dim), F64)
    real = images(ARRAYS[f"step.{case}.real"])
    loss = loss_biggan.BigGANLoss(torch.device("cpu"), G, D)
    for t in range(spec["iterations"]):
        reals = real[t * shown : (t + 1) * shown]
        c = one_hot([2 * t + k for k in range(z.shape[1])], G.c_dim)
        real_c = one_hot([t + 2 * k for k in range(shown)], G.c_dim)
        biggan_step.run_iteration(loss, G, D, G_opt, D_opt, reals, real_c, z[t], c, **sizes)
        ema.lerp_state(G_ema, G, spec["ema_decay"] if t + 1 >= spec["ema_start"] else 0)
        for key, net in (("G", G), ("D", D), ("E", G_ema)):
            _steps_close(net, start[key], spec, key, f"step.{case}.{t + 1}.{key}")


def _steps_close(net, start, spec, key, name):
    """Changes of parameters relative to lr·√n, of buffers to ‖t‖."""
    state, lr = net.state_dict(), spec["d_lr" if key == "D" else "g_lr"]
    parameters = dict(net.named_parameters())
    names = spec["D_state" if key == "D" else "G_state"]
    assert sorted(state) == sorted(names)
    for own, expected in zip(names, ARRAYS[name]):
        change = state[own] - start[own]
        scale = lr * math.sqrt(change.numel()) if own in parameters else max(state[own].norm().item(), 1e-12)
        error = np.abs(np.array(row(own, change)) - expected).max() / scale
        assert error <= tolerances.BIGGAN["steps"], (name, own, error)


@pytest.mark.parametrize("key", [key for key in ARRAYS if key.startswith("ortho.")])
def test_orthogonal_gradient(key):
    shape = tuple(int(size) for size in key.removeprefix("ortho.").split("x"))
    close(loss_biggan.orthogonal_gradient(rnd("ortho", shape, F64)), key, tolerances.BIGGAN["exact"])


def test_moving_average():
    spec = SPEC["ema"]
    G = fill(networks_biggan.Generator(**spec["G"]))
    G_ema = fill(networks_biggan.Generator(**spec["G"]), prefix="E/")
    ema.lerp_state(G_ema, G, spec["decay"])
    rows_close(dict(G_ema.state_dict()), spec["names"], "ema", tolerances.BIGGAN["exact"])


def test_standing_statistics():
    spec = SPEC["standing"]
    G = fill(networks_biggan.Generator(**spec["G"]))
    z = rnd("standing.z", (spec["passes"], spec["batch"], G.z_dim), F64)
    c = [one_hot([k + j for k in range(spec["batch"])], 3) for j in range(spec["passes"])]
    standing_stats.accumulate(G, zip(z, c))
    assert not G.training
    for own, tensor in buffers(G).items():
        if own.endswith(("stored_mean", "stored_var")):
            close(tensor, f"standing.buf/{own}", tolerances.BIGGAN["networks"])
    with torch.no_grad():
        probe = rnd("z", (spec["batch"], G.z_dim), F64)
        image_close(G(probe, labels(spec["batch"], 3)), "standing.eval")


@pytest.mark.parametrize("spec", SPEC["counts"], ids=lambda spec: f"{spec['G']['img_resolution']}-ch{spec['G']['ch']}")
def test_counts(spec):
    with torch.device("meta"):
        G, D = networks_biggan.Generator(**spec["G"]), networks_biggan.Discriminator(**spec["D"])
    assert (count_params(G), count_params(D)) == (spec["G_params"], spec["D_params"])
    assert (count_macs(G), count_macs(D)) == (spec["G_macs"], spec["D_macs"])


def test_inception_score_over_splits():
    spec = SPEC["inception_score"]
    probs = np.exp(rnd("probs", tuple(spec["rows"]), F64).numpy())
    probs /= probs.sum(axis=1, keepdims=True)
    for splits in (10, 4):
        np.testing.assert_allclose(inception_score(probs, splits), spec[f"splits{splits}"], rtol=1e-9)


def test_truncated_z():
    spec = SPEC["truncated"]
    z = truncated_z(np.random.RandomState(spec["seed"]), tuple(spec["shape"]), spec["threshold"])
    np.testing.assert_allclose(z, ARRAYS["truncated"], rtol=0, atol=1e-12)
