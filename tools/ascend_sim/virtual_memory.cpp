// Virtual memory: addresses are reserved, memory is counted, and mapping joins the two.

#include "memory.h"

using namespace sim;

extern "C" {

aclError aclrtReserveMemAddress(void** address, size_t size, size_t, void*, uint64_t) {
  if (current_device() < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *address = arena(current_device()).reserve(size);
  return *address ? ACL_SUCCESS : ACL_ERROR_RT_MEMORY_ALLOCATION;
}

aclError aclrtReleaseMemAddress(void* address) {
  for (int index = 0; index < kDevices; ++index) {
    if (arena(index).unreserve(address)) return ACL_SUCCESS;
  }
  return ACL_ERROR_RT_PARAM_INVALID;
}

struct Physical {
  int device;
  size_t size;
};

aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t size,
                             const aclrtPhysicalMemProp* wanted, uint64_t) {
  const int index = wanted ? static_cast<int>(wanted->location.id) : current_device();
  if (!arena(index).charge(size)) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, std::to_string(size) + " bytes are not free");
  }
  *handle = reinterpret_cast<aclrtDrvMemHandle>(new Physical{index, size});
  trace("aclrtMallocPhysical device=%d bytes=%zu", index, size);
  return ACL_SUCCESS;
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  auto* held = reinterpret_cast<Physical*>(handle);
  arena(held->device).discharge(held->size);
  trace("aclrtFreePhysical device=%d bytes=%zu", held->device, held->size);
  delete held;
  return ACL_SUCCESS;
}

aclError aclrtMapMem(void* address, size_t size, size_t, aclrtDrvMemHandle handle, uint64_t) {
  return arena(reinterpret_cast<Physical*>(handle)->device).map(address, size)
             ? ACL_SUCCESS
             : ACL_ERROR_RT_PARAM_INVALID;
}

aclError aclrtUnmapMem(void* address) {
  for (int index = 0; index < kDevices; ++index) {
    if (arena(index).unmap(address)) return ACL_SUCCESS;
  }
  return ACL_ERROR_RT_PARAM_INVALID;
}

}  // extern "C"
