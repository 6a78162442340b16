// A device guard for CUDA that does nothing, for torch built without CUDA: with it, fake tensors of
// device "cuda" can be indexed and written as others can. torch replaces its own guard by this one
// where it is built with CUDA and sees no device.

#include <c10/core/impl/DeviceGuardImplInterface.h>

static c10::impl::DeviceGuardImplRegistrar registered(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
