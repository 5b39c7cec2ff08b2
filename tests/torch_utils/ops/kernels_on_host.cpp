// SPDX-License-Identifier: Apache-2.0
// Runs the bodies of the CUDA kernels on a CPU: the same plans and the same functions of block and thread numbers, in
// loops instead of a grid. Each entry returns which kernel the plan chose.
#include <cstring>
#include <memory>
#include <vector>

#include "bias_act.h"
#include "upfirdn2d_tiles.h"

namespace ops {

// bfloat16 as its bits: truncated float, rounded to nearest even.
struct Bf16 {
    uint16_t bits;
};

float widen(Bf16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

template <> struct Narrow<Bf16> {
    static Bf16 from(float v) {
        uint32_t bits;
        std::memcpy(&bits, &v, 4);
        return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
    }
};

struct RunBiasAct {
    template <Order order, int N, class T, class Index>
    int operator()(const BiasActArgs& a, const BiasActPlan<Math<T>>& p) const {
        for (int64_t i = 0; i < p.packs + (p.tail > 0); i++) bias_act_item<order, N, T>(a, p, Index(i));
        return N;
    }
};

enum Kernel { any_32, any_64, by_plane, by_channel };

struct RunUpfirdn2d {
    bool wide;

    template <class T, class I> int any(const Upfirdn2dArgs& a) const {
        for (int64_t i = 0; i < item_count(a); i++) {
            if (wide) upfirdn2d_element<T, int64_t>(a, i);
            else upfirdn2d_element<T, I>(a, I(i));
        }
        return sizeof(I) == 4 ? any_32 : any_64;
    }

    template <class T, class AX, class AY> int plane(const Upfirdn2dArgs& a) const {
        using Tile = PlaneTile<T, AX, AY>;
        const auto shared = std::make_unique<typename Tile::Shared>();
        for (int thread = 0; thread < Tile::threads; thread++)
            shared->weights.template fill<T>(a, thread, Tile::threads);
        for (int64_t i = 0; i < Tile::count(a); i++) {
            const Tile tile(a, i);
            for (float& pixel : shared->pixels) pixel = NAN;  // shows if what was not staged is read
            for (int thread = 0; thread < Tile::threads; thread++) tile.stage(a, thread, *shared);
            for (int thread = 0; thread < Tile::threads; thread++) tile.compute(a, thread, *shared);
        }
        return by_plane;
    }

    template <class T, class AX, class AY> int channel(const Upfirdn2dArgs& a) const {
        using Tile = ChannelTile<T, AX, AY>;
        Weights<AX, AY> weights;
        for (int thread = 0; thread < Tile::threads; thread++) weights.template fill<T>(a, thread, Tile::threads);
        for (int64_t i = 0; i < Tile::count(a); i++)
            for (int thread = 0; thread < Tile::threads; thread++) Tile::compute(a, i, thread, weights);
        return by_channel;
    }
};

}  // namespace ops

extern "C" int bias_act(int type, int order, void* out, void* x, void* b, void* g, void* dy, int64_t count,
                        int64_t step, int64_t size, int act, double alpha, double gain, double clamp) {
    using namespace ops;
    const BiasActArgs args{out, x, b, g, dy, count, step, size, Act(act), alpha, gain, clamp};
    if (Type(type) == Type::bf16) return dispatch_bias_act<Bf16>(Order(order), args, RunBiasAct{});
    if (Type(type) == Type::f32) return dispatch_bias_act<float>(Order(order), args, RunBiasAct{});
    return dispatch_bias_act<double>(Order(order), args, RunBiasAct{});
}

// sizes, strides: N C H W of x, then of y; pairs: taps, up, down, padding, each y, then x.
extern "C" int upfirdn2d(int type, void* x, void* f, void* y, const int64_t* sizes, const int64_t* strides,
                         const int* pairs, int flip, double gain, int wide) {
    using namespace ops;
    Upfirdn2dArgs args{};
    args.x = x, args.f = f, args.y = y;
    args.batch = sizes[0], args.channels = sizes[1], args.in_h = sizes[2], args.in_w = sizes[3];
    args.out_h = sizes[6], args.out_w = sizes[7];
    for (int d = 0; d < 4; d++) args.x_stride[d] = strides[d], args.y_stride[d] = strides[4 + d];
    args.taps_y = pairs[0], args.taps_x = pairs[1], args.up_y = pairs[2], args.up_x = pairs[3];
    args.down_y = pairs[4], args.down_x = pairs[5], args.pad_y = pairs[6], args.pad_x = pairs[7];
    args.flip = flip != 0, args.gain = gain;
    const RunUpfirdn2d run{wide != 0};
    if (Type(type) == Type::bf16) return dispatch_upfirdn2d<Bf16>(args, run);
    if (Type(type) == Type::f32) return dispatch_upfirdn2d<float>(args, run);
    return dispatch_upfirdn2d<double>(args, run);
}
