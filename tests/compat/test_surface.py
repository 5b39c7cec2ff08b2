# SPDX-License-Identifier: Apache-2.0
"""Names, arguments and flags that users and notebooks of StyleGAN2-ADA rely on (spec 1.1, 1.2, 1.4)."""

import dataclasses
import importlib
import inspect
import re

import click
import pytest
import torch

import dnnlib
from tests.compat.surface import CONSTRUCTORS, FLAGS, METHODS, METRICS, NAMES
from tests.support import ROOT, golden_json
from torch_utils import custom_ops, persistence
from torch_utils.ops import bias_act, conv2d_gradfix, grid_sample_gradfix
from training import loss, networks, training_loop
from training.augment import AugmentPipe
from training.files import snapshot

KINDS = inspect.Parameter
ALL = [(module, name) for module, names in NAMES.items() for name in names]


def look_up(dotted: str):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module) if module in NAMES else look_up(module), name)


def parsed(arguments: str) -> list[inspect.Parameter]:
    """Parameters of a function with these arguments. Here one without a default may follow one with a default."""
    found = []
    for text in re.split(r",\s*(?![^\[]*\])", arguments) if arguments else []:
        stars = len(text) - len(text.lstrip("*"))
        name, _, default = text.lstrip("*").partition("=")
        kind = [KINDS.POSITIONAL_OR_KEYWORD, KINDS.VAR_POSITIONAL, KINDS.VAR_KEYWORD][stars]
        if found and found[-1].kind in (KINDS.VAR_POSITIONAL, KINDS.KEYWORD_ONLY) and stars == 0:
            kind = KINDS.KEYWORD_ONLY
        # Created without a default first, because inspect.Parameter checks the default against the kind.
        parameter = inspect.Parameter(name, kind)
        found.append(parameter.replace(default=eval(default)) if default else parameter)
    return found


def faults(actual: list[inspect.Parameter], expected: list[inspect.Parameter], strict: bool) -> list[str]:
    """Differences of a signature from the fixed one. More parameters may follow if all have defaults."""
    found = []
    for i, wanted in enumerate(expected):
        if i >= len(actual) or (actual[i].name, actual[i].kind) != (wanted.name, wanted.kind):
            return [*found, f"argument {i} must be {wanted}, not {actual[i] if i < len(actual) else 'missing'}"]
        if not strict and wanted.default is wanted.empty:
            continue
        default = actual[i].default
        if default != wanted.default or (type(default) is bool) != (type(wanted.default) is bool):
            found.append(f"{wanted.name} must default to {wanted.default!r}, not {default!r}")
    needed = [p.name for p in actual[len(expected) :] if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    return found + [f"{name} is an additional argument without a default" for name in needed]


def signature_of(dotted: str) -> list[inspect.Parameter]:
    obj = look_up(dotted)
    parameters = list(inspect.signature(obj).parameters.values())
    return parameters[1:] if parameters and parameters[0].name == "self" else parameters


@pytest.mark.parametrize(("module", "name"), ALL, ids=lambda part: part)
def test_every_name_exists_with_its_arguments(module, name):
    assert hasattr(importlib.import_module(module), name)
    if NAMES[module][name] is not None:
        assert faults(signature_of(f"{module}.{name}"), parsed(NAMES[module][name]), strict=False) == []


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name):
    assert faults(signature_of(name), parsed(CONSTRUCTORS[name]), strict=True) == []


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    assert faults(signature_of(name), parsed(METHODS[name]), strict=True) == []


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ("a, b=1, *, c=2", 0), ("a, b=1, c=2, d=3", 0), ("a, b=1, c=2, **more", 0), ("b=1, a=0, c=2", 1),
        ("a, b=True, c=2", 1), ("a, b=2, c=3", 2), ("a=0, b=1, c=2", 1), ("a, b=1", 1), ("a, b=1, c=2, *, d", 0),
        ("x, b=1, c=2", 1), ("a, *b, c=2", 1),
    ],
)  # fmt: skip
def test_a_different_signature_is_detected(arguments, count):
    namespace = {}
    exec(f"def f({arguments}): pass", namespace)
    actual = [
        p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.name == "c" else p
        for p in inspect.signature(namespace["f"]).parameters.values()
    ]
    assert len(faults(actual, parsed("a, b=1, c=2"), strict=True)) == count


def test_shared_and_defining_modules():
    assert dnnlib.EasyDict is dnnlib.util.EasyDict and dnnlib.EasyDict.__module__ == "dnnlib.util"
    assert dnnlib.make_cache_dir_path is dnnlib.util.make_cache_dir_path
    assert persistence._reconstruct_persistent_obj.__module__ == "torch_utils.persistence"


