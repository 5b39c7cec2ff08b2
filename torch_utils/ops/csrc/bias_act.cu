// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

namespace ops {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers for each thread, so that nothing spills

template <Order order, int N, class T, class Index>
__global__ void __launch_bounds__(kThreads, kBlocks)
bias_act_kernel(BiasActArgs a, BiasActPlan<Math<T>> p, Index items) {
    const Index step = Index(gridDim.x) * kThreads;
    for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step)
        bias_act_item<order, N, T>(a, p, i);
}

struct Launch {
    cudaStream_t stream;

    template <Order order, int N, class T, class Index>
    cudaError_t operator()(const BiasActArgs& a, const BiasActPlan<Math<T>>& p) const {
        const int64_t items = p.packs + (p.tail > 0);
        bias_act_kernel<order, N, T, Index><<<grid_for(items, kThreads), kThreads, 0, stream>>>(a, p, Index(items));
        return cudaGetLastError();
    }
};

}  // namespace

cudaError_t launch_bias_act(Type type, Order order, const BiasActArgs& a, cudaStream_t stream) {
    switch (type) {
        case Type::f16: return dispatch_bias_act<__half>(order, a, Launch{stream});
        case Type::bf16: return dispatch_bias_act<__nv_bfloat16>(order, a, Launch{stream});
        case Type::f32: return dispatch_bias_act<float>(order, a, Launch{stream});
        case Type::f64: return dispatch_bias_act<double>(order, a, Launch{stream});
    }
    return cudaErrorInvalidValue;
}

}  // namespace ops
