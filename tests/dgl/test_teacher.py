# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
import pathlib
import pickle

import pytest
import torch

from dgl.loss import DGLLoss
from dgl.teacher import Teacher, check_teacher, open_teacher
from dnnlib.util import UserError
from tests.dgl import foreign, foreign_plain
from tests.dgl.tiny import BATCH, C_DIM, CHANNELS, RESOLUTION, Z_DIM, Student, make_D, make_G, same, save_teacher
from tests.metrics import stand_ins
from tests.support import rnd
from tests.training import other_projects
from torch_utils import persistence, precision
from training.files.snapshot import save_snapshot
from training.loss import Fakes
from training.networks_biggan import BigGANDiscriminator

IMG, C = rnd("img", (BATCH, CHANNELS, RESOLUTION, RESOLUTION)), torch.eye(C_DIM)[[0, 1, 2, 0]]
FITS = {"resolution": RESOLUTION, "channels": CHANNELS, "c_dim": C_DIM, "batch_gpu": BATCH}


@persistence.persistent_class
class AlienGenerator(torch.nn.Module):
    """A class that the project cannot rebuild."""

    def __init__(self, secret):
        super().__init__()
        self.layer = torch.nn.Parameter(torch.zeros(3))


class Evil:
    def __reduce__(self):
        return print, ("code from the pickle ran",)


def sentence(error: pytest.ExceptionInfo) -> str:
    """The one sentence a user reads."""
    text = str(error.value)
    assert "\n" not in text and text.startswith("--dgl-teacher")
    return text


# Opening


def test_a_teacher_is_the_d_of_the_pickle_frozen(tmp_path):
    path = save_teacher(tmp_path, 7)
    teacher = open_teacher(path)
    expected = make_D(7, channel_base=128, channel_max=16)
    assert same(dict(teacher.D.state_dict()), dict(expected.state_dict()))
    assert not teacher.D.training and not any(p.requires_grad for p in teacher.D.parameters())
    assert teacher.path == path
    assert teacher.sha256 == hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def test_gradients_reach_the_images(tmp_path):
    img = IMG.clone().requires_grad_(True)
    open_teacher(save_teacher(tmp_path)).scores(img, C).sum().backward()
    assert img.grad.abs().sum() > 0


def test_opening_draws_no_random_numbers(tmp_path):
    path = save_teacher(tmp_path)
    before = torch.get_rng_state()
    teacher = open_teacher(path)
    assert teacher.G is not None
    teacher.match_precision(make_D(2, num_fp16_res=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_is_there_for_the_size_table(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path, 7))
    assert same(dict(teacher.G.state_dict()), dict(make_G(7, channel_base=128, channel_max=16).state_dict()))


@pytest.mark.parametrize("G", [{}, {"G": None, "G_ema": None}, {"G": AlienGenerator(1), "G_ema": AlienGenerator(2)}])
def test_a_pickle_without_a_usable_generator_can_still_guide(tmp_path, G):
    path = str(tmp_path / "d-only.pkl")
    save_snapshot(path, {"D": make_D(7), "augment_pipe": None, "training_set_kwargs": {}, **G})
    teacher = open_teacher(path)
    assert teacher.G is None
    assert same(dict(teacher.D.state_dict()), dict(make_D(7).state_dict()))
    Student([path]).train(steps=1)


def test_trusting_opens_the_same_teacher(tmp_path):
    path = save_teacher(tmp_path)
    assert same(dict(open_teacher(path, trust=True).D.state_dict()), dict(open_teacher(path).D.state_dict()))


# Its generator


def fakes(num_ws: int = 6) -> Fakes:
    return Fakes(rnd("z", (BATCH, Z_DIM)), C, rnd("ws", (BATCH, num_ws, Z_DIM)), IMG)


def test_matching_images_come_from_the_students_ws(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path, 7))
    G, batch = make_G(7, channel_base=128, channel_max=16).eval(), fakes()
    img = teacher.matching_images(batch)
    torch.testing.assert_close(img, G.synthesis(batch.ws, noise_mode="const"))
    own = teacher.matching_images(batch, share_ws=False)
    torch.testing.assert_close(own, G(batch.z, batch.c, noise_mode="const"))
    assert not torch.allclose(own, img)


