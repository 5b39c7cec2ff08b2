// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "launch.h"
#include "upfirdn2d_tiles.h"

namespace ops {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers for each thread, so that nothing spills

template <class T, class I> __global__ void __launch_bounds__(kThreads, kBlocks) any_kernel(Upfirdn2dArgs a, I items) {
    using Unsigned = std::make_unsigned_t<I>;  // the last step may pass the largest I
    const Unsigned step = Unsigned(gridDim.x) * kThreads;
    for (Unsigned i = Unsigned(blockIdx.x) * kThreads + threadIdx.x; i < Unsigned(items); i += step)
        upfirdn2d_element<T, I>(a, I(i));
}

template <class T, class AX, class AY>
__global__ void __launch_bounds__(PlaneTile<T, AX, AY>::threads) plane_kernel(Upfirdn2dArgs a) {
    using Tile = PlaneTile<T, AX, AY>;
    __shared__ typename Tile::Shared shared;
    shared.weights.template fill<T>(a, threadIdx.x, Tile::threads);
    for (int64_t i = blockIdx.x; i < Tile::count(a); i += gridDim.x) {
        const Tile tile(a, i);
        tile.stage(a, threadIdx.x, shared);
        __syncthreads();
        tile.compute(a, threadIdx.x, shared);
        __syncthreads();
    }
}

template <class T, class AX, class AY>
__global__ void __launch_bounds__(ChannelTile<T, AX, AY>::threads) channel_kernel(Upfirdn2dArgs a) {
    using Tile = ChannelTile<T, AX, AY>;
    __shared__ Weights<AX, AY> weights;
    weights.template fill<T>(a, threadIdx.x, Tile::threads);
    __syncthreads();
    for (int64_t i = blockIdx.x; i < Tile::count(a); i += gridDim.x) Tile::compute(a, i, threadIdx.x, weights);
}

struct Launch {
    cudaStream_t stream;

    template <class T, class I> cudaError_t any(const Upfirdn2dArgs& a) const {
        const int64_t items = item_count(a);
        any_kernel<T, I><<<grid_for(items, kThreads), kThreads, 0, stream>>>(a, I(items));
        return cudaGetLastError();
    }

    template <class T, class AX, class AY> cudaError_t plane(const Upfirdn2dArgs& a) const {
        using Tile = PlaneTile<T, AX, AY>;
        plane_kernel<T, AX, AY><<<grid_for(Tile::count(a), 1), Tile::threads, 0, stream>>>(a);
        return cudaGetLastError();
    }

    template <class T, class AX, class AY> cudaError_t channel(const Upfirdn2dArgs& a) const {
        using Tile = ChannelTile<T, AX, AY>;
        channel_kernel<T, AX, AY><<<grid_for(Tile::count(a), 1), Tile::threads, 0, stream>>>(a);
        return cudaGetLastError();
    }
};

}  // namespace

cudaError_t launch_upfirdn2d(Type type, const Upfirdn2dArgs& a, cudaStream_t stream) {
    switch (type) {
        case Type::f16: return dispatch_upfirdn2d<__half>(a, Launch{stream});
        case Type::bf16: return dispatch_upfirdn2d<__nv_bfloat16>(a, Launch{stream});
        case Type::f32: return dispatch_upfirdn2d<float>(a, Launch{stream});
        case Type::f64: return dispatch_upfirdn2d<double>(a, Launch{stream});
    }
    return cudaErrorInvalidValue;
}

}  // namespace ops
