/// What AMX adds to the kernels for AVX-512: a wide kernel, and a narrow one over integer codes, that
/// multiply in matrix registers. The build gives this file, and no other, the flags it needs.
/// isa_avx512.cpp puts them into a table beside the other kernels, which are the same.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE amx
#include "kernels/cpu/codes.hpp"
#include "kernels/cpu/matrix.hpp"
#endif
