/* kvc/operators.h: attention operators by name, partial results of attention, and dropout. Part of
 * <kvc/kvc.h>. Since 0.2.
 *
 * An operator is an algorithm for attention. A device has a registry of them by name:
 *
 *   flash    flash_attn2, sdpa, splash, blockwise, paged_attention
 *            softmax on the fly over tiles: every option but dropout. What attends where no operator is bound
 *   vanilla  the definition, row by row: every option, dropout and a softmax in f64 included. For comparisons, not for speed
 *   decode   autoregressive_decodeattn
 *            flash for passes in which each sequence has one token
 *   ring     flash over `stretches` of the keys, each attended by itself and merged in their order
 *   lightning
 *            what lightning caches (KVC_LIGHTNING) do; no other cache takes it, and they take no other
 *
 * kvc_operator_create() makes one with settings, and kvc_bind_operator() lets layers of caches attend with it. Nothing is ever
 * ignored: what a layer or a call needs and its operator lacks is NOT_SUPPORTED, and the message names it. Every built-in operator
 * keeps the bounds of docs/SEMANTICS.md, section 8, with every setting. Settings change bits, never which keys count.
 *
 * The calls of the first part need no handle: their tensors are on KVC_CPU, they allocate nothing, and any number of threads may
 * make them. What lies between the first and the last element of a tensor that is written must not overlap another tensor. */
#ifndef KVC_OPERATORS_H
#define KVC_OPERATORS_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Results over parts of the keys ------------------------------------------------------------------------------------------ */

/* Merges two results over disjoint keys into the one over all of them: with L = log(e^lse + e^lse2), o becomes
 * o e^(lse - L) + o2 e^(lse2 - L), and lse becomes L. A log-sum-exp of minus infinity (a row that saw nothing) counts as nothing.
 * Both are results without sinks (KVC_EXTRA_NO_SINKS).
 *
 * o, o2      [..., heads, dim] f32, f16 or bf16, 2 to 8 dimensions, any strides, of one shape
 * lse, lse2  [..., heads] f32
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Threads: any. */
KVC_API kvc_status kvc_merge_attention(kvc_tensor *o, kvc_tensor *lse, const kvc_tensor *o2,
                                       const kvc_tensor *lse2) KVC_NOEXCEPT;

/* Adds the sinks to a result without them, once, when everything is merged: o becomes o / (1 + e^(sink - lse)). A row whose
 * log-sum-exp is minus infinity becomes 0.
 *
 * o      [..., heads, dim] f32, f16 or bf16
 * lse    [..., heads] f32; stays as it is, because it never holds the sink
 * sinks  [heads], finite
 *
 * Errors: as kvc_merge_attention(). Threads: any. */
KVC_API kvc_status kvc_apply_sinks(kvc_tensor *o, const kvc_tensor *lse, const float *sinks) KVC_NOEXCEPT;

/* Writes each KV head n times: head h * n + i of `out` is head h of `in`. kvc_attention() never needs it, kernels of your own may.
 *
 * in   [..., heads, dim], 2 to 8 dimensions, any strides, any element type
 * out  [..., heads * n, dim] of the same type
 *
 * Errors: as kvc_merge_attention(). Threads: any. */
KVC_API kvc_status kvc_repeat_kv_heads(const kvc_tensor *in, int32_t n, kvc_tensor *out) KVC_NOEXCEPT;

/* ---- Dropout ------------------------------------------------------------------------------------------------------------------
 *
 * The weight of query position p, key position j and query head h of a layer and sequence is kept if w >= floor(probability *
 * 2^32), and then multiplied with 1 / (1 - probability), computed in double and rounded to f32 once; else it is 0. w is word
 * j % 4 of Philox4x32-10 (Salmon et al., 2011) with the key (seed % 2^32, seed / 2^32) and the counter (j / 4, p, layer * 65536 +
 * h, sequence), the first word first. So a mask depends on positions, and not on cells, blocks, threads or instruction sets. */

/* Writes the mask that a call of attention with this seed uses.
 *
 * probability  0 or more, below 1
 * layer        0 … 65535
 * sequence     0 or more
 * q_position   [n_q], 0 or more
 * k_position   [n_k], 0 or more
 * into         [n_heads, n_q, n_k] KVC_BOOL, any strides: 1 is kept. n_heads is at most 65536
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, NOT_SUPPORTED (more heads). Threads: any. */
KVC_API kvc_status kvc_dropout_mask(uint64_t seed, float probability, int32_t layer, int32_t sequence, int32_t n_q,
                                    const int32_t *q_position, int32_t n_k, const int32_t *k_position,
                                    kvc_tensor *into) KVC_NOEXCEPT;

