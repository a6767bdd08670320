/* The arithmetic of a merge for whole rows, with the very bits of its numpy twin, plain.py.

   K peers, `rows` one flat array per peer. Nothing is allocated here but a scratch of some tiles; no threads, no
   globals: the caller cuts the rows into slices. Every sum has one order, and a multiplication is fused with an addition
   only where it says so (compile with -ffp-contract=off), so the bits depend neither on the instruction set nor on the
   slices.

   The file includes itself: once for each instruction set, in there once for float and once for double. */

#ifndef SET

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define TILE 512 /* elements of a peer that are worked on at a time: 16 peers' fit the second cache */
#define BLOCK (1 << 18) /* elements whose products are added up by themselves: plain.BLOCK */
#define RUN (8 * TILE) /* elements of a peer that are announced together: the memory is fast in long runs only */
#define SUMS 32768 /* elements of a mean that are added up in the cache, GROUP peers at a time: long runs of each row */
#define GROUP 8 /* rows that are read at once: lines at one offset of more drive each other out of the first cache */
#define AHEAD 64 /* elements by which the reading of more rows is announced */
#define MAX_STRAIGHT 16 /* peers whose values are sorted in registers */
#define ALWAYS static inline __attribute__((always_inline))
#define JOIN3(a, b, c) a##_##b##_##c
#define NAME3(a, b, c) JOIN3(a, b, c)
#define NAME(function) NAME3(function, REAL, SET)

enum dtype { F64, F32, BF16, F16 }; /* as in native.py; so are the structs */
static const size_t width_of[] = {8, 4, 2, 2};
struct rows {
    int64_t dtype;
    int64_t num_peers;
    int64_t size;
    const void *const *rows;
};
struct order { /* of a median or trimmed mean */
    const int64_t *counts; /* weights.quanta */
    int64_t lower, upper; /* weights.bounds, or of a trimmed mean: weight below and above which nothing counts */
    double unit; /* of a trimmed mean: 1 / (weight that counts) */
    int64_t num_comparators;
    const int64_t *comparators; /* pairs that sort the peers; only used where they are not sorted in registers */
};
enum measure { GRAM, SQUARES, PRODUCTS };

/* Batcher's merge exchange (Knuth 5.2.2 M) for 16; without the comparators beyond N, it is that for N. */
#define NETWORK(S) \
    S(0, 8) S(1, 9) S(2, 10) S(3, 11) S(4, 12) S(5, 13) S(6, 14) S(7, 15) \
    S(0, 4) S(1, 5) S(2, 6) S(3, 7) S(8, 12) S(9, 13) S(10, 14) S(11, 15) \
    S(4, 8) S(5, 9) S(6, 10) S(7, 11) \
    S(0, 2) S(1, 3) S(4, 6) S(5, 7) S(8, 10) S(9, 11) S(12, 14) S(13, 15) \
    S(2, 8) S(3, 9) S(6, 12) S(7, 13) \
    S(2, 4) S(3, 5) S(6, 8) S(7, 9) S(10, 12) S(11, 13) \
    S(0, 1) S(2, 3) S(4, 5) S(6, 7) S(8, 9) S(10, 11) S(12, 13) S(14, 15) \
    S(1, 8) S(3, 10) S(5, 12) S(7, 14) \
    S(1, 4) S(3, 6) S(5, 8) S(7, 10) S(9, 12) S(11, 14) \
    S(1, 2) S(3, 4) S(5, 6) S(7, 8) S(9, 10) S(11, 12) S(13, 14)
#define EACH8(S) S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7)
#define EACH16(S) EACH8(S) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)

/* Narrow floats by their bits: the compilers' own types are not everywhere. Written for the vectoriser. */
static inline float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    float small = (float)(int32_t)rest * 0x1p-24f; /* right for denormal ones */
    uint32_t small_bits;
    memcpy(&small_bits, &small, 4);
    bits = (rest << 13) + 0x38000000u;
    bits = rest >= 0x7c00 ? bits + 0x38000000u : bits;
    bits = rest < 0x0400 ? small_bits : bits;
    bits |= sign;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline uint16_t to_half(float value) {
    uint32_t bits, sign, lost;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    float magnitude, shifted;
    memcpy(&magnitude, &bits, 4);
    shifted = magnitude + 0.5f; /* rounds a result that is denormal: its bits are at the end of 0.5's */
    memcpy(&lost, &shifted, 4);
    uint32_t normal = (bits - 0x38000000u + 0x0fff + (bits >> 13 & 1)) >> 13;
    uint32_t result = bits < 0x38800000u ? lost - 0x3f000000u : normal;
    result = bits >= 0x477ff000u ? 0x7c00 : result;
    result = bits > 0x7f800000u ? 0x7e00 : result;
    return (uint16_t)(sign | result);
}
static inline float from_bfloat(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline uint16_t to_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000u ? 0x7fc0 | (bits >> 16 & 0x8000) : rounded);
}

/* a * b + c, rounded once (IEEE 754's fusedMultiplyAdd), where the processor has no instruction for it: in doubles the
   product is exact, and a sum that is rounded to odd is not rounded to a middle between floats (Boldo and Melquiond,
   Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd, 2008). As plain._fused. */
static inline float fused(float a, float b, float c) {
    double product = (double)a * b, wide = c, sum = product + wide;
    double back = sum - product, lost = (product - (sum - back)) + (wide - back);
    int64_t bits;
    memcpy(&bits, &sum, 8);
    if ((lost > 0 || lost < 0) && !(bits & 1)) /* neither, where the sum is infinite or NaN */
        bits += (lost > 0) == (sum > 0) ? 1 : -1;
    memcpy(&sum, &bits, 8);
    return (float)sum;
}

#ifdef __FP_FAST_FMAF
#define FUSED __builtin_fmaf
#else
#define FUSED fused
#endif

