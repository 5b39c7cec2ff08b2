// SPDX-License-Identifier: Apache-2.0
// Element types, the types in which they are computed, and 16-byte packs of them.
//
// The headers of this folder compile as CUDA and as plain C++: a kernel's body is a function of its block and thread
// numbers, which tests run in loops on a CPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HD __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_4 _Pragma("unroll 4")
#else
#define HD inline
#define UNROLL
#define UNROLL_4
#endif

namespace ops {

enum class Type : int { f16, bf16, f32, f64 };  // the numbers that torch_utils/ops/_plugin.py passes

template <class T> struct MathOf { using type = float; };
template <> struct MathOf<double> { using type = double; };
template <class T> using Math = typename MathOf<T>::type;

HD float widen(float v) { return v; }
HD double widen(double v) { return v; }
template <class T> struct Narrow { static HD T from(T v) { return v; } };

#ifdef __CUDACC__
// Explicit, because PyTorch's build flags disable the implicit conversions.
HD float widen(__half v) { return __half2float(v); }
HD float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
template <> struct Narrow<__half> { static HD __half from(float v) { return __float2half_rn(v); } };
template <> struct Narrow<__nv_bfloat16> { static HD __nv_bfloat16 from(float v) { return __float2bfloat16_rn(v); } };
#endif

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

// Elements in the widest access of a thread. Doubles, which are for gradient checks, are accessed one by one.
template <class T> constexpr int kPackSize = sizeof(T) > 4 ? 1 : 16 / static_cast<int>(sizeof(T));

template <int N, class T> HD Pack<T, N> load_pack(const T* p) { return *reinterpret_cast<const Pack<T, N>*>(p); }
template <int N, class T> HD void store_pack(T* p, const Pack<T, N>& v) { *reinterpret_cast<Pack<T, N>*>(p) = v; }

inline bool is_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace ops