/* ---- Modes ------------------------------------------------------------------------------------------------------------------- */

enum { /* what attention is called for; to be combined */
  KVC_MODE_TRAIN = 1,          /* "__train__": a call with dropout; without a cache more than one query token */
  KVC_MODE_PREFILL = 2,        /* "__prefill__": a pass in which some sequence has more than one token */
  KVC_MODE_AUTOREGRESSIVE = 4, /* "__autoregressive__": each sequence has one token */
  KVC_MODE_INSERT = 8,         /* "__insert__": rows move from cache to cache; no operator runs */
  KVC_MODE_ALL = 15
};

/* Returns the mode of queries without a cache: KVC_MODE_AUTOREGRESSIVE if there is one token per row, else KVC_MODE_TRAIN. Only the
 * shape of q is read.
 *
 * q     four dimensions
 * bthd  1: q is [batch, length, heads, dim]; 0: [batch, heads, length, dim]
 *
 * Errors: INVALID_ARGUMENT, SHAPE. Threads: any. */
KVC_API kvc_status kvc_mode_of(const kvc_tensor *q, int32_t bthd, uint32_t *mode) KVC_NOEXCEPT;

/* ---- The registry ------------------------------------------------------------------------------------------------------------
 *
 * Every device that is opened has one of its own, with the built-in operators in it. */

enum { /* what an operator has, and a layer or a call may need */
  KVC_FEATURE_MASK = 1,
  KVC_FEATURE_BIAS = 2,
  KVC_FEATURE_WINDOW = 4,
  KVC_FEATURE_CHUNK = 8,
  KVC_FEATURE_NOT_CAUSAL = 16,     /* tokens that see later ones; encoder caches */
  KVC_FEATURE_SOFTCAP = 32,
  KVC_FEATURE_ALIBI = 64,
  KVC_FEATURE_SINKS = 128,
  KVC_FEATURE_LSE = 256,
  KVC_FEATURE_WEIGHTS = 512,
  KVC_FEATURE_DROPOUT = 1024,
  KVC_FEATURE_GROUPED = 2048,      /* fewer KV heads than query heads */
  KVC_FEATURE_DIMS_DIFFER = 4096,  /* head dimensions of K and V that differ */
  KVC_FEATURE_SHIFTED = 8192,      /* keys with a pending rotation */
  KVC_FEATURE_ROTATED = 1 << 14,   /* storage rotated by a Hadamard matrix */
  KVC_FEATURE_TRANSFORMER = 1 << 15, /* rows of a transformer cache */
  KVC_FEATURE_LIGHTNING = 1 << 16, /* states of a lightning cache */
  KVC_FEATURE_FORWARD = 1 << 17,   /* attention without a cache */
  KVC_FEATURE_BLOCK_Q = 1 << 18,   /* settings of kvc_operator_desc */
  KVC_FEATURE_BLOCK_K = 1 << 19,
  KVC_FEATURE_BLOCK_B = 1 << 20,
  KVC_FEATURE_SCAN = 1 << 21       /* stretches */
};

enum { /* sets of types */
  KVC_SET_F64 = 1,
  KVC_SET_F32 = 2,
  KVC_SET_F16 = 4,
  KVC_SET_BF16 = 8,
  KVC_SET_F8_E4M3 = 16,
  KVC_SET_F8_E5M2 = 32,
  KVC_SET_Q8_0 = 64,
  KVC_SET_Q4_0 = 128,
  KVC_SET_INT8 = 256,
  KVC_SET_NF4 = 512
};

typedef struct kvc_operator_info {
  uint32_t struct_size;
  uint32_t devices;        /* 1 << KVC_CPU, 1 << KVC_CUDA */
  uint32_t modes;          /* KVC_MODE_… */
  uint32_t features;       /* KVC_FEATURE_… */
  uint32_t storage;        /* KVC_SET_… of K and V in a cache */
  uint32_t runtime_dtypes; /* KVC_SET_… that may be asked for */
  uint32_t softmax_dtypes;
  int32_t head_dim_min; /* 0: any */
  int32_t head_dim_max;
  int32_t head_dim_multiple;
  int32_t block_q_multiple; /* what is asked for is rounded up to a multiple */
  int32_t block_k_multiple;
  char name[32];      /* that was asked for or listed */
  char canonical[32]; /* the first name of the operator, the same for all of its aliases */
} kvc_operator_info;

