#pragma once

// First include of every *_isa.cpp. Such a source is compiled once for each instruction set, which FORGE_ISA_… names;
// its code stands between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE in a namespace of its own, and everything that
// is not a vector template is included before: what is shared must not be compiled for more than the baseline, the
// linker would keep either copy.
#include "hwy/detect_targets.h"

#undef HWY_TARGET
#if defined(FORGE_ISA_AVX2)
#define HWY_TARGET HWY_AVX2
#define FORGE_ISA(name) name##_avx2
#elif defined(FORGE_ISA_AVX3)
#define HWY_TARGET HWY_AVX3
#define FORGE_ISA(name) name##_avx512
#elif defined(FORGE_ISA_STATIC)
#define HWY_TARGET HWY_STATIC_TARGET
#define FORGE_ISA(name) name##_neon
#else
#error "compile with one of FORGE_ISA_AVX2, FORGE_ISA_AVX3, FORGE_ISA_STATIC"
#endif

#include "hwy/highway.h"

// Below AVX2 + FMA, Highway's MulAdd rounds twice.
static_assert(HWY_TARGET != HWY_SSE4 && HWY_TARGET != HWY_SSSE3 && HWY_TARGET != HWY_SCALAR);
