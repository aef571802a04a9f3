/* kvc/storage.h: storage types, their codecs, and reading what a cache stores. Part of <kvc/kvc.h>.
 *
 * A cache stores K and V in the types of kvc_cache_desc, each of its own. Numbers are encoded once, when they are put. Nothing
 * that happens later (removes, shifts, copies) changes a code, and attention reads the codes where they lie: there is no second
 * copy in a wider type.
 *
 * The vector of one token and head is a row of codes and, in types with stored scales, a row of scales, apart in memory. The
 * values that share a scale are a block. `a` is the largest magnitude of a block; all arithmetic is in f32, rounded to nearest
 * even, each operation by itself.
 *
 *   type       block, head_dim            scale                        code                                     reads as
 *   f32, f16, bf16                        none                         the number                               the number
 *   f8_e4m3, f8_e5m2   any head_dim       bound: kvc_bind_scales()     x / scale, rounded; what is finite       code * scale
 *                                                                      and too large becomes 448, 57344
 *   q8_0       32, a multiple of 32       d = a / 127 as f16           round(x * (1 / d)), halves away          code * scale
 *                                                                      from zero
 *   q4_0       32, a multiple of 32       d = m / -8 as f16; m is the  min(15, trunc(x * (1 / d) + 8.5));       (code - 8) * scale
 *                                         first value of magnitude a   byte i: value i low, i + 16 high nibble
 *   int8       the vector, any head_dim   d = a / 127 as f32           round(x / d), halves to even             code * scale
 *   nf4        16, 32, 64 or 128, a       a as f32                     how many of 15 thresholds lie below      table[code] * scale
 *              multiple of it                                          x / a; byte i: value 2i high, 2i + 1
 *                                                                      low nibble
 *
 * q8_0 and q4_0 hold the bytes of ggml's reference (ggml-quants.c: a block there is its scale, then its codes), int8 and nf4 those
 * of EasyDeL's caches; nf4 is the 4-bit NormalFloat of QLoRA (arXiv 2305.14314). A block with a NaN or an infinity, or whose
 * scale is beyond f16, has the scale NaN and codes 0; a block of magnitudes below 2^-100, or whose scale rounds to 0 in f16, has
 * scale 0 and codes 0. So zero bytes are zeros in every type, and infinities and NaN never become finite numbers.
 *
 * Rotation (KVC_CACHE_ROTATE_K, KVC_CACHE_ROTATE_V; q8_0, q4_0, int8, nf4): a vector is stored as H (s * x) / sqrt(b), for each
 * b values, b the largest power of two that divides head_dim. H is Sylvester's Hadamard matrix, s the Rudin-Shapiro signs: -1
 * where i & (i >> 1) has an odd number of ones. Outliers in few dimensions, which keys often have, are spread over all of them.
 * Attention rotates queries alike and outputs back; whoever reads codes does the same. */
#ifndef KVC_STORAGE_H
#define KVC_STORAGE_H

#include "base.h"
#include "cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Codecs ------------------------------------------------------------------------------------------------------------- */

typedef struct kvc_storage_info {
  uint32_t struct_size;
  uint32_t dtype;
  uint32_t code_dtype;    /* element type of codes: the type itself (f32, f16, bf16, f8), KVC_I8 (q8_0, int8) or KVC_U8 */
  uint32_t scale_dtype;   /* KVC_F16, KVC_F32; 0: none is stored */
  int32_t block;          /* values that share a stored scale; 0: none is stored */
  int32_t codes_per_row;  /* elements of code_dtype of one vector */
  int32_t scales_per_row;
  int32_t bytes_per_row;  /* codes and scales */
} kvc_storage_info;

#define KVC_STORAGE_INFO_INIT {sizeof(kvc_storage_info), 0, 0, 0, 0, 0, 0, 0}

/* Tells how vectors of head_dim numbers lie in a storage type.
 *
 * dtype     a storage type; 0: KVC_F32
 * head_dim  1 … 65536
 * block     KVC_NF4: 16, 32, 64 or 128; 0: the largest of 64, 32 and 16 that divides head_dim. Else 0.
 * out       its struct_size must be set.
 *
 * Errors: DTYPE (no storage type), INVALID_ARGUMENT (a head_dim or block that the type does not take; the message names types
 * that do). Threads: any. Since 0.2. */
KVC_API kvc_status kvc_storage_query(uint32_t dtype, int32_t head_dim, int32_t block, kvc_storage_info *out) KVC_NOEXCEPT;

enum { /* kvc_codec_desc.flags */
  KVC_CODEC_ROTATE = 1 /* values are rotated before they are encoded and back after they are decoded */
};

typedef struct kvc_codec_desc {
  uint32_t struct_size;
  uint32_t dtype; /* a storage type; 0: KVC_F32 */
  uint32_t flags; /* KVC_CODEC_… */
  int32_t block;  /* KVC_NF4, as in kvc_storage_query(); else 0 */
  float scale;    /* f8: what codes are multiplied with, 2^-100 … 2^100; 0: 1. Else 0 */
} kvc_codec_desc;