#define KVC_OPERATOR_INFO_INIT {sizeof(kvc_operator_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}}

/* Describes name `i`, in order of registration: an alias follows its operator. Count up until the call returns NOT_FOUND.
 * Errors: INVALID_ARGUMENT, NOT_FOUND. Threads: any. */
KVC_API kvc_status kvc_operator_at(const kvc_device *device, int32_t i, kvc_operator_info *out) KVC_NOEXCEPT;

/* Describes the operator that a name stands for.
 * Errors: INVALID_ARGUMENT, NOT_FOUND (the message lists the names). Threads: any. */
KVC_API kvc_status kvc_operator_find(const kvc_device *device, const char *name, kvc_operator_info *out) KVC_NOEXCEPT;

typedef struct kvc_operator_needs {
  uint32_t struct_size;
  uint32_t mode;     /* one KVC_MODE_… */
  uint32_t features; /* KVC_FEATURE_…; KVC_FEATURE_GROUPED and KVC_FEATURE_DIMS_DIFFER follow from the numbers below, too */
  uint32_t dtype_k;  /* storage; 0: KVC_F32 */
  uint32_t dtype_v;
  int32_t n_q_heads; /* 0: any */
  int32_t n_kv_heads;
  int32_t head_dim_k;
  int32_t head_dim_v;
  uint32_t runtime_dtype; /* 0: KVC_F32 */
  uint32_t softmax_dtype;
} kvc_operator_needs;

#define KVC_OPERATOR_NEEDS_INIT {sizeof(kvc_operator_needs), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Tells whether an operator can do what is needed.
 *
 * name    null: whether any built-in operator can
 * chosen  [32], may be null: receives the name of the operator; without a name, the first that can
 *
 * Errors: NOT_FOUND, INVALID_ARGUMENT, DTYPE, VERSION, NOT_SUPPORTED (the message names the first thing that it lacks). Threads: any. */
KVC_API kvc_status kvc_operator_supports(const kvc_device *device, const char *name, const kvc_operator_needs *needs,
                                         char *chosen) KVC_NOEXCEPT;

/* ---- Operators with settings ------------------------------------------------------------------------------------------------- */

typedef struct kvc_operator kvc_operator; /* a handle, see base.h */

enum { /* kvc_operator_desc.flags */
  KVC_OPERATOR_NO_SCAN = 1 /* stretches side by side, on several threads, instead of one after the other; same bits */
};

/* Settings. Everything 0 is the default, see kvc_operator_resolve(). */
typedef struct kvc_operator_desc {
  uint32_t struct_size;
  uint32_t flags;         /* KVC_OPERATOR_NO_SCAN */
  uint32_t runtime_dtype; /* the least exact type that q, k, v and weights may be rounded to before they are multiplied; sums stay
                             f32. KVC_F32, KVC_F16 or KVC_BF16: how far off results may be then, docs/SEMANTICS.md says (8, Accuracy).
                             A floor: flash, decode and ring round where many rows meet the same keys and the processor has AMX, which
                             is faster; everything else is as exact as in f32 */
  uint32_t softmax_dtype; /* the same for scores, exponentials and sums; KVC_F64 (vanilla) computes all of them in double */
  float softmax_scale;    /* 0: that of the layer. A layer to which kvc_bind_attention() bound constants must have the same one */
  float dropout_prob;     /* 0 or more, below 1: of calls with KVC_EXTRA_DROPOUT */
  int32_t block_q;        /* query rows (tokens times query heads of a KV head) that read the keys together, at most */
  int32_t block_k;        /* keys that are read at a time, at most */
  int32_t block_b;        /* no built-in operator has it */
  int32_t stretches;      /* ring: parts that a row's keys are cut into; 0: one per thread of the device */
  /* Bounds of kvc_operator_forward(). All 0: the operator is only bound to caches. max_rows * max_q_len and max_rows * max_kv_len are
     at most 2^30. */
  int32_t max_rows;
  int32_t max_q_len;
  int32_t max_kv_len;
  int32_t n_kv_heads;
  int32_t max_q_heads; /* 0: n_kv_heads */
  int32_t head_dim_k;
  int32_t head_dim_v;  /* 0: head_dim_k */
} kvc_operator_desc;

