# SPDX-License-Identifier: Apache-2.0
"""A foreign tree that opens our snapshots: only the names that spec 1.4 lets them use.

Each function is the simplest implementation of its name. The tree shares no code with the project, and its syntax is
that of Python 3.8, since such trees are older than the project.
"""

import pathlib

ALLOWED = {
    "torch_utils.misc": {"assert_shape", "constant", "profiled_function", "suppress_tracer_warnings"},
    "torch_utils.persistence": {"persistent_class"},
    "torch_utils.ops.bias_act": {"activation_funcs", "bias_act"},
    "torch_utils.ops.conv2d_gradfix": {"conv2d", "no_weight_gradients"},
    "torch_utils.ops.conv2d_resample": {"conv2d_resample"},
    "torch_utils.ops.fma": {"fma"},
    "torch_utils.ops.grid_sample_gradfix": {"grid_sample"},
    "torch_utils.ops.upfirdn2d": {"downsample2d", "setup_filter", "upsample2d"},
}

_FILES = {
    "dnnlib/__init__.py": "from dnnlib.util import EasyDict\n",
    "dnnlib/util.py": """
class EasyDict(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name)
""",
    "torch_utils/__init__.py": "",
    "torch_utils/ops/__init__.py": "",
    "torch_utils/misc.py": """
import contextlib
import torch

def assert_shape(tensor, ref_shape):
    assert len(tensor.shape) == len(ref_shape)
    assert all(want is None or want == size for size, want in zip(tensor.shape, ref_shape))

def constant(value, shape=None, dtype=None, device=None, memory_format=None):
    tensor = torch.as_tensor(value, dtype=dtype or torch.get_default_dtype(), device=device or "cpu")
    tensor = tensor if shape is None else tensor.expand(shape)
    return tensor.contiguous(memory_format=memory_format or torch.contiguous_format)

def profiled_function(fn):
    return fn

@contextlib.contextmanager
def suppress_tracer_warnings():
    yield
""",
    "torch_utils/persistence.py": """
import types

_modules = {}

def persistent_class(cls):
    cls.init_args = property(lambda self: self._init_args)
    cls.init_kwargs = property(lambda self: self._init_kwargs)
    return cls

def _reconstruct_persistent_obj(meta):
    assert sorted(meta) == ["class_name", "module_src", "state", "type", "version"]
    assert meta["type"] == "class" and meta["version"] == 6
    source = meta["module_src"]
    if source not in _modules:
        _modules[source] = types.ModuleType("stored_module_%d" % len(_modules))
        exec(compile(source, "stored source", "exec"), _modules[source].__dict__)
    cls = getattr(_modules[source], meta["class_name"])
    obj = cls.__new__(cls)
    obj.__setstate__(meta["state"])
    return obj
""",
    "torch_utils/ops/bias_act.py": """
import math
import types
import torch
import torch.nn.functional as F

def _spec(func, def_alpha=0, def_gain=1):
    return types.SimpleNamespace(func=func, def_alpha=def_alpha, def_gain=def_gain)

_ROOT = math.sqrt(2)
activation_funcs = {
    "linear": _spec(lambda x, a: x),
    "relu": _spec(lambda x, a: F.relu(x), def_gain=_ROOT),
    "lrelu": _spec(lambda x, a: F.leaky_relu(x, a), def_alpha=0.2, def_gain=_ROOT),
    "swish": _spec(lambda x, a: x * torch.sigmoid(x), def_gain=_ROOT),
}

def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    spec = activation_funcs[act]
    if b is not None:
        x = (x.transpose(dim, -1) + b).transpose(dim, -1)
    x = spec.func(x, spec.def_alpha if alpha is None else alpha) * (spec.def_gain if gain is None else gain)
    return x if clamp is None else x.clamp(-clamp, clamp)
""",
    "torch_utils/ops/conv2d_gradfix.py": """
import contextlib
from torch.nn.functional import conv2d

@contextlib.contextmanager
def no_weight_gradients():
    yield
""",
    "torch_utils/ops/grid_sample_gradfix.py": """
import torch.nn.functional as F

def grid_sample(input, grid):
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
""",
    "torch_utils/ops/fma.py": "def fma(a, b, c):\n    return a * b + c\n",
    "torch_utils/ops/_resampling.py": """
import torch
import torch.nn.functional as F

def four(padding):
    sides = list(padding) if isinstance(padding, (list, tuple)) else [padding, padding]
    return sides if len(sides) == 4 else [sides[0], sides[0], sides[1], sides[1]]

def taps(f):
    return 1 if f is None else f.shape[-1]

def upfirdn(x, f, up, down, padding, flip_filter, gain):
    N, C, H, W = x.shape
    wide = x.new_zeros([N, C, H * up, W * up])
    wide[:, :, ::up, ::up] = x
    x = F.pad(wide, four(padding))
    if f is not None:
        f = torch.ger(f, f) if f.ndim == 1 else f
        f = f if flip_filter else f.flip([0, 1])
        x = F.conv2d(x, (f * gain).to(x.dtype)[None, None].repeat(C, 1, 1, 1), groups=C)
    return x[:, :, ::down, ::down]
""",
    "torch_utils/ops/upfirdn2d.py": """
import torch
from torch_utils.ops import _resampling

def setup_filter(f, device="cpu", normalize=True, flip_filter=False, gain=1, separable=None):
    f = torch.as_tensor(f, dtype=torch.float32, device=device)
    f = torch.ger(f, f) if f.ndim == 1 and f.numel() < 8 else f
    return f / f.sum()

def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    n = _resampling.taps(f)
    x0, x1, y0, y1 = _resampling.four(padding)
    before, after = (n + up - 1) // 2, (n - up) // 2
    sides = [x0 + before, x1 + after, y0 + before, y1 + after]
    return _resampling.upfirdn(x, f, up, 1, sides, flip_filter, gain * up * up)

def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    n = _resampling.taps(f)
    x0, x1, y0, y1 = _resampling.four(padding)
    before, after = (n - down + 1) // 2, (n - down) // 2
    sides = [x0 + before, x1 + after, y0 + before, y1 + after]
    return _resampling.upfirdn(x, f, 1, down, sides, flip_filter, gain)
""",
    "torch_utils/ops/conv2d_resample.py": """
import torch.nn.functional as F
from torch_utils.ops import _resampling

def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    n = _resampling.taps(f)
    sides = _resampling.four(padding)
    if up > 1:
        sides = [side + extra for side, extra in zip(sides, [(n + up - 1) // 2, (n - up) // 2] * 2)]
    if down > 1:
        sides = [side + extra for side, extra in zip(sides, [(n - down + 1) // 2, (n - down) // 2] * 2)]
    x = _resampling.upfirdn(x, f if up > 1 else None, up, 1, sides, flip_filter, up * up)
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return _resampling.upfirdn(x, f, 1, down, 0, flip_filter, 1) if down > 1 else x
""",
}


def write(folder: pathlib.Path) -> pathlib.Path:
    """Write the tree to `folder`."""
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
