// SPDX-License-Identifier: Apache-2.0
// The nine activations a(u) with their first and second derivatives, as in torch_utils/ops/bias_act_ref.py.
#pragma once

#include <cmath>

#include "scalar.h"

namespace ops {

enum class Act : int { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// Linear on either side of 0: the sign of the output gives the slope, and the second derivative is 0.
template <Act act> constexpr bool kPiecewise = act == Act::linear || act == Act::relu || act == Act::lrelu;

// Klambauer et al., Self-Normalizing Neural Networks (arXiv 1706.02515), section 2.
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;

template <class R> HD R sigmoid(R u) { return R(1) / (R(1) + std::exp(-u)); }

// The activation itself.
template <Act act, class R> HD R activate(R u, R alpha) {
    if constexpr (act == Act::relu) return u < R(0) ? R(0) : u;  // this comparison lets a NaN through
    if constexpr (act == Act::lrelu) return u > R(0) ? u : u * alpha;
    if constexpr (act == Act::tanh) return std::tanh(u);
    if constexpr (act == Act::sigmoid) return sigmoid(u);
    if constexpr (act == Act::elu) return u > R(0) ? u : std::expm1(u);
    if constexpr (act == Act::selu) return R(kSeluScale) * (u > R(0) ? u : R(kSeluAlpha) * std::expm1(u));
    if constexpr (act == Act::softplus) return u > R(20) ? u : std::log1p(std::exp(u));  // PyTorch's threshold
    if constexpr (act == Act::swish) return u * sigmoid(u);
    return u;
}

// First derivative. For the piecewise activations only the sign of `u` matters.
template <Act act, class R> HD R slope(R u, R alpha) {
    if constexpr (act == Act::relu) return u > R(0) ? R(1) : R(0);
    if constexpr (act == Act::lrelu) return u > R(0) ? R(1) : alpha;
    if constexpr (act == Act::tanh) {
        const R t = std::tanh(u);
        return R(1) - t * t;
    }
    if constexpr (act == Act::sigmoid) {
        const R s = sigmoid(u);
        return s * (R(1) - s);
    }
    if constexpr (act == Act::elu) return u > R(0) ? R(1) : std::exp(u);
    if constexpr (act == Act::selu) return R(kSeluScale) * (u > R(0) ? R(1) : R(kSeluAlpha) * std::exp(u));
    if constexpr (act == Act::softplus) return sigmoid(u);
    if constexpr (act == Act::swish) {
        const R s = sigmoid(u);
        return s * (R(1) + u * (R(1) - s));
    }
    return R(1);
}

// Second derivative; 0 at the kink of elu and selu, as in PyTorch.
template <Act act, class R> HD R curvature(R u) {
    if constexpr (act == Act::tanh) {
        const R t = std::tanh(u);
        return R(-2) * t * (R(1) - t * t);
    }
    if constexpr (act == Act::elu) return u < R(0) ? std::exp(u) : R(0);
    if constexpr (act == Act::selu) return u < R(0) ? R(kSeluScale * kSeluAlpha) * std::exp(u) : R(0);
    if constexpr (act == Act::sigmoid || act == Act::softplus || act == Act::swish) {
        const R s = sigmoid(u), d = s * (R(1) - s);
        if constexpr (act == Act::sigmoid) return d * (R(1) - R(2) * s);
        if constexpr (act == Act::softplus) return d;
        return d * (R(2) + u * (R(1) - R(2) * s));
    }
    return R(0);
}

}  // namespace ops
