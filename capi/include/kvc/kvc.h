/* kvc: the KV cache that any inference runtime can link.
 *
 * A KV cache holds the keys and values of the tokens that a transformer has processed, for several sequences at once.
 * kvc stores them in cells, decides which cell takes which token, knows what each token may see, and computes attention
 * straight from the cells. This header includes the thirteen headers that are the manual, in reading order:
 *
 *   base.h       status codes and messages, tensors, versions, threads and forks
 *   device.h     where memory is and how many threads work
 *   cache.h      creating a cache, the forward pass, sequences, watching
 *   attention.h  constants of the model, attention, reading K, V and the mask for kernels of your own
 *   storage.h    storage types, their codecs, and reading what a cache stores
 *   encoder.h    caches of encoder inputs, for cross attention
 *   recurrent.h  caches of the states of recurrent layers
 *   rows.h       batches of rows, for the two kinds that follow
 *   transformer.h  caches of keys and values of a batch of rows
 *   lightning.h  caches of the states of linear attention with decay
 *   wrapper.h    several caches that move as one
 *   operators.h  attention operators by name, attention without a cache, partial results, dropout
 *   metadata.h   sizes of a cache as models describe them, padding
 *
 * More are included on request: kvc.hpp and hybrid.hpp, the same for C++17; kvc_dlpack.h, tensors of array libraries without a
 * copy; and experimental.h, with calls that may still change.
 *
 * The shortest use, batch by batch (statuses unchecked for brevity):
 *
 *   kvc_device *device;  kvc_cache *cache;
 *   kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
 *   desc.n_layers = 30;       desc.n_kv_heads = 3;     desc.head_dim_k = 64;  desc.max_q_heads = 9;
 *   desc.dtype_k = KVC_F16;   desc.dtype_v = KVC_F16;
 *   desc.max_sequences = 1;   desc.capacity = 2048;    desc.max_batch = 512;
 *   kvc_device_open("cpu", NULL, NULL, &device);
 *   kvc_cache_create(device, &desc, NULL, &cache);
 *   for each batch of tokens {
 *     kvc_begin(cache, n_tokens, position, sequence, NULL, 0, NULL);
 *     for each layer {                                       // your projections make k, v and q, rotated as you like
 *       kvc_put(cache, layer, &k, &v);                       // [n_tokens, n_kv_heads, head_dim]
 *       kvc_attention(cache, layer, &q, &out, NULL);         // [n_tokens, n_q_heads, head_dim]
 *     }
 *     kvc_commit(cache);
 *   }
 *   kvc_cache_destroy(cache);  kvc_device_close(device);
 *
 * Conventions: scalars have fixed width, ranges are half-open, outputs come last, and every function but the four that return
 * text or a number returns a kvc_status. Descriptors begin with struct_size, which the caller sets to sizeof the struct
 * (KVC_CACHE_DESC_INIT and the like do); zero in any other field means its default, and KVC_NONE (-1) means "off" in fields
 * where 0 cannot. A call that fails has changed nothing (KVC_E_DEVICE and KVC_E_INTERNAL excepted). After kvc_cache_create()
 * has returned, no call on the cache allocates memory, maps memory or starts a thread. */
#ifndef KVC_KVC_H
#define KVC_KVC_H

#include "base.h"
#include "device.h"
#include "cache.h"
#include "attention.h"
#include "storage.h"
#include "encoder.h"
#include "recurrent.h"
#include "rows.h"
#include "transformer.h"
#include "lightning.h"
#include "wrapper.h"
#include "operators.h"
#include "metadata.h"

#endif
