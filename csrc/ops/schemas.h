// The operators' schemas. dasr_ops/_library.py repeats them for builds without this extension; a
// test compares the two.
#pragma once

#define DASR_CONV_OPTIONS                                                            \
  "int[] stride, int[] padding, int[] dilation, int groups, float? negative_slope, " \
  "float residual_scale, int upscale_factor"
#define DASR_SWITCHES "bool deterministic, bool fast_fp32"

namespace dasr {

constexpr const char* kSchemas[] = {
    "aggregate_experts(Tensor weight, Tensor routing_weights, ScalarType dtype) -> Tensor",

    "aggregate_experts_backward(Tensor grad_output, Tensor weight, Tensor routing_weights, "
    "bool[] output_mask) -> (Tensor, Tensor)",

    "aggregate_experts_stack(Tensor[] weight, Tensor routing_weights, ScalarType dtype) "
    "-> Tensor[]",

    "aggregate_experts_stack_backward(Tensor[] grad_output, Tensor[] weight, "
    "Tensor routing_weights, bool[] output_mask) -> (Tensor[], Tensor)",

    "conv2d_inference(Tensor input, Tensor weight, Tensor? routing_weights, Tensor? bias, "
    "Tensor? residual, int[] geometry, float? negative_slope, float residual_scale) -> Tensor",

    "dynamic_conv2d(Tensor input, Tensor weight, Tensor routing_weights, Tensor? bias, "
    "Tensor? residual, " DASR_CONV_OPTIONS ", bool save_mask, " DASR_SWITCHES
    ") -> (Tensor, Tensor)",

    "dynamic_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, "
    "Tensor routing_weights, Tensor? bias, Tensor? output, Tensor? mask, " DASR_CONV_OPTIONS
    ", bool[] output_mask, " DASR_SWITCHES ") -> (Tensor, Tensor, Tensor, Tensor)",

    "per_sample_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? "
    "residual, " DASR_CONV_OPTIONS ", bool save_mask, " DASR_SWITCHES ") -> (Tensor, Tensor)",

    "per_sample_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, "
    "Tensor? output, Tensor? mask, " DASR_CONV_OPTIONS ", bool[] output_mask, " DASR_SWITCHES
    ") -> (Tensor, Tensor, Tensor)",
};

}  // namespace dasr