/* Whether rows between which there is much arithmetic are announced. AMD's processors (Zen 4) need it; Intel's (Sapphire
   Rapids) find out by themselves, and the announcements cost Krum of 16 peers 10 % in float32, 40 % in float64. */
static int announcing(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return !__builtin_cpu_is("intel");
#else
    return 1;
#endif
}

static inline void streamed(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

static int all_equal(const struct order *order, int64_t num_peers) {
    for (int64_t peer = 1; peer < num_peers; peer++)
        if (order->counts[peer] != order->counts[0])
            return 0;
    return 1;
}
/* Whether between two neighbouring values lies more than the slack of weights.bounds. */
static int all_count(const struct order *order, int64_t num_peers) {
    for (int64_t peer = 0; peer < num_peers; peer++)
        if (order->counts[peer] <= 2 * num_peers)
            return 0;
    return 1;
}

/* To find a weighted median among N sorted values; with fewer probes, only their middle places come into question. */
#define ALL_PROBES(N) ((N) > 8 ? 4 : (N) > 4 ? 3 : (N) > 2 ? 2 : (N) > 1)
#define FIRST_PLACE(N, probes) ((N) > 1 << (probes) ? ((N) - (1 << (probes))) / 2 : 0)
/* How many probes (0, 1, 2) need not be made, whatever the values: the median is not before the place that even the
   heaviest peers leave, and not after the one that the lightest reach. */
static int probes_saved(const struct order *order, int num_peers) {
    int64_t counts[MAX_STRAIGHT], heaviest = 0, lightest = 0;
    int least = 0, most = 0, saved = 0;
    for (int peer = 0, place; peer < num_peers; peer++) {
        for (place = peer; place > 0 && counts[place - 1] > order->counts[peer]; place--)
            counts[place] = counts[place - 1];
        counts[place] = order->counts[peer];
    }
    while (least < num_peers - 1 && heaviest + counts[num_peers - 1 - least] < order->lower)
        heaviest += counts[num_peers - 1 - least++];
    while (most < num_peers - 1 && lightest + counts[most] < order->upper)
        lightest += counts[most++];
    for (int probes = ALL_PROBES(num_peers) - 1; probes > 0 && saved < 2; probes--, saved++) {
        int first = FIRST_PLACE(num_peers, probes);
        if (least < first || most >= first + (1 << probes))
            break;
    }
    return saved;
}

/* BYTES: of a register. PAIRS: peers by peers whose sums are kept in registers; FEW: peers, all by all. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SET plain
#define BYTES 16
#define PAIRS 2
#define FEW 3
#define STRAIGHT 0
#include "native.c"
#undef SET
#undef BYTES
#undef STRAIGHT
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SET avx2
#define BYTES 32
#define STRAIGHT 1
#include "native.c"
#undef SET
#undef BYTES
#undef PAIRS
#undef FEW
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define SET avx512
#define BYTES 64
#define PAIRS 5
#define FEW 7
#include "native.c"
#undef SET
#pragma GCC pop_options
#define PICK(set, function, real) \
    (set == 2 ? NAME3(function, real, avx512) : set == 1 ? NAME3(function, real, avx2) : NAME3(function, real, plain))
static int best(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}
#else
#define SET plain
#define BYTES 16
#define PAIRS 2
#define FEW 3
#define STRAIGHT 1
#include "native.c"
#undef SET
#define PICK(set, function, real) NAME3(function, real, plain)
static int best(void) { return 0; }
#endif

/* The rest is what native.py calls. `set`: 0 plain, 1 AVX2, 2 AVX-512; at most swarm_best(). Returns 0: no memory. */
#define CALL(function, ...) \
    (rows->dtype == F64 ? PICK(set, function, double)(__VA_ARGS__) : PICK(set, function, float)(__VA_ARGS__))
#define EXPORT __attribute__((visibility("default")))

EXPORT int swarm_best(void) { return best(); }
EXPORT int swarm_mean(int set, const struct rows *rows, const double *parts, void *out) {
    return CALL(mean, rows, parts, out);
}
EXPORT int swarm_median(int set, const struct rows *rows, const struct order *order, void *out) {
    return CALL(median, rows, order, out);
}
EXPORT int swarm_trimmed_mean(int set, const struct rows *rows, const struct order *order, void *out) {
    return CALL(trimmed_mean, rows, order, out);
}
/* `table`: for each BLOCK of the rows K x K sums, of which those with second >= first are set. */
EXPORT int swarm_sums(int set, const struct rows *rows, int measure, int64_t centre, double *table) {
    return measure == GRAM ? CALL(sums, rows, measure, centre, table)
                           : PICK(set, sums, double)(rows, measure, centre, table);
}
/* For each peer: whether no value is NaN or beyond `limit`. */
EXPORT int swarm_bounded(int set, const struct rows *rows, double limit, uint8_t *bounded) {
    return CALL(bounded, rows, limit, bounded);
}

#elif !defined(REAL)

#define REAL float
#define WHOLE int32_t
#include "native.c"
#undef REAL
#undef WHOLE
#define REAL double
#define WHOLE int64_t
#include "native.c"
#undef REAL
#undef WHOLE

#else

#define NARROW (sizeof(REAL) == 4)

/* A line of the cache, in PARTS registers of STEP elements. LOAD from anywhere, AT where a register begins. */
#define VECTOR NAME(vector)
#define LOOSE NAME(loose)
#define BITS NAME(bits)
#define STEP (64 / (int)sizeof(REAL))
#define PARTS (64 / BYTES)
typedef REAL VECTOR __attribute__((vector_size(BYTES)));
typedef WHOLE BITS __attribute__((vector_size(BYTES)));
typedef REAL LOOSE __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#define LOAD(place, part) (*(const LOOSE *)((place) + (part) * (BYTES / (int)sizeof(REAL))))
#define AT(place, part) (*(VECTOR *)((place) + (part) * (BYTES / (int)sizeof(REAL))))

/* The value at `i` of a row of that dtype. */
ALWAYS REAL NAME(value)(const int dtype, const char *row, int64_t i) {
    return dtype == F64  ? (REAL)((const double *)row)[i]
        : dtype == F32   ? (REAL)((const float *)row)[i]
        : dtype == BF16  ? (REAL)from_bfloat(((const uint16_t *)row)[i])
                         : (REAL)from_half(((const uint16_t *)row)[i]);
}
ALWAYS void NAME(widen)(const int dtype, const char *row, int64_t size, REAL *restrict room) {
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) { /* a line of 16 bits each; the next tile's is announced */
        __builtin_prefetch(row + (i + TILE) * width_of[dtype], 0, 2);
        for (int64_t j = i; j < i + 32; j++)
            room[j] = NAME(value)(dtype, row, j);
    }
    for (; i < size; i++)
        room[i] = NAME(value)(dtype, row, i);
}
/* One tile of one peer: where it lies, or widened (and filled up with zeros) in `room`. */
ALWAYS const REAL *NAME(tile)(const struct rows *rows, int64_t peer, int64_t start, REAL *room) {
    int64_t size = rows->size - start < TILE ? rows->size - start : TILE;
    const char *source = (const char *)rows->rows[peer] + start * width_of[rows->dtype];
    if (rows->dtype == (NARROW ? F32 : F64) && size == TILE)
        return (const REAL *)source;
    switch (rows->dtype) {
        case F64: NAME(widen)(F64, source, size, room); break;
        case F32: NAME(widen)(F32, source, size, room); break;
        case BF16: NAME(widen)(BF16, source, size, room); break;
        default: NAME(widen)(F16, source, size, room);
    }
    for (int64_t i = size; i < TILE; i++)
        room[i] = 0;
    return room;
}
/* The tiles of all peers at `start`; `room` has one for each. */
ALWAYS void NAME(tiles)(const struct rows *rows, int64_t start, REAL *room, const REAL **tiles) {
    for (int64_t peer = 0; peer < rows->num_peers; peer++)
        tiles[peer] = NAME(tile)(rows, peer, start, room + peer * TILE);
}
/* Room for a tile of each peer, and `more` tiles; and the table of where the peers' tiles are. */
ALWAYS int NAME(room)(const struct rows *rows, int64_t more, REAL **room, const REAL ***tiles) {
    *tiles = malloc(rows->num_peers * sizeof(REAL *));
    *room = aligned_alloc(64, (rows->num_peers + more) * TILE * sizeof(REAL));
    return *tiles != NULL && *room != NULL;
}
/* A register to memory, past the cache: without reading its line first. */
ALWAYS void NAME(stream_part)(void *target, VECTOR value) {
#if BYTES == 64
    _mm512_stream_si512(target, (__m512i)value);
#elif BYTES == 32
    _mm256_stream_si256(target, (__m256i)value);
#elif defined(__SSE2__)
    _mm_stream_si128(target, (__m128i)value);
#else
    *(VECTOR *)target = value;
#endif
}
/* The same for any size that lies anywhere. */
ALWAYS void NAME(stream)(void *restrict target, const void *restrict source, size_t size) {
#if defined(__SSE2__)
    char *to = target;
    const char *from = source;
    const size_t step = BYTES == 64 ? 64 : 16;
    size_t ahead = -(uintptr_t)to & (step - 1);
    ahead = ahead < size ? ahead : size;
    memcpy(to, from, ahead);
    for (to += ahead, from += ahead, size -= ahead; size >= step; to += step, from += step, size -= step)
#if BYTES == 64
        _mm512_stream_si512((void *)to, _mm512_loadu_si512(from));
#else
        _mm_stream_si128((void *)to, _mm_loadu_si128((const void *)from));
#endif
    memcpy(to, from, size);
#else
    memcpy(target, source, size);
#endif
}
/* At most TILE results into `out`, each NaN in its one form. */
ALWAYS void NAME(put)(const struct rows *rows, int64_t start, int64_t size, REAL *result, void *out) {
    char *target = (char *)out + start * width_of[rows->dtype];
    uint16_t narrow[TILE];
    for (int64_t i = 0; i < size; i++)
        result[i] = result[i] == result[i] ? result[i] : (REAL)NAN;
    if (rows->dtype <= F32) {
        NAME(stream)(target, result, size * sizeof(REAL));
        return;
    }
    if (rows->dtype == BF16)
        for (int64_t i = 0; i < size; i++)
            narrow[i] = to_bfloat((float)result[i]);
    else
        for (int64_t i = 0; i < size; i++)
            narrow[i] = to_half((float)result[i]);
    NAME(stream)(target, narrow, size * 2);
}

