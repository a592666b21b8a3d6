#pragma once

// Rules and formats are compiled once per instruction set, inside the caller's target region: they have to be inlined
// there, or they would be emitted for the baseline and could not name vector registers. For a GPU the same source is
// compiled once more.
#if defined(__CUDACC__)
#define FORGE_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define FORGE_INLINE inline __attribute__((always_inline))
#else
#define FORGE_INLINE inline
#endif
