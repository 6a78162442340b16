// NNAL's library as far as torch_npu links it. The reference kernels stand before all of its
// operators, so that none of these is ever called.

#define LINKED(number, symbol)               \
  extern "C" long linked_##number() __asm__(symbol); \
  long linked_##number() { return 1; }

LINKED(0, "_ZN3atb13CreateContextEPPNS_7ContextE")
LINKED(1, "_ZN3atb14DestroyContextEPNS_7ContextE")
LINKED(2, "_ZN3atb15CreateOperationINS_5infer11LinearParamEEEiRKT_PPNS_9OperationE")
LINKED(3, "_ZN3atb15CreateOperationINS_5infer12ElewiseParamEEEiRKT_PPNS_9OperationE")
LINKED(4, "_ZN3atb15CreateOperationINS_5infer12RmsNormParamEEEiRKT_PPNS_9OperationE")
LINKED(5, "_ZN3atb15CreateOperationINS_5infer14GroupTopkParamEEEiRKT_PPNS_9OperationE")
LINKED(6, "_ZN3atb15CreateOperationINS_5infer18SelfAttentionParamEEEiRKT_PPNS_9OperationE")
LINKED(7, "_ZN3atb15CreateOperationINS_5infer19PagedAttentionParamEEEiRKT_PPNS_9OperationE")
LINKED(8, "_ZN3atb15CreateOperationINS_5infer20ReshapeAndCacheParamEEEiRKT_PPNS_9OperationE")
LINKED(9, "_ZN3atb15CreateOperationINS_5infer9RopeParamEEEiRKT_PPNS_9OperationE")
LINKED(10, "_ZN3atb16DestroyOperationEPNS_9OperationE")
LINKED(11, "_ZN3atb5Utils13GetTensorSizeERKNS_6TensorE")