/* A line of results into `target`, where one begins: each NaN in its one form. */
ALWAYS void NAME(put_line)(void *target, const VECTOR *result) {
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; part++) {
        BITS nan = result[part] != result[part];
        VECTOR one_nan = (VECTOR){0} + (REAL)NAN;
        BITS value = (nan & (BITS)one_nan) | (~nan & (BITS)result[part]);
        NAME(stream_part)((char *)target + part * BYTES, (VECTOR)value);
    }
}

/* sum + first term + second term ..., of `count` peers: back into the sum, or, of the `last` ones, whole lines into
   `out`. `first`: there is no sum yet. */
#define SOURCE(k) const char *row##k = k < count ? (const char *)rows[k] + start * width_of[dtype] : NULL;
#define PART(k) const REAL part##k = k < count ? (REAL)parts[k] : 0;
#define TERM(k) \
    if (k < count) \
        total += NAME(value)(dtype, row##k, i) * part##k;
#define TERMS(k) \
    if (k < count) \
        total[part] += LOAD((const REAL *)row##k + i, part) * part##k;
ALWAYS void NAME(add_narrow)(
    const int dtype, const int count, const int first, const int last, const void *const *rows, const double *parts,
    int64_t start, int64_t size, REAL *restrict sum, uint16_t *restrict out) {
    EACH8(SOURCE)
    EACH8(PART)
    for (int64_t begin = 0; begin < size; begin += 32) {
        uint16_t narrow[32] = {0};
#pragma GCC ivdep
        for (int64_t i = begin; i < begin + 32; i++) {
            REAL total = first ? -(REAL)0 : sum[i]; /* -0 + x is x for every x */
            EACH8(TERM)
            if (last && total != total)
                total = (REAL)NAN;
            if (last)
                narrow[i - begin] = dtype == BF16 ? to_bfloat((float)total) : to_half((float)total);
            else
                sum[i] = total;
        }
        for (int part = 0; last && part < PARTS; part++) {
            VECTOR value;
            memcpy(&value, narrow + part * BYTES / 2, BYTES);
            NAME(stream_part)(out + start + begin + part * BYTES / 2, value);
        }
    }
}
ALWAYS void NAME(add_terms)(
    const int dtype, const int count, const int first, const int last, const void *const *rows, const double *parts,
    int64_t start, int64_t size, REAL *restrict sum, void *restrict out) {
    EACH8(SOURCE)
    EACH8(PART)
    if (dtype == BF16 || dtype == F16) {
        NAME(add_narrow)(dtype, count, first, last, rows, parts, start, size, sum, out);
        return;
    }
    for (int64_t i = 0; i < size; i += STEP) {
        VECTOR total[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            total[part] = first ? -(VECTOR){0} : AT(sum + i, part);
            EACH8(TERMS)
            if (!last)
                AT(sum + i, part) = total[part];
        }
        if (last)
            NAME(put_line)((REAL *)out + start + i, total);
    }
}
#define LAST(dtype, count) \
    case count: NAME(add_terms)(dtype, count, 0, 1, rows, parts, start, size, sum, out); break; \
    case 64 + count: NAME(add_terms)(dtype, count, 1, 1, rows, parts, start, size, sum, out); break;
#define GROUPS(dtype) \
    switch (64 * first + 16 * !last + count) { \
        LAST(dtype, 1) LAST(dtype, 2) LAST(dtype, 3) LAST(dtype, 4) \
        LAST(dtype, 5) LAST(dtype, 6) LAST(dtype, 7) LAST(dtype, GROUP) \
        case 16 + GROUP: NAME(add_terms)(dtype, GROUP, 0, 0, rows, parts, start, size, sum, out); break; \
        default: NAME(add_terms)(dtype, GROUP, 1, 0, rows, parts, start, size, sum, out); \
    } \
    break;
static void NAME(add_group)(
    int64_t dtype, int64_t count, int first, int last, const void *const *rows, const double *parts, int64_t start,
    int64_t size, REAL *sum, void *out) {
    switch (dtype) {
        case BF16: GROUPS(BF16)
        case F16: GROUPS(F16)
        default: GROUPS(NARROW ? F32 : F64)
    }
}
/* The same for the few elements that are no whole line. */
static void NAME(add_rest)(const struct rows *rows, const double *parts, int64_t start, int64_t size, void *out) {
    REAL sum[TILE];
    for (int64_t i = 0; i < size; i++) {
        sum[i] = -(REAL)0;
        for (int64_t peer = 0; peer < rows->num_peers; peer++)
            sum[i] += NAME(value)((int)rows->dtype, rows->rows[peer], start + i) * (REAL)parts[peer];
    }
    NAME(put)(rows, start, size, sum, out);
}
static int NAME(mean)(const struct rows *rows, const double *parts, void *out) {
    const int64_t width = width_of[rows->dtype], line = 64 / width, ahead = (-(uintptr_t)out & 63) / width;
    REAL *sum = rows->num_peers > GROUP ? aligned_alloc(64, SUMS * sizeof(REAL)) : NULL;
    int64_t size, start = ahead < rows->size ? ahead : rows->size;
    if (rows->num_peers > GROUP && sum == NULL)
        return 0;
    NAME(add_rest)(rows, parts, 0, start, out);
    for (; start + line <= rows->size; start += size) {
        int64_t peer = 0;
        size = (rows->size - start) / line * line;
        for (; rows->num_peers - peer > GROUP; peer += GROUP) {
            size = size < SUMS ? size : SUMS;
            NAME(add_group)(rows->dtype, GROUP, peer == 0, 0, rows->rows + peer, parts + peer, start, size, sum, out);
        }
        NAME(add_group)(
            rows->dtype, rows->num_peers - peer, peer == 0, 1, rows->rows + peer, parts + peer, start, size, sum, out);
    }
    NAME(add_rest)(rows, parts, start, rows->size - start, out);
    streamed();
    free(sum);
    return 1;
}

/* One that is both must not be halved, it may be denormal; -0 becomes 0. */
ALWAYS REAL NAME(middle)(REAL lower, REAL upper) {
    REAL between = lower * (REAL)0.5 + upper * (REAL)0.5;
    return (lower == upper ? lower : between) + (REAL)0;
}
/* The part of a value's count that lies between `below` and `above`, when `before` is counted before it. */
#define KEPT(count) \
    WHOLE from = before < below ? below : before; \
    before += (count); \
    WHOLE kept = (before > above ? above : before) - from;

#if STRAIGHT
/* Sort what lies at `i` of N tiles, NaN as infinity (`top`). */
#define FETCH(k) \
    REAL v##k = k < N ? tiles[k < N ? k : 0][i] : (REAL)INFINITY; \
    v##k = v##k < top ? v##k : top;
#define EXCHANGE(a, b) \
    if (b < N) { \
        REAL low = v##b < v##a ? v##b : v##a, high = v##b < v##a ? v##a : v##b; \
        v##a = low; \
        v##b = high; \
    }
#define SORTED EACH16(FETCH) NETWORK(EXCHANGE)
/* Loops over lanes that the compiler makes into vectors, while the rows' next elements come. */
#define LANES(i) \
    for (int64_t lanes = 0; lanes < TILE; lanes += 16) { \
        if (N > GROUP) \
            for (int k = 0; k < N; k++) \
                __builtin_prefetch(tiles[k] + lanes + AHEAD, 0, 2); \
        _Pragma("GCC ivdep") for (int64_t i = lanes; i < lanes + 16; i++)

/* Weighted: of the sorted values the last with less than `below` counted before it, by bisection; of values that are
   equal the first one decides. The upper median is it or the next one: see all_count. Only the 2^probes middle places
   are looked at: see probes_saved. */
#define LESS(k) \
    if (k < N) \
        before = tiles[k][i] < pivot ? before + counts[k][i - lanes] : before;
#define PROBE(value, accepted) \
    { \
        REAL pivot = value; \
        WHOLE before = 0; \
        EACH16(LESS) \
        accepted = before < below; \
        lower = accepted ? pivot : lower; \
        next = accepted ? next : pivot; \
        next_before = accepted ? next_before : before; \
    }
#define AT_PLACE(k) REAL w##k = sorted[FIRST_PLACE(N, probes) + k < 16 ? FIRST_PLACE(N, probes) + k : 15];
ALWAYS void NAME(median_of)(
    const int N, const int equal, const int probes, const REAL *const *tiles, const struct order *order,
    REAL *restrict result) {
    const WHOLE below = (WHOLE)order->lower, above = (WHOLE)order->upper;
    WHOLE counts[MAX_STRAIGHT][16] __attribute__((aligned(64)));
    for (int k = 0; k < N; k++)
        for (int lane = 0; lane < 16; lane++)
            counts[k][lane] = (WHOLE)order->counts[k];
    /* Known to be infinity, it is compared with; unknown, it takes the minimum, which spares what counting needs. */
    const volatile REAL unknown = (REAL)INFINITY;
    const REAL top = equal ? (REAL)INFINITY : unknown;
    LANES(i) {
        SORTED
        const REAL sorted[] = {v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15};
        if (equal) {
            result[i] = NAME(middle)(sorted[(N - 1) / 2], sorted[N / 2]);
        } else {
            EACH16(AT_PLACE)
            REAL lower = w0, next = w0;
            WHOLE next_before = above;
            int above7 = 0, by4 = 0, by2 = 0, by1 = 0;
            if (probes > 3)
                PROBE(w8, above7)
            w1 = above7 ? w9 : w1, w2 = above7 ? w10 : w2, w3 = above7 ? w11 : w3, w4 = above7 ? w12 : w4;
            w5 = above7 ? w13 : w5, w6 = above7 ? w14 : w6, w7 = above7 ? w15 : w7;
            if (probes > 2)
                PROBE(w4, by4)
            w1 = by4 ? w5 : w1;
            w2 = by4 ? w6 : w2;
            w3 = by4 ? w7 : w3;
            if (probes > 1)
                PROBE(w2, by2)
            w1 = by2 ? w3 : w1;
            if (probes > 0)
                PROBE(w1, by1)
            result[i] = NAME(middle)(lower, next_before < above ? next : lower);
        }
    } }
}
/* Only for equal counts: what is kept of each place is known beforehand. */
#define KEEP(k) \
    if (k < N && keeps[k]) \
        total += v##k * factor[k];
ALWAYS void NAME(trimmed_of)(const int N, const REAL *const *tiles, const struct order *order, REAL *restrict result) {
    const WHOLE below = (WHOLE)order->lower, above = (WHOLE)order->upper;
    REAL factor[MAX_STRAIGHT];
    int keeps[MAX_STRAIGHT];
    WHOLE before = 0;
    for (int k = 0; k < N; k++) {
        KEPT((WHOLE)order->counts[k])
        keeps[k] = kept > 0;
        factor[k] = (REAL)kept * (REAL)order->unit;
    }
    const REAL top = (REAL)INFINITY;
    LANES(i) {
        SORTED
        REAL total = 0;
        EACH16(KEEP)
        result[i] = total + (REAL)0;
    } }
}
#define TRIMMED(N) \
    case N: NAME(trimmed_of)(N, tiles, order, result); return 1;
#define EQUAL(N) \
    case N: NAME(median_of)(N, 1, 0, tiles, order, result); return 1;
#define UNEQUAL(N) \
    case N: \
        if (saved > 1 && N > 4) \
            NAME(median_of)(N, 0, ALL_PROBES(N) - 2, tiles, order, result); \
        else if (saved > 0 && N > 2) \
            NAME(median_of)(N, 0, ALL_PROBES(N) - 1, tiles, order, result); \
        else \
            NAME(median_of)(N, 0, ALL_PROBES(N), tiles, order, result); \
        return 1;
#define CASES(S) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15) S(16)
#endif

/* Whether a tile could be done in registers, and was. */
static int NAME(straight)(
    int trimmed, int64_t num_peers, int saved, const REAL *const *tiles, const struct order *order, REAL *result) {
#if STRAIGHT
    if (NARROW && trimmed && all_equal(order, num_peers))
        switch (num_peers) { CASES(TRIMMED) }
    if (NARROW && !trimmed && all_equal(order, num_peers))
        switch (num_peers) { CASES(EQUAL) }
    if (NARROW && !trimmed && all_count(order, num_peers))
        switch (num_peers) { CASES(UNEQUAL) }
#endif
    return 0;
}

/* Any number of peers, sorted in the cache. `room`: the values, then the counts, a tile for each peer. */
static void NAME(sort)(int64_t num_peers, const REAL *const *tiles, const struct order *order, REAL *room) {
    WHOLE *counts = (WHOLE *)(room + num_peers * TILE);
    for (int64_t peer = 0; peer < num_peers; peer++)
        for (int64_t i = 0; i < TILE; i++) {
            REAL value = tiles[peer][i];
            room[peer * TILE + i] = value < (REAL)INFINITY ? value : (REAL)INFINITY;
            counts[peer * TILE + i] = (WHOLE)order->counts[peer];
        }
    for (int64_t number = 0; number < order->num_comparators; number++) {
        int64_t first = order->comparators[2 * number] * TILE, second = order->comparators[2 * number + 1] * TILE;
        REAL *restrict values = room + first, *restrict others = room + second;
        WHOLE *restrict here = counts + first, *restrict there = counts + second;
        for (int64_t i = 0; i < TILE; i++) {
            REAL a = values[i], b = others[i];
            WHOLE c = here[i], d = there[i];
            int swap = b < a;
            values[i] = swap ? b : a;
            others[i] = swap ? a : b;
            here[i] = swap ? d : c;
            there[i] = swap ? c : d;
        }
    }
}
static void NAME(sorted)(
    int trimmed, int64_t num_peers, const REAL *const *tiles, const struct order *order, REAL *room,
    REAL *restrict result) {
    const WHOLE below = (WHOLE)order->lower, above = (WHOLE)order->upper;
    const WHOLE *counts = (const WHOLE *)(room + num_peers * TILE);
    const REAL unit = (REAL)order->unit;
    NAME(sort)(num_peers, tiles, order, room);
    WHOLE counted[TILE] = {0};
    REAL first[TILE], second[TILE]; /* lower and upper, or the total */
    for (int64_t i = 0; i < TILE; i++)
        first[i] = second[i] = trimmed ? 0 : room[i];
    for (int64_t peer = 0; peer < num_peers; peer++) {
        const REAL *values = room + peer * TILE;
        const WHOLE *own = counts + peer * TILE;
        for (int64_t i = 0; trimmed && i < TILE; i++) {
            WHOLE before = counted[i];
            KEPT(own[i])
            first[i] += kept > 0 ? values[i] * ((REAL)kept * unit) : (REAL)0;
            counted[i] = before;
        }
        for (int64_t i = 0; !trimmed && i < TILE; i++) {
            first[i] = counted[i] < below ? values[i] : first[i];
            second[i] = counted[i] < above ? values[i] : second[i];
            counted[i] += own[i];
        }
    }
    for (int64_t i = 0; i < TILE; i++)
        result[i] = trimmed ? first[i] + (REAL)0 : NAME(middle)(first[i], second[i]);
}
ALWAYS int NAME(ordered)(int trimmed, const struct rows *rows, const struct order *order, void *out) {
    REAL result[TILE] __attribute__((aligned(64)));
    REAL *room;
    const REAL **tiles;
    int64_t num_peers = rows->num_peers;
    int done = NAME(room)(rows, 2 * num_peers, &room, &tiles);
    int saved = trimmed || num_peers > MAX_STRAIGHT ? 0 : probes_saved(order, (int)num_peers);
    for (int64_t start = 0; done && start < rows->size; start += TILE) {
        NAME(tiles)(rows, start, room, tiles);
        if (!NAME(straight)(trimmed, num_peers, saved, tiles, order, result))
            NAME(sorted)(trimmed, num_peers, tiles, order, room + num_peers * TILE, result);
        NAME(put)(rows, start, rows->size - start < TILE ? rows->size - start : TILE, result, out);
    }
    streamed();
    free(room);
    free(tiles);
    return done;
}
static int NAME(median)(const struct rows *rows, const struct order *order, void *out) {
    return NAME(ordered)(0, rows, order, out);
}
static int NAME(trimmed_mean)(const struct rows *rows, const struct order *order, void *out) {
    return NAME(ordered)(1, rows, order, out);
}

/* Sums of products over the elements: in 64 bytes of lanes within a tile, in 8 doubles within a block. */
#define WIDE NAME(wide)
#define EIGHT NAME(eight)
typedef double EIGHT __attribute__((vector_size(64)));
struct WIDE {
    EIGHT sum;
};
ALWAYS void NAME(flush)(const VECTOR *lanes, struct WIDE *wide) {
#if BYTES == 64
    __m512d sum = (__m512d)wide->sum, whole = (__m512d)*lanes;
    if (NARROW) {
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(_mm512_castpd_ps(whole))));
        whole = _mm512_cvtps_pd(_mm512_extractf32x8_ps(_mm512_castpd_ps(whole), 1));
    }
    wide->sum = (EIGHT)_mm512_add_pd(sum, whole);