@pytest.mark.parametrize("batch", [fakes(num_ws=8), dataclasses.replace(fakes(), ws=None)], ids=["other ws", "no ws"])
def test_matching_images_come_from_z_and_c_where_ws_do_not_fit(tmp_path, batch):
    teacher = open_teacher(save_teacher(tmp_path, 7))
    assert torch.equal(teacher.matching_images(batch), teacher.matching_images(fakes(), share_ws=False))


def test_matching_images_draw_nothing_and_have_no_graph(tmp_path):
    teacher, batch = open_teacher(save_teacher(tmp_path, 7)), fakes()
    batch.ws.requires_grad_(True)
    before = torch.get_rng_state()
    assert not teacher.matching_images(batch).requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_matching_images_of_a_generator_without_w(tmp_path):
    """Those of the average in eval mode; neither they nor the scores move its statistics or singular vectors."""
    G = stand_ins.tiny_biggan(c_dim=C_DIM)
    D = BigGANDiscriminator(C_DIM, 32, CHANNELS, ch=2).train()
    save_snapshot(
        tmp_path / "biggan.pkl", {"G": stand_ins.tiny_biggan(c_dim=C_DIM, seed=1), "D": D, "G_ema": G.train()}
    )
    teacher = open_teacher(str(tmp_path / "biggan.pkl"))
    before = [tensor.clone() for net in (teacher.G, teacher.D) for tensor in net.state_dict().values()]
    batch = Fakes(rnd("z", (BATCH, G.z_dim)), C, None, None)
    images = teacher.matching_images(batch)
    torch.testing.assert_close(images, G.eval()(batch.z, batch.c))
    torch.testing.assert_close(teacher.scores(images, C), D.eval()(images, C))
    after = [tensor for net in (teacher.G, teacher.D) for tensor in net.state_dict().values()]
    assert all(map(torch.equal, after, before)) and not images.requires_grad


def test_matching_images_need_a_generator(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path))
    teacher.without_G()
    with pytest.raises(UserError) as error:
        teacher.matching_images(fakes())
    assert "teacher.pkl holds no generator" in sentence(error)


def test_a_teacher_without_its_generator_scores_as_before(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path))
    batch = fakes()
    assert teacher.G is not None
    scores = teacher.scores(batch.img, batch.c)
    assert teacher.without_G() is teacher and teacher.G is None
    assert torch.equal(teacher.scores(batch.img, batch.c), scores)


# Refusals on opening


def test_missing_file(tmp_path):
    with pytest.raises(UserError) as error:
        open_teacher(str(tmp_path / "nowhere.pkl"))
    assert "nowhere.pkl" in sentence(error)


@pytest.mark.parametrize("content", [b"", b"\x89PNG not a pickle", pickle.dumps([1, 2, 3]), pickle.dumps({"a": 1})])
def test_not_a_network_pickle(tmp_path, content):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_teacher(str(path))
    assert "other.bin" in sentence(error)


def test_unsafe_pickle(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"D": Evil(), "G": None, "G_ema": None}))
    with pytest.raises(UserError) as error:
        open_teacher(str(path))
    assert "--trust-pickle" in sentence(error)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("D", [{}, {"D": None}])
def test_no_discriminator(tmp_path, D):
    path = str(tmp_path / "g-only.pkl")
    save_snapshot(path, {"G": make_G(1), "G_ema": make_G(1), "augment_pipe": None, "training_set_kwargs": {}, **D})
    with pytest.raises(UserError) as error:
        open_teacher(path)
    assert "g-only.pkl" in sentence(error) and "discriminator" in sentence(error)


