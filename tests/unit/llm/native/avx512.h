// The intrinsics of AVX-512 VNNI that isa.h uses, for tests on CPUs that have AVX2 only.
//
// Most have a namesake for 256 bits, which does the work on each half.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VNNI__ 1

namespace emulated {

typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef int8_t Signed __attribute__((vector_size(64), may_alias));
typedef uint8_t Unsigned __attribute__((vector_size(64), may_alias));

template <class Half, class Whole>
inline Half half(Whole x, int i) {
    static_assert(2 * sizeof(Half) == sizeof x);
    Half h;
    std::memcpy(&h, (char*)&x + i * sizeof h, sizeof h);
    return h;
}
inline __m256 part(__m512 x, int i) { return half<__m256>(x, i); }
inline __m256i part(__m512i x, int i) { return half<__m256i>(x, i); }
inline __m128i part(__m256i x, int i) { return half<__m128i>(x, i); }
inline int part(int x, int) { return x; }

template <class Whole, class Op, class... Args>
inline Whole twice(Op op, Args... args) {
    Whole x;
    for (int i = 0; i < 2; i++) {
        auto h = op(part(args, i)...);
        std::memcpy((char*)&x + i * sizeof h, &h, sizeof h);
    }
    return x;
}

template <class Vector, class Number>
inline Vector all(Number number) {
    Vector x;
    for (size_t i = 0; i < sizeof x; i += sizeof number) std::memcpy((char*)&x + i, &number, sizeof number);
    return x;
}
template <class Vector>
inline Vector read(const void* p) {
    Vector x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// Four unsigned bytes of a times four signed ones of b onto each number; nothing saturates.
inline __m512i dpbusd(__m512i onto, __m512i a, __m512i b) {
    Ints sums = (Ints)onto;
    for (int i = 0; i < 64; i++) sums[i / 4] += ((Unsigned)a)[i] * ((Signed)b)[i];
    return (__m512i)sums;
}
inline __m128i lowest_bytes(__m512i a) {
    int8_t bytes[16];
    for (int i = 0; i < 16; i++) bytes[i] = int8_t(((Ints)a)[i]);
    return read<__m128i>(bytes);
}
inline __mmask16 compare(__m512 a, __m512 b, int how) {
    int mask = 0;
    if (how != _CMP_GE_OQ) __builtin_trap();
    for (int i = 0; i < 16; i++) mask |= (a[i] >= b[i]) << i;
    return __mmask16(mask);
}
inline __m512 keep(__mmask16 mask, __m512 a) {
    for (int i = 0; i < 16; i++) a[i] = mask >> i & 1 ? a[i] : 0;
    return a;
}
// Compilers fold the upper half onto the lower one until one number is left.
template <class Vector, class Op>
inline auto reduce(Vector x, Op op) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] = op(x[i], x[i + n]);
    return x[0];
}

}  // namespace emulated

#define TWICE(Whole, name, ...) emulated::twice<Whole>([](auto... x) { return name(x...); }, __VA_ARGS__)
#define _mm512_add_ps(a, b) TWICE(__m512, _mm256_add_ps, a, b)
#define _mm512_sub_ps(a, b) TWICE(__m512, _mm256_sub_ps, a, b)
#define _mm512_mul_ps(a, b) TWICE(__m512, _mm256_mul_ps, a, b)
#define _mm512_div_ps(a, b) TWICE(__m512, _mm256_div_ps, a, b)
#define _mm512_max_ps(a, b) TWICE(__m512, _mm256_max_ps, a, b)
#define _mm512_min_ps(a, b) TWICE(__m512, _mm256_min_ps, a, b)
#define _mm512_fmadd_ps(a, b, c) TWICE(__m512, _mm256_fmadd_ps, a, b, c)
#define _mm512_cvtph_ps(a) TWICE(__m512, _mm256_cvtph_ps, a)
#define _mm512_cvtepi32_ps(a) TWICE(__m512, _mm256_cvtepi32_ps, a)
#define _mm512_cvtps_epi32(a) TWICE(__m512i, _mm256_cvtps_epi32, a)
#define _mm512_cvtepu16_epi32(a) TWICE(__m512i, _mm256_cvtepu16_epi32, a)
#define _mm512_add_epi32(a, b) TWICE(__m512i, _mm256_add_epi32, a, b)
#define _mm512_and_si512(a, b) TWICE(__m512i, _mm256_and_si256, a, b)
#define _mm512_slli_epi32(a, n) TWICE(__m512i, _mm256_slli_epi32, a, n)
#define _mm512_srli_epi16(a, n) TWICE(__m512i, _mm256_srli_epi16, a, n)
#define _mm512_abs_ps(a) TWICE(__m512, _mm256_andnot_ps, emulated::all<__m512>(-0.0f), a)
#define _mm512_roundscale_ps(a, how) \
    emulated::twice<__m512>([](__m256 x) { return _mm256_round_ps(x, how); }, a)  // To whole numbers.
#define _mm512_cmp_ps_mask emulated::compare
#define _mm512_maskz_mov_ps emulated::keep
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_cvtepi32_epi8 emulated::lowest_bytes
#define _mm512_castsi512_ps(a) ((__m512)(a))
#define _mm512_set1_ps(x) emulated::all<__m512>(float(x))
#define _mm512_set1_epi32(x) emulated::all<__m512i>(int32_t(x))
#define _mm512_set1_epi8(x) emulated::all<__m512i>(int8_t(x))
#define _mm512_setzero_si512() (__m512i{})
#define _mm512_loadu_ps(p) emulated::read<__m512>(p)
#define _mm512_loadu_si512(p) emulated::read<__m512i>(p)
#define _mm512_storeu_ps(p, x) ((void)(*(__m512_u*)(p) = (x)))
#define _mm512_reduce_add_ps(a) emulated::reduce(a, [](float x, float y) { return x + y; })
#define _mm512_reduce_max_ps(a) emulated::reduce(a, [](float x, float y) { return x > y ? x : y; })
#define _mm512_reduce_add_epi32(a) emulated::reduce((emulated::Ints)(a), [](int x, int y) { return x + y; })
