// The table of one instruction set, from what the files before it define.
#pragma once

#include "attention.inl"
#include "convolution.inl"
#include "norm.inl"
#include "product.inl"

extern const Kernels kTable;
const Kernels kTable{
    .name = PC_NAME,
    .lanes = kLanes,
    .packed_size = packed_size,
    .pack = pack,
    .pack_gated = pack_gated,
#ifdef PC_BF16
    .pack_bf16 = pack_bf16,
    .pack_gated_bf16 = pack_gated_bf16,
    .longest_bf16 = kLongest,
#else
    .pack_bf16 = nullptr,
    .pack_gated_bf16 = nullptr,
    .longest_bf16 = 0,
#endif
    .multiply = multiply,
    .convolution_size = convolution_size,
    .pack_convolution = pack_convolution,
    .convolution_units = convolution_units,
    .convolution_scratch = convolution_scratch,
    .convolve = convolve,
    .layer_norm = layer_norm,
    .moments = moments,
    .scale_shift = scale_shift,
    .packed_head_size = packed_head_size,
    .pack_head = pack_head,
    .attend = attend,
    .attend_scratch = attend_scratch,
    .attend_temporal = attend_temporal,
    .temporal_scratch = temporal_scratch,
};
