// Stand-ins, written for these tests, for the functions of CANN's run time that torch_npu calls to start, to copy and
// to wait. With ASCEND_STUB_DEVICES=0 (the default) there is no card; with 1 there is one whose memory is host memory.
// stub_libraries.py adds a stub for every other function that the installed torch_npu asks for.
//
// ASCEND_STUB_TRACE=1 prints each call.

#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  OK = 0,
  NO_CONTEXT = 107002,
  NO_MEMORY = 207001,
  NO_DEVICE = 507008,  // any error of the run time would do
};

static const size_t MEMORY = (size_t)8 << 30;  // of the card, in bytes
static atomic_size_t used;
static _Thread_local int current = -1;  // a context belongs to a thread
static char context[64];  // only its address is looked at

static unsigned devices(void) {
  const char *count = getenv("ASCEND_STUB_DEVICES");
  return count ? (unsigned)atoi(count) : 0;
}

__attribute__((visibility("hidden"))) void ascend_stub_trace(const char *name) {
  static int wanted = -1;
  if (wanted < 0) {
    const char *value = getenv("ASCEND_STUB_TRACE");
    wanted = value && strcmp(value, "1") == 0;
  }
  if (wanted) fprintf(stderr, "[acl stub] %s\n", name);
}
#define TRACE() ascend_stub_trace(__func__)

// Start and end

int aclInit(const char *path) { TRACE(); return devices() ? OK : NO_DEVICE; }
int aclFinalize(void) { TRACE(); return OK; }
const char *aclGetRecentErrMsg(void) { TRACE(); return "stand-in for CANN"; }
void aclAppLog(int level, const char *function, const char *file, unsigned line, const char *format, ...) {}
int aclmdlInitDump(void) { TRACE(); return OK; }
int aclmdlSetDump(const char *path) { TRACE(); return OK; }
int aclmdlFinalizeDump(void) { TRACE(); return OK; }

// Devices and contexts

int aclrtGetDeviceCount(unsigned *count) { TRACE(); *count = devices(); return OK; }
int aclrtSetDevice(int device) {
  TRACE();
  if ((unsigned)device >= devices()) return NO_DEVICE;
  current = device;
  return OK;
}
int aclrtGetDevice(int *device) {
  TRACE();
  if (current < 0) return NO_CONTEXT;
  *device = current;
  return OK;
}
int aclrtResetDevice(int device) { TRACE(); return OK; }
const char *aclrtGetSocName(void) { TRACE(); return "Ascend910B3"; }
int aclGetDeviceCapability(unsigned device, int what, int64_t *value) { TRACE(); *value = 24; return OK; }
int aclrtDeviceCanAccessPeer(int *can, int device, int peer) { TRACE(); *can = 0; return OK; }
int aclrtGetCurrentContext(void **out) { TRACE(); *out = context; return OK; }
int aclrtSetCurrentContext(void *in) { TRACE(); return OK; }
int aclrtGetPrimaryCtxState(int device, unsigned *flags, int *active) {
  TRACE();
  if (flags) *flags = 0;
  *active = 1;
  return OK;
}

// Settings

size_t aclGetCompileoptSize(int option) { TRACE(); return sizeof "disable"; }
int aclGetCompileopt(int option, char *value, size_t size) { TRACE(); snprintf(value, size, "disable"); return OK; }
int aclSetCompileopt(int option, const char *value) { TRACE(); return OK; }
int aclrtGetSysParamOpt(int option, int64_t *value) { TRACE(); *value = 0; return OK; }
int aclrtSetSysParamOpt(int option, int64_t value) { TRACE(); return OK; }
int aclrtCtxSetSysParamOpt(int option, int64_t value) { TRACE(); return OK; }
int aclrtSetDeviceSatMode(int mode) { TRACE(); return OK; }
int aclrtSetOpWaitTimeout(unsigned seconds) { TRACE(); return OK; }
int aclrtSetOpExecuteTimeOut(unsigned seconds) { TRACE(); return OK; }
int aclrtSetStreamFailureMode(void *stream, uint64_t mode) { TRACE(); return OK; }
int aclrtPeekAtLastError(int level) { TRACE(); return OK; }
int aclrtGetLastError(int level) { TRACE(); return OK; }