#else
    REAL each[STEP] __attribute__((aligned(64)));
    memcpy(each, lanes, sizeof each);
    for (int lane = 0; lane < 8; lane++)
        wide->sum[lane] += (double)each[lane];
    if (NARROW)
        for (int lane = 0; lane < 8; lane++)
            wide->sum[lane] += (double)each[STEP - 8 + lane];
#endif
}
/* A sum, one term longer: for floats in one operation, else in two, which is what numpy can do as well. */
ALWAYS VECTOR NAME(longer)(VECTOR sum, VECTOR a, VECTOR b) {
#if BYTES == 64
    if (NARROW)
        return (VECTOR)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif BYTES == 32
    if (NARROW)
        return (VECTOR)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    if (NARROW) {
        for (int lane = 0; lane < BYTES / (int)sizeof(REAL); lane++)
            sum[lane] = FUSED((float)a[lane], (float)b[lane], (float)sum[lane]);
        return sum;
    }
#endif
    return sum + a * b;
}
/* Few rows: differences from `middle` among themselves, as they come from the memory. All sums stay in registers: what
   is stored meanwhile is driven out of the first cache by what comes. */
ALWAYS void NAME(few_pairs)(
    const int count, const REAL *middle, const REAL *const *rows, struct WIDE *wide) {
    VECTOR lanes[FEW][FEW][PARTS];
    memset(lanes, 0, sizeof lanes);
    for (int64_t i = 0; i < TILE; i += STEP)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            VECTOR centre = LOAD(middle + i, part), values[FEW];
#pragma GCC unroll 8
            for (int a = 0; a < count; a++)
                values[a] = LOAD(rows[a] + i, part) - centre;
#pragma GCC unroll 8
            for (int a = 0; a < count; a++)
#pragma GCC unroll 8
                for (int b = 0; b < count; b++)
                    if (a <= b)
                        lanes[a][b][part] = NAME(longer)(lanes[a][b][part], values[a], values[b]);
        }
