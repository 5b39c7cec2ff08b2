// SPDX-License-Identifier: Apache-2.0
// The fast cases of upfirdn2d: factors and taps known at compile time, several outputs per thread in registers.
#pragma once

#include "upfirdn2d.h"

namespace ops {

HD int floor_div(int a, int b) { return a / b - (a % b < 0); }

// One axis of a case. Outputs form groups of `up`. Output q of a group depends on at most `window` pixels, which start
// at the same pixel for the whole group. Tap up * t - phase - q, if it exists, falls on pixel t of the window.
template <int Up, int Down, int Taps> struct Axis {
    static_assert(Up == 1 || Down == 1, "one factor at a time");
    static constexpr int up = Up, down = Down, taps = Taps;
    static constexpr int window = (Taps - 1 + 2 * (Up - 1)) / Up + 1;

    // Pixels under `outputs` consecutive ones, a multiple of up.
    static HD constexpr int reach(int outputs) { return (outputs / Up - 1) * Down + window; }
    // The first pixel under output `o`, a multiple of up.
    static HD int first(int o, int pad) { return floor_div(o * Down - pad, Up); }
    static HD int phase(int pad) { return -pad - floor_div(-pad, Up) * Up; }
};

// The filter, gain included, sorted by output of the group and pixel of the window; 0 where there is no tap.
template <class AX, class AY> struct Weights {
    static constexpr int rows = AY::up * AY::window, cols = AX::up * AX::window, count = rows * cols;
    alignas(16) float at[count];

    // The part of thread `thread` of `threads`.
    template <class T> HD void fill(const Upfirdn2dArgs& a, int thread, int threads) {
        for (int i = thread; i < count; i += threads) {
            const int row = i / cols, col = i % cols;
            const int ky = AY::up * (row % AY::window) - AY::phase(a.pad_y) - row / AY::window;
            const int kx = AX::up * (col % AX::window) - AX::phase(a.pad_x) - col / AX::window;
            const bool exists = ky >= 0 && ky < AY::taps && kx >= 0 && kx < AX::taps;
            at[i] = exists ? filter_tap<T>(a, ky, kx) * float(a.gain) : 0.0f;
        }
    }

    // For output (qy, qx) of a group and pixel (ty, tx) of its window.
    HD float of(int qy, int ty, int qx, int tx) const {
        return at[(qy * AY::window + ty) * cols + qx * AX::window + tx];
    }
};

// ---- Images plane by plane (NCHW): a block stages the pixels under its tile of outputs in shared memory.

template <class T, class AX, class AY> struct PlaneTile {
    static constexpr int N = kPackSize<T>;
    static constexpr int threads = 128;
    static constexpr bool shrinks = AX::down > 1 || AY::down > 1;
    static constexpr int patch_w = N, patch_h = !shrinks ? 4 : AY::taps > 4 ? 2 : 1;  // outputs per thread
    static constexpr int width = AX::down > 1 ? 32 : 64;                             // outputs per block
    static constexpr int lanes = width / patch_w;
    static constexpr int height = threads / lanes * patch_h;
    static constexpr int rows = AY::reach(height), cols = AX::reach(width);  // pixels under them
    // Staged rows start at a multiple of N, so that they can be read in packs.
    static constexpr int packs = (cols + N - 1 + N - 1) / N;
    static constexpr int pitch = packs * (N + 1);

    struct Shared {
        Weights<AX, AY> weights;
        float pixels[rows * pitch];
    };
    static_assert(sizeof(Shared) <= 48 * 1024, "more than a block gets without asking");

    // A gap after each pack keeps threads whose pixels are N apart on different banks.
    static HD int place(int column) { return column + column / N; }

    int n, c, x, y;        // sample, channel, first output
    int from_x, from_y;    // first pixel under them
    int staged_x;          // first pixel of the staged rows

    static HD int64_t count(const Upfirdn2dArgs& a) {
        return a.batch * a.channels * ((a.out_h + height - 1) / height) * ((a.out_w + width - 1) / width);
    }

    HD PlaneTile(const Upfirdn2dArgs& a, int64_t tile) {
        const int across = int((a.out_w + width - 1) / width), down = int((a.out_h + height - 1) / height);
        const int64_t plane = tile / (int64_t(across) * down);
        const int place_in_plane = int(tile - plane * (int64_t(across) * down));
        n = int(plane / a.channels), c = int(plane % a.channels);
        x = place_in_plane % across * width, y = place_in_plane / across * height;
        from_x = AX::first(x, a.pad_x), from_y = AY::first(y, a.pad_y);
        staged_x = floor_div(from_x, N) * N;
    }

    HD void stage(const Upfirdn2dArgs& a, int thread, Shared& shared) const {
        const T* plane = static_cast<const T*>(a.x) + (n * a.x_stride[0] + c * a.x_stride[1]);
        UNROLL_4 for (int i = thread; i < rows * packs; i += threads) {
            const int r = i / packs, p = i % packs;
            const int iy = from_y + r, ix = staged_x + p * N;
            float* to = shared.pixels + r * pitch + p * (N + 1);
            const bool row_inside = iy >= 0 && iy < a.in_h;
            const T* from = plane + (iy * a.x_stride[2] + ix);
            if (a.packed_x) {  // then a pack is either inside its row or outside
                const bool inside = row_inside && ix >= 0 && ix < a.in_w;
                Pack<T, N> pack{};
                if (inside) pack = load_pack<N>(from);
                UNROLL for (int j = 0; j < N; j++) to[j] = inside ? widen(pack.at[j]) : 0.0f;
            } else {
                UNROLL for (int j = 0; j < N; j++)
                    to[j] = row_inside && ix + j >= 0 && ix + j < a.in_w ? widen(from[j]) : 0.0f;
            }
        }
    }

    HD void compute(const Upfirdn2dArgs& a, int thread, const Shared& shared) const {
        const int lane = thread % lanes, rank = thread / lanes;
        const int oy = y + rank * patch_h, ox = x + lane * patch_w;
        if (oy >= a.out_h || ox >= a.out_w) return;
        const float* rows_under = shared.pixels + rank * (patch_h / AY::up * AY::down) * pitch;
        const int column = from_x - staged_x + lane * (patch_w / AX::up * AX::down);
        float sum[patch_h][patch_w] = {};
        UNROLL for (int r = 0; r < AY::reach(patch_h); r++) {
            float pixel[AX::reach(patch_w)];
            UNROLL for (int k = 0; k < AX::reach(patch_w); k++) pixel[k] = rows_under[r * pitch + place(column + k)];
            UNROLL for (int p = 0; p < patch_h; p++) {
                const int ty = r - p / AY::up * AY::down;
                if (ty < 0 || ty >= AY::window) continue;
                UNROLL for (int i = 0; i < patch_w; i++)
                    UNROLL for (int tx = 0; tx < AX::window; tx++)
                        sum[p][i] += shared.weights.of(p % AY::up, ty, i % AX::up, tx) *
                                     pixel[i / AX::up * AX::down + tx];
            }
        }
        T* plane = static_cast<T*>(a.y) + (n * a.y_stride[0] + c * a.y_stride[1]);
        UNROLL for (int p = 0; p < patch_h; p++) {
            if (oy + p < a.out_h) put(a, plane + ((oy + p) * a.y_stride[2] + ox), sum[p], int(a.out_w) - ox);
        }
    }

    // Writes a row of the patch, at most `room` outputs of it.
    static HD void put(const Upfirdn2dArgs& a, T* to, const float (&sum)[patch_w], int room) {
        Pack<T, N> pack;
        UNROLL for (int j = 0; j < N; j++) pack.at[j] = Narrow<T>::from(sum[j]);
        if (a.packed_y) return store_pack<N>(to, pack);
        UNROLL for (int j = 0; j < N; j++)
            if (j < room) to[j] = pack.at[j];
    }
};

// ---- Images pixel by pixel (channels last): a thread computes a pack of channels of a patch of outputs. Pixels that
// several threads of a block read come from the first-level cache.

template <class T, class AX, class AY> struct ChannelTile {
    static constexpr int N = kPackSize<T>;
    static constexpr int threads = 256, ranks = 8;                         // ranks: patches of a block along y
    static constexpr int patch_w = 2, patch_h = 2;                         // outputs per thread
    static constexpr int height = ranks * patch_h;

    // Neighbouring threads take up to 8 packs of a pixel (a number that divides its packs), then patches along x.
    static HD int packs_together(const Upfirdn2dArgs& a) {
        const int packs = int(a.channels / N);
        return packs % 8 == 0 ? 8 : packs % 4 == 0 ? 4 : packs % 2 == 0 ? 2 : 1;
    }
    static HD int width(int together) { return threads / ranks / together * patch_w; }

    static HD int64_t count(const Upfirdn2dArgs& a) {
        const int together = packs_together(a), w = width(together);
        return a.batch * (a.channels / N / together) * ((a.out_h + height - 1) / height) * ((a.out_w + w - 1) / w);
    }

    static HD void compute(const Upfirdn2dArgs& a, int64_t tile, int thread, const Weights<AX, AY>& weights) {
        const int together = packs_together(a), w = width(together), groups = int(a.channels / N / together);
        const int across = int((a.out_w + w - 1) / w), down = int((a.out_h + height - 1) / height);
        const int group = int(tile % groups), tx = int(tile / groups % across);
        const int64_t row = tile / groups / across;
        const int c = (group * together + thread % together) * N;
        const int ox = tx * w + thread / together % (w / patch_w) * patch_w;
        const int oy = int(row % down) * height + thread / (threads / ranks) * patch_h;
        if (ox >= a.out_w || oy >= a.out_h) return;
        const int64_t n = row / down;
        float sum[patch_h][patch_w][N] = {};
        gather(a, static_cast<const T*>(a.x) + (n * a.x_stride[0] + c), ox, oy, weights, sum);
        T* y = static_cast<T*>(a.y) + (n * a.y_stride[0] + c);
        UNROLL for (int p = 0; p < patch_h; p++) {
            UNROLL for (int i = 0; i < patch_w; i++) {
                Pack<T, N> pack;
                UNROLL for (int j = 0; j < N; j++) pack.at[j] = Narrow<T>::from(sum[p][i][j]);
                if (oy + p < a.out_h && ox + i < a.out_w)
                    store_pack<N>(y + ((oy + p) * a.y_stride[2] + (ox + i) * a.y_stride[3]), pack);
            }
        }
    }

    // Adds up the patch whose first output is (oy, ox), from one sample's pack of channels.
    static HD void gather(const Upfirdn2dArgs& a, const T* x, int ox, int oy, const Weights<AX, AY>& weights,
                          float (&sum)[patch_h][patch_w][N]) {
        const int from_x = AX::first(ox, a.pad_x), from_y = AY::first(oy, a.pad_y);
        UNROLL for (int r = 0; r < AY::reach(patch_h); r++) {
            const int iy = from_y + r;
            const bool row_inside = iy >= 0 && iy < a.in_h;
            UNROLL for (int k = 0; k < AX::reach(patch_w); k++) {
                const int ix = from_x + k;
                const bool inside = row_inside && ix >= 0 && ix < a.in_w;
                Pack<T, N> pack{};
                if (inside) pack = load_pack<N>(x + (iy * a.x_stride[2] + ix * a.x_stride[3]));
                float pixel[N];
                UNROLL for (int j = 0; j < N; j++) pixel[j] = inside ? widen(pack.at[j]) : 0.0f;
                UNROLL for (int p = 0; p < patch_h; p++) {
                    const int ty = r - p / AY::up * AY::down;
                    if (ty < 0 || ty >= AY::window) continue;
                    UNROLL for (int i = 0; i < patch_w; i++) {
                        const int tx = k - i / AX::up * AX::down;
                        if (tx < 0 || tx >= AX::window) continue;
                        const float weight = weights.of(p % AY::up, ty, i % AX::up, tx);
                        UNROLL for (int j = 0; j < N; j++) sum[p][i][j] += weight * pixel[j];
                    }
                }
            }
        }
    }
};

// ---- Selection of the kernel.

using Same4 = Axis<1, 1, 4>;
using Up4 = Axis<2, 1, 4>;
using Down4 = Axis<1, 2, 4>;
using Up12 = Axis<2, 1, 12>;
using Down12 = Axis<1, 2, 12>;
using Untouched = Axis<1, 1, 1>;

template <class AX, class AY> bool is_case(const Upfirdn2dArgs& a) {
    return a.up_x == AX::up && a.down_x == AX::down && a.taps_x == AX::taps && a.up_y == AY::up &&
           a.down_y == AY::down && a.taps_y == AY::taps;
}

// Whether the strides of all axes are whole packs of `n` elements, except along `run`, where elements are adjacent.
inline bool steps_by_packs(const void* p, const int64_t (&size)[4], const int64_t (&stride)[4], int run, int n) {
    bool whole = is_aligned(p) && size[run] % n == 0;
    for (int d = 0; d < 4; d++) whole = whole && (d == run || size[d] == 1 || stride[d] % n == 0);
    return whole;
}

// Passes the arguments to `run`, whose template arguments select the kernel.
template <class T, class Run> auto dispatch_upfirdn2d(Upfirdn2dArgs a, Run&& run) {
    if constexpr (kPackSize<T> > 1) {
        const int64_t x_size[4] = {a.batch, a.channels, a.in_h, a.in_w};
        const int64_t y_size[4] = {a.batch, a.channels, a.out_h, a.out_w};
        const int64_t most = int64_t(1) << 29;  // coordinates are 32-bit integers here, offsets are not
        const auto small = [most](int64_t v) { return v > -most && v < most; };
        const bool coordinates_fit = small(a.in_h) && small(a.in_w) && small(a.out_h) && small(a.out_w) &&
                                     small(a.pad_x) && small(a.pad_y) && small(a.batch) && small(a.channels);
        const int run_axis = a.x_stride[3] == 1 && a.y_stride[3] == 1 ? 3 : 1;
        a.packed_x = steps_by_packs(a.x, x_size, a.x_stride, run_axis, kPackSize<T>);
        a.packed_y = steps_by_packs(a.y, y_size, a.y_stride, run_axis, kPackSize<T>);
        if (coordinates_fit && run_axis == 3) {
            if (is_case<Same4, Same4>(a)) return run.template plane<T, Same4, Same4>(a);
            if (is_case<Up4, Up4>(a)) return run.template plane<T, Up4, Up4>(a);
            if (is_case<Down4, Down4>(a)) return run.template plane<T, Down4, Down4>(a);
            if (is_case<Up12, Untouched>(a)) return run.template plane<T, Up12, Untouched>(a);
            if (is_case<Untouched, Up12>(a)) return run.template plane<T, Untouched, Up12>(a);
            if (is_case<Down12, Untouched>(a)) return run.template plane<T, Down12, Untouched>(a);
            if (is_case<Untouched, Down12>(a)) return run.template plane<T, Untouched, Down12>(a);
        }
        if (coordinates_fit && a.x_stride[1] == 1 && a.y_stride[1] == 1 && a.packed_x && a.packed_y) {
            if (is_case<Same4, Same4>(a)) return run.template channel<T, Same4, Same4>(a);
            if (is_case<Up4, Up4>(a)) return run.template channel<T, Up4, Up4>(a);
            if (is_case<Down4, Down4>(a)) return run.template channel<T, Down4, Down4>(a);
        }
    }
    if (fits_32_bits(a)) return run.template any<T, int32_t>(a);
    return run.template any<T, int64_t>(a);
}

}  // namespace ops