def test_a_d_that_is_not_a_discriminator(tmp_path):
    path = str(tmp_path / "mixed-up.pkl")
    save_snapshot(path, {"D": make_G(1)})
    with pytest.raises(UserError) as error:
        open_teacher(path)
    assert "mixed-up.pkl is a Generator" in sentence(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights(tmp_path, value):
    D = make_D(1)
    D.b8.conv0.weight[0, 0, 0, 0] = value
    path = str(tmp_path / "broken.pkl")
    save_snapshot(path, {"D": D})
    with pytest.raises(UserError) as error:
        open_teacher(path)
    assert "b8.conv0.weight" in sentence(error)


def test_a_file_that_changed_since_the_run_was_set_up(tmp_path):
    path = save_teacher(tmp_path, 1)
    sha256 = open_teacher(path).sha256
    student = Student()
    modules = (torch.device("cpu"), student.G.mapping, student.G.synthesis, student.D)
    DGLLoss(*modules, teachers=[{"path": path, "sha256": sha256}])
    save_teacher(tmp_path, 2)
    with pytest.raises(UserError) as error:
        DGLLoss(*modules, teachers=[{"path": path, "sha256": sha256}])
    assert "changed" in sentence(error) and sha256 in sentence(error)


# Fit to the run


def test_a_fitting_teacher_passes(tmp_path):
    check_teacher(open_teacher(save_teacher(tmp_path)), **FITS)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"resolution": 32}, ["16x16", "32x32", "--data"]),
        ({"channels": 1}, ["3 channels", "images of 1", "--data"]),
        ({"c_dim": 0}, ["3 dimensions", "has 0", "--cond=1"]),
        ({"c_dim": 10}, ["3 dimensions", "has 10"]),
        ({"batch_gpu": 6}, ["groups of 4", "takes 6", "--batch"]),
        ({"batch_gpu": 2}, ["groups of 4", "takes 2", "--batch"]),
    ],
)
def test_a_teacher_that_does_not_fit(tmp_path, change, words):
    path = save_teacher(tmp_path)
    with pytest.raises(UserError) as error:
        check_teacher(open_teacher(path), **{**FITS, **change})
    assert all(word in sentence(error) for word in [*words, path])


def test_an_unconditional_teacher_of_a_conditional_run(tmp_path):
    with pytest.raises(UserError) as error:
        check_teacher(open_teacher(save_teacher(tmp_path, c_dim=0)), **FITS)
    assert "--cond=0" in sentence(error)


@pytest.mark.parametrize(
    "epilogue_kwargs, group, allowed, refused",
    [
        ({}, 4, [4, 8], [1, 6]),
        ({"mbstd_group_size": 2}, 2, [2, 4, 6], [1, 3]),
        ({"mbstd_group_size": None}, None, [1, 3, 4], []),
        ({"mbstd_num_channels": 0}, None, [1, 3, 4], []),
    ],
)
def test_batches_fill_the_teachers_groups(tmp_path, epilogue_kwargs, group, allowed, refused):
    teacher = open_teacher(save_teacher(tmp_path, epilogue_kwargs=epilogue_kwargs))
    assert teacher.group_size == group
    for batch_gpu in allowed:
        check_teacher(teacher, **{**FITS, "batch_gpu": batch_gpu})
    for batch_gpu in refused:
        with pytest.raises(UserError):
            check_teacher(teacher, **{**FITS, "batch_gpu": batch_gpu})


# Precision


