#pragma once

// Rules and formats are compiled once per instruction set, inside the caller's target region: they have to be inlined
// there, or they would be emitted for the baseline and could not name vector registers.
#if defined(__GNUC__)
#define FORGE_INLINE inline __attribute__((always_inline))
#else
#define FORGE_INLINE inline
#endif
