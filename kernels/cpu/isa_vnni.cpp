/// What AVX-512's VNNI adds to the kernels for AVX-512: a narrow one over integer codes. The build gives this file, and no
/// other, the flags it needs. isa_avx512.cpp puts it into a table beside the other kernels, which are the same.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE vnni
#include "kernels/cpu/codes_vnni.hpp"
#endif