#pragma GCC unroll 8
    for (int a = 0; a < count; a++)
#pragma GCC unroll 8
        for (int b = 0; b < count; b++)
            if (a <= b)
                NAME(flush)(lanes[a][b], wide + a * count + b);
}
#define AMONG(a) \
    case a: NAME(few_pairs)(a, middle, tiles, wide); break;
static void NAME(few)(int64_t num_rows, const REAL *middle, const REAL *const *tiles, struct WIDE *wide) {
    switch (num_rows) {
        AMONG(1) AMONG(2) AMONG(3)
#if FEW == 7
        AMONG(4) AMONG(5) AMONG(6) AMONG(7)
#endif
    }
}
/* The next RUN of all rows, row by row, announced a few lines at a time while there is arithmetic to do: many
   announcements at once are lost. */
#define COMING NAME(coming)
struct COMING {
    const struct rows *rows;
    int64_t row, begin; /* bytes into each row */
    const char *line;
    int64_t left, per_row; /* steps */
    int64_t at_once, now; /* lines in a step, at most PAIRS; none, when all are announced */
};
ALWAYS void NAME(announce_row)(struct COMING *coming) {
    coming->now = coming->row < coming->rows->num_peers ? coming->at_once : 0;
    if (coming->now)
        coming->line = (const char *)coming->rows->rows[coming->row++] + coming->begin;
    coming->left = coming->per_row;
}
/* In so many `steps` per RUN. */
ALWAYS struct COMING NAME(look_ahead)(const struct rows *rows, int64_t steps) {
    const int64_t lines = RUN * width_of[rows->dtype] / 64;
    const int64_t at_once = steps && announcing() ? (lines * rows->num_peers + steps - 1) / steps : 0;
    return (struct COMING){rows, 0, 0, NULL, 0, at_once ? (lines + at_once - 1) / at_once : 0, at_once, 0};
}
#define ANNOUNCED(k) \
    if (coming->now > k) \
        __builtin_prefetch(coming->line + 64 * k, 0, 2);
