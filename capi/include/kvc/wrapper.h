/* kvc/wrapper.h: the wrapper cache, several caches that move as one. Part of <kvc/kvc.h>. Since 0.2.
 *
 * Models mix layers: windows beside full attention, cross attention beside self attention, states beside keys and values. Each
 * kind of layer has a cache of its own, and a wrapper keeps them together: one kvc_begin() begins the pass in all of them, and
 * kvc_commit(), kvc_abort(), kvc_resume(), kvc_remove() … reach all of them or none.
 *
 *   kvc_cache *children[] = {full, window};
 *   const int32_t child[] = {1, 1, 1, 0}, layer[] = {0, 1, 2, 0};       // three window layers, then a full one
 *   kvc_cache_wrap(children, 2, child, layer, 4, &model);
 *
 *   kvc_begin(model, n, position, sequence, NULL, 0, NULL);
 *   for each layer of the model {                                       // by the wrapper's number …
 *     kvc_put(model, i, &k, &v);  kvc_attention(model, i, &q, &out, NULL);
 *   }                                                                   // … or kvc_put(window, layer[i], …) on the child itself
 *   kvc_commit(model);
 *
 * What each call does on a wrapper:
 *
 *   begin, fits, commit, commit_prefix, abort, remove, can_remove, copy_prefix, reorder, resume, can_resume
 *                      on all children, checkpoint_take on all recurrent and lightning ones. First all are asked, also for what an
 *                      open pass would leave, and only if none refuses do all do it. If several refuse, the status is the first in
 *                      the order of cache.h (INVALID_ARGUMENT, BAD_STATE, WINDOW_LOST, NOT_FOUND, NOT_SUPPORTED, CACHE_FULL); the
 *                      message names the child. A child's shift function works on copies, which replace nothing unless all
 *                      children agree
 *   begin, fits        a token flag must be known to some child; each child sees the flags that it knows
 *   resume, can_resume, copy_prefix    the largest place at which every child can continue
 *   put, put_codes, put_attention, attention, get, get_codes, get_copy, gather, mask, history, runs, encoder_put, state_get …,
 *   rows_view …        on the child that owns the layer
 *   encoder_share, encoder_query, state_layout, state_slots, checkpoint_list
 *                      on the only child of that kind; NOT_SUPPORTED if there are several or none
 *   bind_attention, bind_rope, bind_scales, bind_decay, bind_operator
 *                      on the owners of the layers, all or none; NOT_SUPPORTED if one of them lacks it
 *   bind_shift         NOT_SUPPORTED: call it on the children
 *   set_causal         on every causal or transformer child
 *   sequence_query     next; flags of all; room: the least. first and lost_below: the highest, count: the lowest of the causal or
 *                      transformer children; without any of those next, 0 and 0
 *   stats              cells and bytes: sums over the children; passes: its own. While a call runs on the wrapper, some children
 *                      may have counted it already
 *   digest, check      over all children
 *   memory_bytes, create               NOT_SUPPORTED: kvc_cache_wrap() makes a wrapper, which takes no memory of the device
 *
 * Sequences are those that every child has. A child answers calls that begin or end passes or move sequences with BAD_STATE as
 * long as it is wrapped; everything else works on it as ever, with its own layer numbers. Two threads may put two children at the
 * same time; through the wrapper they exclude each other. A poisoned child poisons the wrapper. */
#ifndef KVC_WRAPPER_H
#define KVC_WRAPPER_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KVC_MAX_CHILDREN = 16 };

/* Wraps caches that are idle and hold nothing.
 *
 * children        [n_children], 1 … KVC_MAX_CHILDREN, each once, of any kind but wrapper, all on one device. Borrowed for the
 *                 call, as the two arrays below.
 * child_of_layer  [n_layers] index into children of the cache that layer i of the wrapper belongs to.
 * layer_in_child  [n_layers] its number there. Several layers may name the same one, for models whose layers share K and V.
 * n_layers        0 … 65536; if it is 0, both arrays may be null, and calls on layers go to the children.
 * out             receives the handle, or null if the call fails.
 *
 * Ownership: the wrapper keeps what it needs of its children, so handles may be destroyed in any order. Destroying the wrapper
 * (BUSY while a call is inside a child) lets its children go as they are, an open pass included; those whose handles live can be
 * used alone again.
 * Threads: a call on the wrapper is one on each child that it reaches: BUSY while another thread is in a call on such a child that
 * excludes it.
 * Errors: INVALID_ARGUMENT (bounds, a child named twice), HANDLE, BUSY, NOT_SUPPORTED (a wrapper as a child), DEVICE_MISMATCH,
 * BAD_STATE (a child is wrapped already, has a pass open or holds something), OUT_OF_MEMORY. */
KVC_API kvc_status kvc_cache_wrap(kvc_cache *const *children, int32_t n_children, const int32_t *child_of_layer,
                                  const int32_t *layer_in_child, int32_t n_layers, kvc_cache **out) KVC_NOEXCEPT;

/* Finds the child that owns a layer of a wrapper, and the layer's number there. Either output may be null.
 *
 * child  receives the handle under which the child was wrapped. It stays whoever's it was: do not destroy it twice.
 *
 * Errors: NOT_SUPPORTED (no wrapper), INVALID_ARGUMENT (layer), HANDLE (the child's handle was destroyed; only if child is not
 * null). Threads: const. */
KVC_API kvc_status kvc_cache_child(const kvc_cache *wrapper, int32_t layer, kvc_cache **child,
                                   int32_t *layer_in_child) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