#define KVC_CODEC_DESC_INIT {sizeof(kvc_codec_desc), 0, 0, 0, 0}

/* Encodes vectors on the host: byte for byte what a cache of this type stores, on any device.
 *
 * values  [..., head_dim] f32, f16 or bf16: 1 to 8 dimensions, any strides
 * codes   [..., codes_per_row] in code_dtype
 * scales  [..., scales_per_row] in scale_dtype; null where none is stored
 *
 * Tensors are on KVC_CPU. What lies between the first and the last element of one must not overlap that of another. Takes memory
 * only for vectors of more than 4096 numbers.
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, OUT_OF_MEMORY, VERSION. Threads: any. Since 0.2. */
KVC_API kvc_status kvc_encode(const kvc_codec_desc *desc, const kvc_tensor *values, kvc_tensor *codes,
                              kvc_tensor *scales) KVC_NOEXCEPT;

/* Decodes vectors on the host; `values` receives f32, f16 or bf16, rounded to nearest even. Everything else as kvc_encode().
 * The sign of a zero and the bytes of a NaN may differ from device to device. Since 0.2. */
KVC_API kvc_status kvc_decode(const kvc_codec_desc *desc, const kvc_tensor *codes, const kvc_tensor *scales,
                              kvc_tensor *values) KVC_NOEXCEPT;

/* ---- What a cache stores ------------------------------------------------------------------------------------------------
 *
 * For caches that hold keys and values. Layers and passes are as in attention.h. */

/* Binds the scales of f8 keys and values of layers [layer_begin, layer_end): a number is stored as number / scale. 1 where none
 * was bound. An empty range binds nothing.
 *
 * k_scales, v_scales  [n_kv_heads], each 2^-100 … 2^100; null: stays as it is. With KVC_CACHE_V_IN_K v_scales must be null. The
 *                     layers of a wrapper's range must have the same n_kv_heads.
 *
 * Errors: INVALID_ARGUMENT, BAD_STATE (a pass is open or the cache is not empty: the next of some sequence is not 0), NOT_SUPPORTED
 * (a side that is not f8). Since 0.2. */
KVC_API kvc_status kvc_bind_scales(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, const float *k_scales,
                                   const float *v_scales) KVC_NOEXCEPT;

/* Returns views of a layer's codes and scales over the range of cells of kvc_history(): codes [history, n_kv_heads,
 * codes_per_row], scales [history, n_kv_heads, scales_per_row]. For f32, f16 and bf16 the codes are the numbers. A type without
 * stored scales fills in scales with null data and no dimensions. No key is rewritten: kvc_runs() tells what rotation each owes.
 * With KVC_CACHE_V_IN_K, v and v_scales are views into K's.
 *
 * k, k_scales, v, v_scales  null: not wanted. The structs are filled in; do not write through them.
 * Lifetime: as the views of kvc_get(). What a cell holds that no token of the batch sees: as there.
 * Errors: BAD_STATE (no pass, or no put of this layer), INVALID_ARGUMENT. Since 0.2. */
KVC_API kvc_status kvc_get_codes(kvc_cache *cache, int32_t layer, kvc_tensor *k, kvc_tensor *k_scales, kvc_tensor *v,
                                 kvc_tensor *v_scales) KVC_NOEXCEPT;

/* Copies a layer's K and V over the range of cells of kvc_history() as numbers, for every storage type: decoded, rotated back,
 * keys turned by what they owe. Together with kvc_mask() they are what a textbook attention needs. Stored keys stay as they are.
 * Cells of that range which no token of the batch sees are zeros.
 *
 * k  [history, n_kv_heads, head_dim_k], v [history, n_kv_heads, head_dim_v]: f32, f16 or bf16, any strides. Null: not wanted. They
 *    must not overlap. A tensor whose data is null is filled in as a dense f32 view for the caller to allocate, and not copied.
 *
 * A cell whose key two sequences of the batch owe differently is copied first, so kvc_history() may change: call this one with
 * null data, or call kvc_history() again if it returns SHAPE. Every other error is found before a cell is copied.
 * Errors: BAD_STATE (no pass, or no put of this layer), INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, CACHE_FULL (no
 * room for those copies). Since 0.2. */
KVC_API kvc_status kvc_get_copy(kvc_cache *cache, int32_t layer, kvc_tensor *k, kvc_tensor *v) KVC_NOEXCEPT;

/* kvc_put() of what a cache of the same storage stored: codes and scales are kept byte for byte. For restoring a cache, and for
 * moving tokens between caches. Nothing checks that the codes make sense.
 *
 * k, v                [n_tokens, n_kv_heads, codes_per_row] in code_dtype, any strides
 * k_scales, v_scales  [n_tokens, n_kv_heads, scales_per_row] in scale_dtype; null where none is stored
 *
 * With KVC_CACHE_V_IN_K, v and v_scales are null.
 * Errors: those of kvc_put(). Since 0.2. */
KVC_API kvc_status kvc_put_codes(kvc_cache *cache, int32_t layer, const kvc_tensor *k, const kvc_tensor *k_scales,
                                 const kvc_tensor *v, const kvc_tensor *v_scales) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