#define KVC_OPERATOR_DESC_INIT {sizeof(kvc_operator_desc), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Fills in each field of `desc` that is 0: from `base` (null: there is none), and KVC_F32 for the two types.
 * Errors: INVALID_ARGUMENT, VERSION. Threads: any. */
KVC_API kvc_status kvc_operator_resolve(const kvc_operator_desc *base, kvc_operator_desc *desc) KVC_NOEXCEPT;

/* Makes an operator with settings, and takes the room of kvc_operator_forward(). Blocks are rounded up to the multiples of
 * kvc_operator_info; kvc_operator_query() shows what is used.
 *
 * desc  null: all defaults
 * out   receives the handle, or null if the call fails
 *
 * Ownership: the caller destroys it. Layers that are bound to it keep what they need of it, and so does it of its device: destroy
 * and close in any order.
 * Errors: NOT_FOUND, INVALID_ARGUMENT, DTYPE, VERSION, NOT_SUPPORTED (a setting that the operator lacks, or a block larger than it
 * has), OVERFLOW, OUT_OF_MEMORY. Threads: any. */
KVC_API kvc_status kvc_operator_create(kvc_device *device, const char *name, const kvc_operator_desc *desc,
                                       kvc_operator **out) KVC_NOEXCEPT;

/* Destroys the handle. Null is allowed and does nothing. Errors: HANDLE (destroyed twice), BUSY. */
KVC_API kvc_status kvc_operator_destroy(kvc_operator *op) KVC_NOEXCEPT;

/* Describes an operator, and its settings as they are used. Either may be null; its struct_size must be set.
 * Errors: INVALID_ARGUMENT. Threads: const. */
KVC_API kvc_status kvc_operator_query(const kvc_operator *op, kvc_operator_info *info, kvc_operator_desc *desc) KVC_NOEXCEPT;

/* Layers [layer_begin, layer_end) attend with `op` in passes of these modes; null: with what the library chooses. A pass whose
 * sequences have one token each is KVC_MODE_AUTOREGRESSIVE, any other KVC_MODE_PREFILL, and a call with KVC_EXTRA_DROPOUT is
 * KVC_MODE_TRAIN. Takes no memory. Where one device was opened twice, caches of either take operators of both.
 *
 * Errors: INVALID_ARGUMENT (bounds; modes; a softmax_scale other than that of a layer), DEVICE_MISMATCH (op is of a device of
 * another type or number), BAD_STATE (a pass is open), NOT_SUPPORTED (the cache attends in one way alone; what the layers have
 * bound and store and the operator lacks). What a later kvc_bind_attention() adds is checked there, what a call brings at the
 * call. */
KVC_API kvc_status kvc_bind_operator(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, uint32_t modes,
                                     kvc_operator *op) KVC_NOEXCEPT;

/* ---- Attention without a cache ------------------------------------------------------------------------------------------------- */

enum { /* kvc_forward_desc.flags */
  KVC_FORWARD_CAUSAL = 1,  /* query position p sees keys at or below p */
  KVC_FORWARD_DROPOUT = 2, /* with dropout_prob of the operator and dropout_seed */
  KVC_FORWARD_NO_SINKS = 4 /* a partial result, as with KVC_EXTRA_NO_SINKS */
};

typedef struct kvc_forward_desc {
  uint32_t struct_size;
  uint32_t flags; /* KVC_FORWARD_… */
  uint64_t dropout_seed;
  int32_t reach;        /* keys at or above p - reach; 0: no limit */
  int32_t chunk;        /* keys at or above the first position of the chunk that p lies in; 0: no chunks */
  int32_t query_offset; /* position of query 0, keys count from 0. 0: kv_len - q_len, the queries are the last; KVC_NONE: 0 */
  int32_t layer;        /* of dropout, 0 … 65535 */
  float softcap;
  int32_t reserved; /* 0 */
} kvc_forward_desc;

#define KVC_FORWARD_DESC_INIT {sizeof(kvc_forward_desc), 0, 0, 0, 0, 0, 0, 0, 0}

