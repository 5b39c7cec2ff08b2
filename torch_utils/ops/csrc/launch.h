// SPDX-License-Identifier: Apache-2.0
// The entries that plugin.cpp binds. Each enqueues one kernel on `stream` of the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "bias_act.h"
#include "upfirdn2d.h"

namespace ops {

cudaError_t launch_bias_act(Type type, Order order, const BiasActArgs& args, cudaStream_t stream);
cudaError_t launch_upfirdn2d(Type type, const Upfirdn2dArgs& args, cudaStream_t stream);

// Number of blocks for `items` work items, at most the largest grid; kernels loop over the remaining items.
inline unsigned int grid_for(int64_t items, int64_t per_block) {
    const int64_t blocks = (items + per_block - 1) / per_block, limit = (int64_t(1) << 31) - 1;
    return static_cast<unsigned int>(blocks < limit ? blocks : limit);
}

}  // namespace ops