// Memory

static int allocate(void **out, size_t size) {
  if (used + size > MEMORY) return NO_MEMORY;
  *out = aligned_alloc(512, (size + 511) / 512 * 512);
  if (!*out) return NO_MEMORY;
  used += malloc_usable_size(*out);
  return OK;
}
int aclrtMalloc(void **out, size_t size, int policy) { TRACE(); return allocate(out, size); }
int aclrtMallocAlign32(void **out, size_t size, int policy) { TRACE(); return allocate(out, size); }
int aclrtFree(void *memory) {
  TRACE();
  used -= malloc_usable_size(memory);
  free(memory);
  return OK;
}
int aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
  TRACE();
  *available = MEMORY - used;
  *total = MEMORY;
  return OK;
}
int aclrtMallocHost(void **out, size_t size) {
  TRACE();
  *out = aligned_alloc(512, (size + 511) / 512 * 512);
  return *out ? OK : NO_MEMORY;
}
int aclrtFreeHost(void *memory) { TRACE(); free(memory); return OK; }
int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) {
  TRACE();
  memcpy(to, from, size);
  return OK;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream) {
  TRACE();
  memcpy(to, from, size);
  return OK;
}
int aclrtMemset(void *memory, size_t room, int value, size_t size) {
  TRACE();
  memset(memory, value, size);
  return OK;
}
int aclrtMemsetAsync(void *memory, size_t room, int value, size_t size, void *stream) {
  TRACE();
  memset(memory, value, size);
  return OK;
}

// Streams and events: all that is asked for is done at once, so there is never anything to wait for

static int handle(void **out) { *out = calloc(1, 64); return *out ? OK : NO_MEMORY; }
int aclrtCreateStream(void **out) { TRACE(); return handle(out); }
int aclrtCreateStreamWithConfig(void **out, unsigned priority, unsigned flags) { TRACE(); return handle(out); }
int aclrtDestroyStream(void *stream) { TRACE(); free(stream); return OK; }
int aclrtDestroyStreamForce(void *stream) { TRACE(); free(stream); return OK; }
int aclrtStreamQuery(void *stream, int *status) { TRACE(); *status = 1; return OK; }
int aclrtStreamGetId(void *stream, int *id) { TRACE(); *id = 1; return OK; }
int aclrtStreamWaitEvent(void *stream, void *event) { TRACE(); return OK; }
int aclrtSynchronizeStream(void *stream) { TRACE(); return OK; }
int aclrtSynchronizeStreamWithTimeout(void *stream, int milliseconds) { TRACE(); return OK; }
int aclrtSynchronizeDevice(void) { TRACE(); return OK; }
int aclrtSynchronizeDeviceWithTimeout(int milliseconds) { TRACE(); return OK; }
int aclrtCreateEventWithFlag(void **out, unsigned flags) { TRACE(); return handle(out); }
int aclrtCreateEventExWithFlag(void **out, unsigned flags) { TRACE(); return handle(out); }
int aclrtDestroyEvent(void *event) { TRACE(); free(event); return OK; }
int aclrtRecordEvent(void *event, void *stream) { TRACE(); return OK; }
int aclrtResetEvent(void *event, void *stream) { TRACE(); return OK; }
int aclrtQueryEventStatus(void *event, int *status) { TRACE(); *status = 1; return OK; }
int aclrtQueryEventWaitStatus(void *event, int *status) { TRACE(); *status = 1; return OK; }
int aclrtSynchronizeEvent(void *event) { TRACE(); return OK; }
int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) { TRACE(); *milliseconds = 0; return OK; }

// Profiler

int MsprofRegisterCallback(unsigned module, void *callback) { TRACE(); return OK; }
int MsprofReportAdditionalInfo(unsigned aging, const void *data, unsigned size) { TRACE(); return OK; }
int MsprofReportApi(unsigned aging, const void *data) { TRACE(); return OK; }
int MsprofReportCompactInfo(unsigned aging, const void *data, unsigned size) { TRACE(); return OK; }
uint64_t MsprofSysCycleTime(void) { return 0; }
uint64_t MsprofGetHashId(const char *text, size_t size) { return 0; }