/* Attention without a cache, over tensors within the bounds that the operator was created with. Scale: softmax_scale of the operator,
 * or 1 / sqrt(head_dim_k). In dropout `sequence` is the row. A query that sees no key gets 0 and minus infinity.
 *
 * desc          null: all defaults
 * q             [rows, q_len, n_q_heads, head_dim_k] f32, f16 or bf16, any strides, as the others
 * k             [rows, kv_len, n_kv_heads, head_dim_k]
 * v             [rows, kv_len, n_kv_heads, head_dim_v]
 * alibi_slopes  [n_q_heads], may be null; as in kvc_bind_attention()
 * sinks         [n_q_heads], may be null
 * extra         may be null. Of it bias, mask [rows, n_q_heads, q_len, kv_len], broadcast as there, weights, and lse
 *               [rows, q_len, n_q_heads]; every other field is 0
 * out           [rows, q_len, n_q_heads, head_dim_v]; written. Must not overlap q
 *
 * Threads: exclusive on the operator; the device's threads share the work.
 * Errors: INVALID_ARGUMENT, SHAPE (beyond the bounds, too), DTYPE, DEVICE_MISMATCH, OVERFLOW, VERSION, NOT_SUPPORTED (the operator was
 * created without bounds; what the call needs and it lacks). */
KVC_API kvc_status kvc_operator_forward(kvc_operator *op, const kvc_forward_desc *desc, const kvc_tensor *q,
                                        const kvc_tensor *k, const kvc_tensor *v, const float *alibi_slopes,
                                        const float *sinks, const kvc_attention_extra *extra,
                                        kvc_tensor *out) KVC_NOEXCEPT;

/* ---- A caller's operator ------------------------------------------------------------------------------------------------------- */

/* One call, made by the library and valid until the function returns. What takes no part is null.
 *
 * `columns` are those of kvc_history(); in passes of rows and without a cache, [n_tokens] is [batch, q_len], and the tensors over
 * columns are [batch, n_q_heads, q_len, columns]. Bias and mask have their full shape, with strides of 0 where they were broadcast; given
 * with n_kv_heads heads, they keep those. */
typedef struct kvc_operator_call {
  uint32_t struct_size;
  uint32_t mode;     /* KVC_MODE_… */
  uint32_t features; /* KVC_FEATURE_… that this call needs */
  int32_t layer;
  int32_t n_tokens;
  int32_t n_q_heads;
  int32_t n_kv_heads;
  int32_t batch;       /* rows of the batch; 0: tokens are a list */
  float scale;
  float softcap;       /* 0: none */
  float dropout_prob;  /* 0: no dropout in this call */
  float keep_factor;   /* 1 / (1 - dropout_prob) */
  int32_t block_q;     /* settings of kvc_operator_desc; 0: the operator's own */
  int32_t block_k;
  int32_t block_b;
  int32_t stretches;
  uint64_t dropout_seed;
  const float *slopes; /* [n_q_heads] */
  const float *sinks;  /* [n_q_heads]; null too where the call leaves them out */
  const kvc_tensor *q; /* [n_tokens, n_q_heads, head_dim_k] */
  const kvc_tensor *k; /* [columns, n_kv_heads, …] codes and scales, as kvc_get_codes() lends them; rows: [batch, columns, …] */
  const kvc_tensor *k_scales;
  const kvc_tensor *v;
  const kvc_tensor *v_scales;
  const kvc_tensor *bias;  /* [n_q_heads, n_tokens, columns] */
  const kvc_tensor *mask;
  const int32_t *position; /* [n_tokens] of the queries */
  const int32_t *sequence; /* [n_tokens]; KVC_NONE: padding, whose rows the library writes */
  kvc_tensor *out;         /* to be written: [n_tokens, n_q_heads, head_dim_v] */
  kvc_tensor *lse;         /* [n_tokens, n_q_heads] */
  kvc_tensor *weights;     /* [n_q_heads, n_tokens, columns] */
  void *stream;
} kvc_operator_call;

#define KVC_OPERATOR_CALL_INIT \
  {sizeof(kvc_operator_call), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
   NULL, NULL, NULL, NULL, NULL, NULL}

/* Writes what the call's queries see, its mask included and its bias not: 1 or 0 of KVC_BOOL, 0 or minus infinity of f32 and f16.
 *
 * call  as the function got it, on the thread that the function runs on
 * into  [n_tokens, columns], rows: [batch, 1, q_len, columns]; any strides
 *
 * Errors: INVALID_ARGUMENT (not within this call), SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, NOT_SUPPORTED (the call's mask differs from
 * head to head: read call->mask). */