def test_flags_and_tables():
    assert custom_ops.verbosity in ("none", "brief", "full")
    assert conv2d_gradfix.enabled is True and grid_sample_gradfix.enabled is True
    with conv2d_gradfix.no_weight_gradients() as nothing:
        assert nothing is None
    names = ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]
    assert list(bias_act.activation_funcs) == names
    for name in names:
        spec = bias_act.activation_funcs[name]
        assert callable(spec.func) and spec.def_alpha >= 0 and spec.def_gain > 0


def test_the_metrics_of_the_papers_are_listed():
    metric_main = importlib.import_module("metrics.metric_main")
    assert set(METRICS) <= set(metric_main.list_valid_metrics())
    assert all(metric_main.is_valid_metric(name) for name in METRICS)
    assert not metric_main.is_valid_metric("fid")


def test_losses_share_a_base_class():
    assert issubclass(loss.StyleGAN2Loss, loss.Loss)
    with pytest.raises(NotImplementedError):
        loss.Loss().accumulate_gradients("Gmain", None, None, None, None, sync=True, gain=1)


def test_training_loop_takes_the_options_as_keywords():
    keys = {key for case in golden_json("train_options")["cases"] for key in case.get("options", {})}
    known = {field.name for field in dataclasses.fields(training_loop.TrainingOptions)}
    assert len(keys) > 20 and keys <= known
    parameters = inspect.signature(training_loop.training_loop).parameters
    assert [*parameters][:3] == ["rank", "abort_fn", "progress_fn"] and [*parameters.values()][
        -1
    ].kind == KINDS.VAR_KEYWORD
    assert all(parameter.default is not KINDS.empty for parameter in [*parameters.values()][:3])
    with pytest.raises(TypeError, match="nonsense"):
        training_loop.training_loop(nonsense=1)


def test_attributes_that_other_programs_read(tmp_path):
    G = networks.Generator(8, 3, 12, 16, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_max": 4})
    D = networks.Discriminator(3, 16, 3, channel_max=4)
    assert (G.z_dim, G.c_dim, G.w_dim, G.img_resolution, G.img_channels, G.num_ws) == (8, 3, 12, 16, 3, 6)
    assert (D.c_dim, D.img_resolution, D.img_channels) == (3, 16, 3)
    assert G.mapping.w_avg.shape == (12,) and G.mapping.num_ws == G.synthesis.num_ws == 6
    assert G.synthesis.block_resolutions == [4, 8, 16] and D.block_resolutions == [16, 8]
    for network, resolutions in ((G.synthesis, [4, 8, 16]), (D, [4, 8, 16])):
        assert all(isinstance(getattr(network, f"b{res}"), torch.nn.Module) for res in resolutions)
    assert G.init_args == (8, 3, 12, 16, 3) and G.init_kwargs.mapping_kwargs == {"num_layers": 2}
    pipe = AugmentPipe()
    assert dict(pipe.named_buffers())["p"].shape == () and pipe.p.item() == 1


def test_load_network_pkl_returns_the_five_entries(tmp_path):
    legacy = importlib.import_module("legacy")
    G = networks.Generator(4, 0, 4, 8, 1, synthesis_kwargs={"channel_max": 2})
    path = tmp_path / "net.pkl"
    snapshot.save_snapshot(path, {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {"a": 1}})
    with dnnlib.util.open_url(path.as_uri()) as f:
        data = legacy.load_network_pkl(f)
    assert type(data) is dict and set(data) == {"G", "D", "G_ema", "training_set_kwargs", "augment_pipe"}
    assert data["D"] is None and data["training_set_kwargs"] == {"a": 1} and data["G_ema"].num_ws == G.num_ws


def options_of(script: str) -> dict[str, click.Option]:
    return {flag: option for option in importlib.import_module(script).main.params for flag in option.opts}


@pytest.mark.parametrize("script", FLAGS)
def test_scripts_take_the_known_flags(script):
    missing = {f"--{name}" for name in FLAGS[script].split()} - options_of(script).keys()
    assert missing == set()
    assert (ROOT / f"{script}.py").is_file()
    assert script != "train" or "-n" in options_of(script)


def test_truth_values_of_flags():
    scripts = ("train", "calc_metrics", "projector", "legacy")
    train, metrics, projector, legacy = map(options_of, scripts)
    switches = [train[f"--{name}"] for name in ("cond", "mirror", "fp32", "nhwc", "nobench", "allow-tf32")]
    others = [metrics["--mirror"], metrics["--verbose"], projector["--save-video"], legacy["--force-fp16"]]
    for option in [*switches, *others]:
        for word, value in {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.items():
            assert option.type.convert(word, option, None) is value
