// Instructions that not every compiler's __builtin_cpu_supports has a name for, by CPUID. The binary's level covers what
// the system must save of them.

#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

#if defined(__x86_64__)
inline bool has_avx_vnni() {
  unsigned eax = 0, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

// Whether the processor multiplies tiles of bfloat16, as Intel's Sapphire Rapids and later do.
inline bool has_amx() {
#if defined(__x86_64__)
  unsigned eax, ebx, ecx, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1);
#else
  return false;
#endif
}

}  // namespace