ALWAYS void NAME(announce)(struct COMING *coming) {
    if (!coming->now)
        return;
    ANNOUNCED(0) ANNOUNCED(1) ANNOUNCED(2) ANNOUNCED(3) ANNOUNCED(4)
    coming->line += 64 * coming->now;
    if (--coming->left == 0)
        NAME(announce_row)(coming);
}
/* num_first tiles against num_second others', or `same`, among themselves: by the squares of what is between them, or by
   the products of their differences from `middle`, which end up in `apart` where they are the same, and come from there
   where they are not. */
#define WANTED(a, b) (a < num_first && b < num_second && (!same || a <= b))
ALWAYS void NAME(pairs)(
    const int num_first, const int num_second, const int same, const int squares, const REAL *middle,
    const REAL *const *first, const REAL *const *second, REAL *apart, struct COMING *told,
    struct WIDE *const *wide) {
    VECTOR lanes[PAIRS][PAIRS][PARTS];
    struct COMING coming = *told;
    memset(lanes, 0, sizeof lanes);
    for (int64_t i = 0; i < TILE; i += STEP) {
        NAME(announce)(&coming);
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            VECTOR left[PAIRS], centre = {0};
            if (!squares && same)
                centre = LOAD(middle + i, part);
#pragma GCC unroll 5
            for (int a = 0; a < PAIRS; a++)
                if (a < num_first) {
                    left[a] = LOAD(first[a] + i, part);
                    if (!squares && same)
                        AT(apart + a * TILE + i, part) = left[a] -= centre;
                }
#pragma GCC unroll 5
            for (int b = 0; b < PAIRS; b++) {
                VECTOR right = {0};
                if (b < num_second)
                    right = same ? left[b] : (VECTOR)LOAD(second[b] + i, part);
#pragma GCC unroll 5
                for (int a = 0; a < PAIRS; a++)
                    if (WANTED(a, b)) {
                        VECTOR factor = squares ? left[a] - right : left[a];
                        lanes[a][b][part] = NAME(longer)(lanes[a][b][part], factor, squares ? factor : right);
                    }
            }
        }
    }
    *told = coming;
