// SPDX-License-Identifier: Apache-2.0
// Upsample by zeros, pad, filter, keep every down-th pixel; along each axis, with `first = o * down - pad`,
//
//   y[o] = gain * sum over k of f[k] * x[(first + k) / up]     where (first + k) is a multiple of up, inside x.
//
// Inserted zeros are never read: the body for any shape skips them, and the fast cases know at compile time which taps
// meet a pixel. The filter is applied as a correlation with `flip`, otherwise as a convolution.
#pragma once

#include "scalar.h"

namespace ops {

struct Upfirdn2dArgs {
    const void* x;
    const void* f;                           // [taps_y, taps_x], of the type in which T is computed
    void* y;
    int64_t batch, channels, in_h, in_w, out_h, out_w;
    int64_t x_stride[4], y_stride[4];        // in elements: batch, channel, row, pixel
    int up_x, up_y, down_x, down_y;
    int pad_x, pad_y;                        // before the first pixel; out_w, out_h give the padding after the last
    int taps_x, taps_y;
    bool flip;
    double gain;
    bool packed_x, packed_y;                 // rows start and end at multiples of 16 bytes (set by the plan)
};

template <class T> HD Math<T> filter_tap(const Upfirdn2dArgs& a, int ky, int kx) {
    const auto* f = static_cast<const Math<T>*>(a.f);
    return a.flip ? f[ky * a.taps_x + kx] : f[(a.taps_y - 1 - ky) * a.taps_x + (a.taps_x - 1 - kx)];
}

// ---- Any shape: one output per thread, in the order of the output's memory.

// Where the filter of an output first meets a pixel: tap `k`, pixel `i`.
template <class I> struct Meeting { I i, k; };

template <class I> HD Meeting<I> first_meeting(I first, I up) {
    const I i = first <= 0 ? 0 : (first + up - 1) / up;
    return {i, i * up - first};
}

template <class T, class I> HD void upfirdn2d_element(const Upfirdn2dArgs& a, I item) {
    const I out_w = I(a.out_w), out_h = I(a.out_h), channels = I(a.channels);
    I n = item, c, oy, ox;
    if (a.y_stride[1] == 1) {
        c = n % channels, n /= channels, ox = n % out_w, n /= out_w, oy = n % out_h, n /= out_h;
    } else {
        ox = n % out_w, n /= out_w, oy = n % out_h, n /= out_h, c = n % channels, n /= channels;
    }
    const T* x = static_cast<const T*>(a.x) + (n * I(a.x_stride[0]) + c * I(a.x_stride[1]));
    const auto from_y = first_meeting<I>(oy * a.down_y - a.pad_y, a.up_y);
    const auto from_x = first_meeting<I>(ox * a.down_x - a.pad_x, a.up_x);
    Math<T> sum = 0;
    for (I iy = from_y.i, ky = from_y.k; ky < a.taps_y && iy < I(a.in_h); iy++, ky += a.up_y) {
        for (I ix = from_x.i, kx = from_x.k; kx < a.taps_x && ix < I(a.in_w); ix++, kx += a.up_x) {
            sum += filter_tap<T>(a, int(ky), int(kx)) * widen(x[iy * I(a.x_stride[2]) + ix * I(a.x_stride[3])]);
        }
    }
    T* y = static_cast<T*>(a.y);
    const I at = n * I(a.y_stride[0]) + c * I(a.y_stride[1]) + oy * I(a.y_stride[2]) + ox * I(a.y_stride[3]);
    y[at] = Narrow<T>::from(sum * Math<T>(a.gain));
}

inline int64_t item_count(const Upfirdn2dArgs& a) { return a.batch * a.channels * a.out_h * a.out_w; }

// Whether all integers that the body above computes are below 2^31.
inline bool fits_32_bits(const Upfirdn2dArgs& a) {
    const int64_t x_size[4] = {a.batch, a.channels, a.in_h, a.in_w};
    const int64_t y_size[4] = {a.batch, a.channels, a.out_h, a.out_w};
    const auto magnitude = [](int64_t v) { return v < 0 ? -v : v; };
    int64_t x_span = 0, y_span = 0;
    for (int d = 0; d < 4; d++) {
        x_span += (x_size[d] - 1) * a.x_stride[d];
        y_span += (y_size[d] - 1) * a.y_stride[d];
    }
    const int64_t along_x = a.in_w * a.up_x + a.out_w * a.down_x + magnitude(a.pad_x) + a.taps_x + a.up_x;
    const int64_t along_y = a.in_h * a.up_y + a.out_h * a.down_y + magnitude(a.pad_y) + a.taps_y + a.up_y;
    // The last step of the loop over items can end at almost twice their count, so the count gets half the range.
    const int64_t limit = int64_t(1) << 31;
    return x_span < limit && y_span < limit && along_x < limit && along_y < limit && item_count(a) < limit / 2;
}

}  // namespace ops
