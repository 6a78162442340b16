// Devices, contexts and what else a process asks of the runtime before it works.

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "memory.h"
#include "sim.h"
#include "streams.h"

namespace sim {
namespace {

thread_local int device = -1;
thread_local std::string message;
char contexts[kDevices];
constexpr char kVersion[] = "9.1.0";  // of the CANN that this torch_npu is made for

bool exists(int32_t index) { return index >= 0 && index < visible_devices(); }

aclError no_device(int32_t index) {
  return fail(ACL_ERROR_RT_INVALID_DEVICEID, "device " + std::to_string(index) + " does not exist");
}

template <typename Function>
Function python(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

long setting(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atol(text) : otherwise;
}

int visible_devices() {
  const char* chosen = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (!chosen) return kDevices;
  int count = 0;
  for (const char* at = chosen; *at >= '0' && *at < '0' + kDevices; at += at[1] == ',' ? 2 : 1) {
    ++count;
    if (at[1] != ',') break;
  }
  return count;
}

int current_device() { return device; }

aclError fail(aclError code, const std::string& text) {
  message = "simulated device: " + text;
  trace("error code=%d %s", code, text.c_str());
  return code;
}

Unlocked::Unlocked() {
  auto held = python<int (*)()>("PyGILState_Check");
  auto alive = python<int (*)()>("Py_IsInitialized");
  if (held && alive && alive() && held()) state_ = python<void* (*)()>("PyEval_SaveThread")();
}

Unlocked::~Unlocked() {
  if (state_) python<void (*)(void*)>("PyEval_RestoreThread")(state_);
}

}  // namespace sim

using namespace sim;

extern "C" {

char* ascend_sim_take_trace() { return strdup(Trace::get().take().c_str()); }
void ascend_sim_note(const char* line) { trace("%s", line); }

aclError aclInit(const char*) {
  const long fault = setting("ASCEND_SIM_INIT_FAULT", 0);
  if (fault) return fail(static_cast<aclError>(fault), "aclInit was told to fail");
  trace("aclInit");
  return ACL_SUCCESS;
}

aclError aclFinalize() {
  trace("aclFinalize");
  return ACL_SUCCESS;
}

const char* aclGetRecentErrMsg() { return message.c_str(); }

void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

const char* aclrtGetSocName() {
  const char* name = std::getenv("ASCEND_SIM_SOC");
  return name && *name ? name : "Ascend910B2";
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = visible_devices();
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t index) {
  const long fault = setting("ASCEND_SIM_SET_DEVICE_FAULT", 0);
  if (fault) return fail(static_cast<aclError>(fault), "aclrtSetDevice was told to fail");
  if (!exists(index)) return no_device(index);
  device = index;
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t* index) {
  if (device < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *index = device;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t index) { return exists(index) ? ACL_SUCCESS : no_device(index); }

aclError aclrtGetCurrentContext(aclrtContext* context) {
  if (device < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *context = &contexts[device];
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  const auto index = static_cast<char*>(context) - contexts;
  if (!exists(static_cast<int32_t>(index))) return ACL_ERROR_RT_CONTEXT_NULL;
  device = static_cast<int>(index);
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t index, uint32_t* flags, int32_t* active) {
  if (!exists(index)) return no_device(index);
  if (flags) *flags = 0;
  if (active) *active = has_streams(index);
  return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t first, int32_t second) {
  *can = exists(first) && exists(second) && first != second;
  return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t) {
  if (!exists(peer)) return no_device(peer);
  trace("aclrtDeviceEnablePeerAccess device=%d peer=%d", device, peer);
  return ACL_SUCCESS;
}

aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t* const logic) {
  *logic = user;
  return exists(user) ? ACL_SUCCESS : no_device(user);
}

// Cores of each kind: enough for whoever divides work by them.
aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr, int64_t* value) {
  *value = 24;
  return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t* value) {
  *value = 24;
  return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char*, char* version) {
  std::strcpy(version, kVersion);
  return ACL_SUCCESS;
}

aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* found) {
  *found = {};
  std::strcpy(found->version, kVersion);
  return ACL_SUCCESS;
}

aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOutV2(uint64_t wanted, uint64_t* actual) {
  if (actual) *actual = wanted;
  return ACL_SUCCESS;
}
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclmdlInitDump() { return ACL_SUCCESS; }
aclError aclmdlSetDump(const char*) { return ACL_SUCCESS; }
aclError aclmdlFinalizeDump() { return ACL_SUCCESS; }

}  // extern "C"
