// SPDX-License-Identifier: Apache-2.0
// y = p(x + b) with p(u) = clamp(gain * a(u)), and its first and second derivatives, element by element.
//
// All tensors are dense and have their axes in the same order in memory, so that one index addresses an element in all
// of them. The bias of element i is b[i / step % size], where `step` is the stride of the bias's axis.
#pragma once

#include "activation.h"

namespace ops {

enum class Order : int { value, first, second };

struct BiasActArgs {
    void* out;         // value: p(x + b); first: g * p'(x + b); second: g * dy * p''(x + b)
    const void* x;     // orders 1 and 2 of piecewise activations: the output y instead, with b null
    const void* b;     // null = none
    const void* g;     // incoming gradient of orders 1 and 2
    const void* dy;    // further factor of order 2
    int64_t count;     // elements
    int64_t step, size;
    Act act;
    double alpha, gain;
    double clamp;      // negative = none
};

// What a launch needs in addition to the arguments. Work is counted in packs of `width` elements.
template <class R> struct BiasActPlan {
    int width;         // 1 or kPackSize
    bool wide_index;   // 64-bit indices
    bool bias_packs;   // a pack of x has a pack of biases instead of a single bias
    int64_t packs, tail;
    int64_t step, size;  // in the same units: the bias, or pack of biases, of pack i is i / step % size
    R alpha, gain;
    R bound;           // of the output's magnitude, as it is stored
    bool clamped;
};

template <class T> BiasActPlan<Math<T>> plan_bias_act(const BiasActArgs& a) {
    constexpr int N = kPackSize<T>;
    const bool aligned = is_aligned(a.out) && is_aligned(a.x) && is_aligned(a.g) && is_aligned(a.dy);
    const bool one_bias = a.b == nullptr || a.step % N == 0;
    const bool bias_packs = !one_bias && a.step == 1 && a.size % N == 0 && is_aligned(a.b);
    BiasActPlan<Math<T>> p{};
    p.width = N > 1 && aligned && (one_bias || bias_packs) ? N : 1;
    p.wide_index = a.count / p.width >= (int64_t(1) << 31);
    if (p.wide_index) p.width = 1;
    p.bias_packs = p.width > 1 && bias_packs;
    p.packs = a.count / p.width;
    p.tail = a.count % p.width;  // only without a bias: with one, count is a multiple of step * size
    p.step = p.bias_packs || a.b == nullptr ? 1 : a.step / p.width;
    p.size = p.bias_packs ? a.size / p.width : a.size;
    p.alpha = Math<T>(a.alpha), p.gain = Math<T>(a.gain);
    p.clamped = a.clamp >= 0;
    p.bound = widen(Narrow<T>::from(Math<T>(a.clamp)));
    return p;
}

template <Act act, Order order, class T>
HD T bias_act_element(const BiasActPlan<Math<T>>& p, T x, Math<T> b, T g, T dy) {
    using R = Math<T>;
    if constexpr (order == Order::value) {
        R v = activate<act>(widen(x) + b, p.alpha) * p.gain;
        if (p.clamped) v = v > p.bound ? p.bound : (v < -p.bound ? -p.bound : v);  // comparisons let a NaN through
        return Narrow<T>::from(v);
    } else if constexpr (kPiecewise<act>) {
        const R y = widen(x);
        const bool inside = !p.clamped || std::fabs(y) < p.bound;
        const R d = order == Order::first ? slope<act>(y * p.gain, p.alpha) * p.gain * widen(g) : R(0);
        return Narrow<T>::from(inside ? d : R(0));
    } else {
        const R u = widen(x) + b;
        const bool inside = !p.clamped || std::fabs(activate<act>(u, p.alpha) * p.gain) <= p.bound;
        const R d = order == Order::first ? slope<act>(u, p.alpha) : curvature<act>(u) * widen(dy);
        return Narrow<T>::from(inside ? d * p.gain * widen(g) : R(0));
    }
}

// Pack number i of `N` elements. The position of the bias is in units of the plan.
template <Act act, Order order, int N, class T, class Index>
HD void bias_act_pack(const BiasActArgs& a, const BiasActPlan<Math<T>>& p, Index i) {
    using R = Math<T>;
    const int64_t at = int64_t(i) * N;
    const auto x = load_pack<N>(static_cast<const T*>(a.x) + at);
    Pack<T, N> g = x, dy = x, out;
    if constexpr (order != Order::value) g = load_pack<N>(static_cast<const T*>(a.g) + at);
    if constexpr (order == Order::second) dy = load_pack<N>(static_cast<const T*>(a.dy) + at);
    R b[N] = {};
    if (a.b != nullptr) {
        const T* bias = static_cast<const T*>(a.b);
        const Index place = i / Index(p.step) % Index(p.size);
        if (p.bias_packs) {
            const auto pack = load_pack<N>(bias + int64_t(place) * N);
            UNROLL for (int j = 0; j < N; j++) b[j] = widen(pack.at[j]);
        } else {
            const R one = widen(bias[place]);
            UNROLL for (int j = 0; j < N; j++) b[j] = one;
        }
    }
    UNROLL for (int j = 0; j < N; j++) out.at[j] = bias_act_element<act, order, T>(p, x.at[j], b[j], g.at[j], dy.at[j]);
    store_pack<N>(static_cast<T*>(a.out) + at, out);
}

// The work of one thread: pack `i` or, one past the last pack, the elements that remain.
template <Act act, Order order, int N, class T, class Index>
HD void bias_act_item(const BiasActArgs& a, const BiasActPlan<Math<T>>& p, Index i) {
    if (int64_t(i) < p.packs) return bias_act_pack<act, order, N, T>(a, p, i);
    if constexpr (N > 1) {
        for (int64_t j = p.packs * N; j < a.count; j++) bias_act_pack<act, order, 1, T>(a, p, Index(j));
    }
}

// The activation is chosen outside the loop over a pack: one uniform branch per pack, instead of a kernel for each.
template <Order order, int N, class T, class Index>
HD void bias_act_item(const BiasActArgs& a, const BiasActPlan<Math<T>>& p, Index i) {
    switch (a.act) {
        case Act::linear: return bias_act_item<Act::linear, order, N, T>(a, p, i);
        case Act::relu: return bias_act_item<Act::relu, order, N, T>(a, p, i);
        case Act::lrelu: return bias_act_item<Act::lrelu, order, N, T>(a, p, i);
        case Act::tanh: return bias_act_item<Act::tanh, order, N, T>(a, p, i);
        case Act::sigmoid: return bias_act_item<Act::sigmoid, order, N, T>(a, p, i);
        case Act::elu: return bias_act_item<Act::elu, order, N, T>(a, p, i);
        case Act::selu: return bias_act_item<Act::selu, order, N, T>(a, p, i);
        case Act::softplus: return bias_act_item<Act::softplus, order, N, T>(a, p, i);
        case Act::swish: return bias_act_item<Act::swish, order, N, T>(a, p, i);
    }
}

// Passes the arguments to `run`, whose template arguments select the kernel.
template <Order order, class T, class Run> auto dispatch_bias_act(const BiasActArgs& a, Run&& run) {
    const auto p = plan_bias_act<T>(a);
    if (p.wide_index) return run.template operator()<order, 1, T, uint64_t>(a, p);
    if (p.width > 1) return run.template operator()<order, kPackSize<T>, T, uint32_t>(a, p);
    return run.template operator()<order, 1, T, uint32_t>(a, p);
}

template <class T, class Run> auto dispatch_bias_act(Order order, const BiasActArgs& a, Run&& run) {
    if (order == Order::value) return dispatch_bias_act<Order::value, T>(a, run);
    if (order == Order::first) return dispatch_bias_act<Order::first, T>(a, run);
    return dispatch_bias_act<Order::second, T>(a, run);
}

}  // namespace ops