@pytest.mark.parametrize(
    "teacher_precision, run_precision, expected",
    [
        ({"num_fp16_res": 2, "conv_clamp": 256}, {}, {"num_fp16_res": 0, "conv_clamp": 256}),
        ({}, {"num_fp16_res": 1, "conv_clamp": 128}, {"num_fp16_res": 1, "conv_clamp": 128}),
        ({"conv_clamp": 64}, {"num_fp16_res": 1, "conv_clamp": 128}, {"num_fp16_res": 1, "conv_clamp": 64}),
        ({"num_fp16_res": 2}, {"num_fp16_res": 2, "conv_clamp": 256}, {"num_fp16_res": 2}),
    ],
)
def test_the_teacher_runs_in_the_precision_of_the_run(tmp_path, teacher_precision, run_precision, expected):
    path = save_teacher(tmp_path, 7, **teacher_precision)
    teacher = Student([path], D_overrides=run_precision).loss.teachers[0]
    kept = {name: value for name, value in teacher.D.init_kwargs.items() if name in ("num_fp16_res", "conv_clamp")}
    assert kept == expected
    assert same(dict(teacher.D.state_dict()), dict(make_D(7, channel_base=128, channel_max=16).state_dict()))
    assert not teacher.D.training and not any(p.requires_grad for p in teacher.D.parameters())


def test_a_loss_keeps_only_the_discriminator(tmp_path):
    assert Student([save_teacher(tmp_path)]).loss.teachers[0].G is None


def dtypes_seen(layer: torch.nn.Module, call) -> set:
    """Types of the outputs of `layer` during `call`."""
    seen = set()
    hook = layer.register_forward_hook(lambda _module, _inputs, out: seen.add(out.dtype))
    call()
    hook.remove()
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_teacher_runs_in_the_type_of_the_run(tmp_path, dtype):
    run_precision = {"num_fp16_res": 1, "conv_clamp": 256}
    student = Student([save_teacher(tmp_path)], D_overrides=run_precision, half_dtype=dtype)
    (teacher,) = student.loss.teachers
    for D in (teacher.D, student.D):
        assert dtypes_seen(D.b16.conv1, lambda: student.gradients("Gmain")) == {dtype}
    assert all(p.grad is None and p.dtype == torch.float32 for p in teacher.D.parameters())


def trusted_teacher(folder: pathlib.Path, D: torch.nn.Module) -> Teacher:
    save_snapshot(str(folder / "foreign.pkl"), {"D": D})
    return open_teacher(str(folder / "foreign.pkl"), trust=True)


@pytest.mark.parametrize(
    ("run", "own", "said"),
    [
        (torch.bfloat16, torch.float32, True),
        (torch.float32, torch.float32, False),
        (torch.float16, torch.float16, False),
        (None, torch.float32, False),
    ],
)
@pytest.mark.parametrize("num_fp16_res", [0, 2])
def test_a_class_that_supports_fp16_only_runs_in_fp32_elsewhere(tmp_path, capsys, run, own, said, num_fp16_res):
    D = foreign.Discriminator(C_DIM, RESOLUTION, CHANNELS, num_fp16_res=num_fp16_res)
    teacher, student_D = trusted_teacher(tmp_path, D), make_D(2, num_fp16_res=2)
    precision.set_half_dtype(student_D, run)
    teacher.match_precision(student_D)
    assert dtypes_seen(teacher.D.features, lambda: teacher.scores(IMG, C)) == {own}
    assert torch.equal(teacher.D.weight, D.weight)
    assert ("foreign.pkl runs in fp32" in capsys.readouterr().out) == said


@pytest.mark.parametrize("run", [torch.bfloat16, torch.float32, torch.float16])
def test_a_class_without_half_precision_is_left_alone(tmp_path, run):
    teacher = trusted_teacher(tmp_path, foreign_plain.Discriminator(C_DIM, RESOLUTION, CHANNELS))
    D, student_D = teacher.D, make_D(2, num_fp16_res=2)
    precision.set_half_dtype(student_D, run)
    teacher.match_precision(student_D)
    assert teacher.D is D
    assert dtypes_seen(teacher.D.features, lambda: teacher.scores(IMG, C)) == {torch.float32}


def test_a_teacher_beside_a_student_of_another_project(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path, num_fp16_res=2))
    teacher.match_precision(other_projects.Discriminator(C_DIM, RESOLUTION, CHANNELS))
    assert dtypes_seen(teacher.D.b16.conv1, lambda: teacher.scores(IMG, C)) == {torch.float32}