KVC_API kvc_status kvc_call_mask(const kvc_operator_call *call, kvc_tensor *into) KVC_NOEXCEPT;

/* Writes the positions of the columns for one sequence: -1 where no query of it sees the cell. A cell may have one position for one
 * sequence and another one for another.
 *
 * position  [capacity] receives the first `capacity` columns
 *
 * Errors: INVALID_ARGUMENT (not within this call; capacity is negative; no query is of this sequence). */
KVC_API kvc_status kvc_call_positions(const kvc_operator_call *call, int32_t sequence, int32_t capacity,
                                      int32_t *position) KVC_NOEXCEPT;

/* Attends. It runs on the thread that called kvc_attention(), with cancellation disabled and in kvc's floating-point environment, and
 * may change both while it runs. It must return: an exception poisons the cache (INTERNAL). Calls on the cache, and on the operator in
 * kvc_operator_forward(), return BUSY meanwhile.
 *
 * Returns KVC_OK, or a status that the call then returns (INVALID_ARGUMENT for a number that is no status of kvc). KVC_E_DEVICE and
 * KVC_E_INTERNAL poison the cache; after any other the cache is as it was, but what kvc_put_attention() has put stays put, and the
 * caller's tensors may have been written. */
typedef kvc_status (*kvc_operator_forward_function)(void *user, const kvc_operator_call *call);

/* Whether it can do what is needed, in addition to what kvc_operator_info says, which was compared before: KVC_OK or
 * NOT_SUPPORTED. It is asked by kvc_operator_supports() and kvc_bind_operator(). */
typedef kvc_status (*kvc_operator_supports_function)(void *user, const kvc_operator_needs *needs);

/* Runs once, when neither the registry nor an operator nor a layer holds the functions: within the call that lets go of them last. It
 * must not use the handles of that call. */
typedef void (*kvc_operator_release_function)(void *user);

typedef struct kvc_operator_functions {
  uint32_t struct_size;
  uint32_t reserved;                            /* 0 */
  kvc_operator_supports_function supports;      /* may be null */
  kvc_operator_forward_function forward_native; /* must not be null */
  kvc_operator_forward_function forward_cpu;    /* on KVC_CPU; null: forward_native */
  kvc_operator_forward_function forward_cuda;   /* on KVC_CUDA, with tensors there; null: forward_native */
  kvc_operator_release_function release;        /* may be null */
} kvc_operator_functions;

#define KVC_OPERATOR_FUNCTIONS_INIT {sizeof(kvc_operator_functions), 0, NULL, NULL, NULL, NULL, NULL}

enum { /* kvc_operator_register() flags */
  KVC_OPERATOR_REPLACE = 1 /* names that are taken are given to the new operator */
};

/* Adds an operator of the caller's to a device. Layers and operators that exist keep what they have, whatever happens to its names.
 *
 * names      "mine", or "mine,alias,another": 1 to 31 of a-z, 0-9, _ and - each
 * flags      KVC_OPERATOR_REPLACE
 * info       what it has; name and canonical are not read. devices 0: this one; types 0: KVC_SET_F32. f8 in a
 *            layer with scales other than 1 (kvc_bind_scales()) is NOT_SUPPORTED at the call, which has no field for them. Keys that
 *            owe a rotation are rotated first, as kvc_get() does it, unless it has KVC_FEATURE_SHIFTED (quantised keys: NOT_SUPPORTED
 *            while any owes)
 * functions  copied
 * user       passed through
 *
 * Errors: INVALID_ARGUMENT (a name that is taken; the message names what is wrong), VERSION, OUT_OF_MEMORY. `release` does not run if
 * the call fails. Threads: any. */
KVC_API kvc_status kvc_operator_register(kvc_device *device, const char *names, uint32_t flags, const kvc_operator_info *info,
                                         const kvc_operator_functions *functions, void *user) KVC_NOEXCEPT;

/* Takes a caller's operator away, with all of its names. Those that it had taken from a built-in operator name that one again.
 * Errors: INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED (it is built in). Threads: any. */
KVC_API kvc_status kvc_operator_unregister(kvc_device *device, const char *name) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