#pragma GCC unroll 5
    for (int a = 0; a < PAIRS; a++)
#pragma GCC unroll 5
        for (int b = 0; b < PAIRS; b++)
            if (WANTED(a, b))
                NAME(flush)(lanes[a][b], wide[a] + b);
}
#define ACROSS(a, b) \
    case 8 * a + b: NAME(pairs)(a, b, 0, squares, NULL, left, right, NULL, coming, where); break;
#define ALONE(a) \
    case a: NAME(pairs)(a, a, 1, squares, middle, left, right, room + first * TILE, coming, where); break;
/* All tiles against each other. `wide`: a table of num_rows^2, of which only second >= first is used. `room`: a tile for
   each, which may be that tile; unless by squares, it is overwritten. */
ALWAYS void NAME(all_pairs)(
    const int squares, const REAL *middle, int64_t num_rows, const REAL **tiles, REAL *room, struct COMING *coming,
    struct WIDE *wide) {
    for (int64_t second = 0; second < num_rows; second += PAIRS)
        for (int64_t back = 0; back <= second; back += PAIRS) {
            int64_t first = second - back; /* itself before others */
            int num_first = num_rows - first < PAIRS ? (int)(num_rows - first) : PAIRS;
            int num_second = num_rows - second < PAIRS ? (int)(num_rows - second) : PAIRS;
            const REAL **left = tiles + first, **right = tiles + second;
            struct WIDE *where[PAIRS];
            for (int a = 0; a < num_first; a++)
                where[a] = wide + (first + a) * num_rows + second;
            if (first == second) {
                switch (num_first) {
                    ALONE(1) ALONE(2)
#if PAIRS == 5
                    ALONE(3) ALONE(4) ALONE(5)
#endif
                }
                for (int a = 0; !squares && a < num_first; a++)
                    left[a] = room + (first + a) * TILE;
            } else
                switch (8 * num_first + num_second) {
                    ACROSS(PAIRS, 1) ACROSS(PAIRS, 2)
#if PAIRS == 5
                    ACROSS(PAIRS, 3) ACROSS(PAIRS, 4) ACROSS(PAIRS, 5)
#endif
                }
        }
}
/* The eight lanes of each two rows, added up by halves, into a table of all peers. */
static void NAME(fold)(
    int64_t num_rows, const int64_t *peers, int64_t num_peers, const struct WIDE *wide, double *table) {
    memset(table, 0, num_peers * num_peers * sizeof(double));
    for (int64_t first = 0; first < num_rows; first++)
        for (int64_t second = first; second < num_rows; second++) {
            const EIGHT s = wide[first * num_rows + second].sum;
            double four[4] = {s[0] + s[4], s[1] + s[5], s[2] + s[6], s[3] + s[7]};
            table[peers[first] * num_peers + peers[second]] = (four[0] + four[2]) + (four[1] + four[3]);
        }
}
static int NAME(sums)(const struct rows *rows, int measure, int64_t centre, double *table) {
    REAL *room;
    const REAL **tiles;
    int64_t num_peers = rows->num_peers, square = num_peers * num_peers, num_rows = 0;
    int done = NAME(room)(rows, 1, &room, &tiles);
    struct WIDE *wide = aligned_alloc(64, square * sizeof(struct WIDE));
    int64_t *peers = malloc(num_peers * sizeof(int64_t));
    done = done && wide != NULL && peers != NULL;
    for (int64_t peer = 0; done && peer < num_peers; peer++)
        if (measure == SQUARES || peer != centre)
            peers[num_rows++] = peer;
    const int64_t groups = (num_rows + PAIRS - 1) / PAIRS, steps = groups * (groups + 1) / 2 * (RUN / STEP);
    struct COMING coming = NAME(look_ahead)(rows, steps);
    for (int64_t start = 0; done && start < rows->size; start += TILE) {
        if (start % BLOCK == 0)
            memset(wide, 0, square * sizeof(struct WIDE));
        for (int64_t k = 0; k < num_rows; k++)
            tiles[k] = NAME(tile)(rows, peers[k], start, room + k * TILE);
        if (start % RUN == 0) {
            coming.begin = (start + RUN) * width_of[rows->dtype];
            coming.row = 0;
            NAME(announce_row)(&coming);
        }
        const REAL *middle = measure == SQUARES ? NULL : NAME(tile)(rows, centre, start, room + num_peers * TILE);
        if (measure == SQUARES)
            NAME(all_pairs)(1, NULL, num_rows, tiles, room, &coming, wide);
        else if (num_rows <= FEW)
            NAME(few)(num_rows, middle, tiles, wide);
        else
            NAME(all_pairs)(0, middle, num_rows, tiles, room, &coming, wide);
        if (start % BLOCK == BLOCK - TILE || start + TILE >= rows->size)
            NAME(fold)(num_rows, peers, num_peers, wide, table + start / BLOCK * square);
    }
    free(peers);
    free(wide);
    free(room);
    free(tiles);
    return done;
}
static int NAME(bounded)(const struct rows *rows, double limit, uint8_t *bounded) {
    const REAL most = NARROW && limit > FLT_MAX ? (REAL)FLT_MAX : (REAL)limit;
    REAL room[TILE];
    for (int64_t peer = 0; peer < rows->num_peers; peer++) {
        int bad = 0;
        for (int64_t start = 0; !bad && start < rows->size; start += TILE) {
            const REAL *tile = NAME(tile)(rows, peer, start, room);
            for (int64_t i = 0; i < TILE; i++)
                bad |= !(tile[i] <= most && tile[i] >= -most);
        }
        bounded[peer] = !bad;
    }
    return 1;
}
#undef NARROW
#undef SOURCE
#undef PART
#undef TERM
#undef LAST
#undef GROUPS
#undef KEPT
#undef FETCH
#undef EXCHANGE
#undef SORTED
#undef LANES
#undef LESS
#undef PROBE
#undef AT_PLACE
#undef KEEP
#undef TRIMMED
#undef EQUAL
#undef UNEQUAL
#undef CASES
#undef VECTOR
#undef LOOSE
#undef BITS
#undef TERMS
#undef WIDE
#undef EIGHT
#undef COMING
#undef ANNOUNCED
#undef STEP
#undef PARTS
#undef LOAD
#undef AT
#undef WANTED
#undef ACROSS
#undef AMONG
#undef ALONE

#endif
