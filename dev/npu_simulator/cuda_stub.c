// Stand-ins, written for these tests, for the functions of CUDA's run time that torch calls where there is no GPU. With
// them a CUDA build of torch is one for the CPU. stub_libraries.py adds a stub for every other function.

enum { OK = 0, NO_DEVICE = 100 };

__attribute__((visibility("hidden"))) void ascend_stub_trace(const char *name) {}

int cudaGetDeviceCount(int *count) { *count = 0; return NO_DEVICE; }
int cudaDriverGetVersion(int *version) { *version = 0; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 0; return OK; }
const char *cudaGetErrorName(int error) { return "stand-in"; }
const char *cudaGetErrorString(int error) { return "stand-in for CUDA"; }
