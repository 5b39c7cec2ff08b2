// SPDX-License-Identifier: Apache-2.0
// The kernels as a Python module. Tensors are passed as addresses, sizes and strides, so that nothing here depends on
// the version of PyTorch. The caller (torch_utils/ops/*_cuda.py) checks, allocates and sets the current device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace {

using Address = std::uintptr_t;
using Sizes = std::array<int64_t, 4>;
using Pair = std::array<int, 2>;  // y, x

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

void check(cudaError_t status, const char* op) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(status));
}

void bias_act(int type, int order, Address out, Address x, Address b, Address g, Address dy, int64_t count,
              int64_t step, int64_t size, int act, double alpha, double gain, double clamp, Address stream) {
    const ops::BiasActArgs args{pointer(out), pointer(x), pointer(b), pointer(g), pointer(dy), count, step, size,
                                ops::Act(act), alpha, gain, clamp};
    check(ops::launch_bias_act(ops::Type(type), ops::Order(order), args, cudaStream_t(pointer(stream))), "bias_act");
}

void upfirdn2d(int type, Address x, Address f, Address y, const Sizes& x_size, const Sizes& x_stride,
               const Sizes& y_size, const Sizes& y_stride, const Pair& taps, const Pair& up, const Pair& down,
               const Pair& pad, bool flip, double gain, Address stream) {
    ops::Upfirdn2dArgs args{};
    args.x = pointer(x), args.f = pointer(f), args.y = pointer(y);
    args.batch = x_size[0], args.channels = x_size[1], args.in_h = x_size[2], args.in_w = x_size[3];
    args.out_h = y_size[2], args.out_w = y_size[3];
    for (int d = 0; d < 4; d++) args.x_stride[d] = x_stride[d], args.y_stride[d] = y_stride[d];
    args.up_y = up[0], args.up_x = up[1], args.down_y = down[0], args.down_x = down[1];
    args.pad_y = pad[0], args.pad_x = pad[1], args.taps_y = taps[0], args.taps_x = taps[1];
    args.flip = flip, args.gain = gain;
    check(ops::launch_upfirdn2d(ops::Type(type), args, cudaStream_t(pointer(stream))), "upfirdn2d");
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("bias_act", &bias_act);
    m.def("upfirdn2d", &upfirdn2d);
}
