// What torch_npu links and this device does not have: each call says so. The vendor's headers are
// left out, since one line serves functions of any signature here.

#include <string>

namespace sim {
int fail(int code, const std::string& text);
}

#define ABSENT(name)                                            \
  extern "C" long name() {                                      \
    return sim::fail(207000, #name " is not simulated");        \
  }
// Of these the callers look at no result, or take 0 for an answer.
#define SILENT(name) \
  extern "C" long name() { return 0; }

SILENT(MsprofGetHashId)
SILENT(MsprofRegisterCallback)
SILENT(MsprofReportAdditionalInfo)
SILENT(MsprofReportApi)
SILENT(MsprofReportCompactInfo)
SILENT(MsprofSysCycleTime)
SILENT(aclrtProcessReport)
ABSENT(aclrtBinaryGetFunction)
ABSENT(aclrtBinaryLoadFromData)
ABSENT(aclrtDeviceGetBareTgid)
ABSENT(aclrtGetFunctionAddr)
ABSENT(aclrtMemExportToShareableHandle)
ABSENT(aclrtMemImportFromShareableHandle)
ABSENT(aclrtMemSetPidToShareableHandle)
ABSENT(rtDevBinaryRegister)
ABSENT(rtFunctionRegister)
ABSENT(rtGetC2cCtrlAddr)
ABSENT(rtKernelLaunch)

// Operators by name, which the reference kernels never reach.
SILENT(aclCreateDataBuffer)
SILENT(aclCreateTensorDesc)
SILENT(aclDestroyDataBuffer)
SILENT(aclDestroyTensorDesc)
SILENT(aclGetTensorDescDimV2)
SILENT(aclGetTensorDescFormat)
SILENT(aclGetTensorDescNumDims)
SILENT(aclGetTensorDescType)
SILENT(aclSetTensorDescName)
SILENT(aclSetTensorFormat)
SILENT(aclSetTensorPlaceMent)
SILENT(aclSetTensorShape)
SILENT(aclopCreateAttr)
SILENT(aclopDestroyAttr)
SILENT(aclopSetAttrBool)
SILENT(aclopSetAttrDataType)
SILENT(aclopSetAttrFloat)
SILENT(aclopSetAttrInt)
SILENT(aclopSetAttrListBool)
SILENT(aclopSetAttrListFloat)
SILENT(aclopSetAttrListInt)
SILENT(aclopSetAttrListListInt)
SILENT(aclopSetAttrString)

extern "C" long aclopCompileAndExecute(const char* name) {
  return sim::fail(100024, std::string("no kernel for ") + name);
}
