package kvc

// #include "shim_operators.h"
import "C"

// The functions of this file need no cache, allocate nothing, and any number of goroutines may call them.
// What they write must not overlap another tensor.

// MergeAttention merges the result o2 into o, over disjoint keys: with L = log(e^lse + e^lse2), o becomes
// o e^(lse - L) + o2 e^(lse2 - L), and lse becomes L. A log-sum-exp of minus infinity (a row that saw
// nothing) counts as nothing. Both are results without sinks, see AttentionExtra.NoSinks.
//
// o and o2 are [..., heads, size] of one shape, lse and lse2 [..., heads], made by Float32.
func MergeAttention(o, lse, o2, lse2 Tensor) error {
	if err := required(&o, "o", &lse, "lse"); err != nil {
		return err
	}
	if err := required(&o2, "o2", &lse2, "lse2"); err != nil {
		return err
	}
	return failure(C.go_merge_attention(o.c(), lse.c(), o2.c(), lse2.c()))
}

// ApplySinks adds the sinks, one for each head, to a result without them, once, when everything is
// merged: o becomes o / (1 + e^(sink - lse)). lse stays: it never holds the sink. A row whose log-sum-exp
// is minus infinity becomes 0.
func ApplySinks(o, lse Tensor, sinks []float32) error {
	if err := required(&o, "o", &lse, "lse"); err != nil {
		return err
	}
	if err := perEach(sinks, "sinks", lse.shape[lse.ndim-1], "head"); err != nil {
		return err
	}
	return failure(C.go_apply_sinks(o.c(), lse.c(), floats(sinks)))
}

// RepeatKVHeads writes each KV head n times: head h*n + i of out is head h of in. in is
// [..., heads, size], out [..., heads * n, size] of the same type. Attention never needs it, kernels of
// your own may.
func RepeatKVHeads(in Tensor, n int, out Tensor) error {
	times, err := number("n", n)
	if err != nil {
		return err
	}
	if err := required(&in, "in", &out, "out"); err != nil {
		return err
	}
	return failure(C.go_repeat_kv_heads(in.c(), times, out.c()))
}

// DropoutMask writes which weights a call of attention with this seed keeps: into is
// [heads, queries, keys], made by Bool, true is kept. What is kept counts 1 / (1 - probability) times. The
// mask depends on positions alone, not on cells, blocks, threads or instruction sets:
// kvc/operators.h says how it is computed.
func DropoutMask(seed uint64, probability float32, layer, sequence int, queries, keys []int32, into Tensor) error {
	var narrow narrowing
	at, of := narrow.number("layer", layer), narrow.number("sequence", sequence)
	nQ, nK := narrow.number("the length of queries", len(queries)), narrow.number("the length of keys", len(keys))
	if narrow.err != nil {
		return narrow.err
	}
	if err := into.check("into"); err != nil {
		return err
	}
	return failure(C.go_dropout_mask(C.uint64_t(seed), C.float(probability), at, of, nQ, numbers(queries), nK, numbers(keys), into.c()))
}

// ModeOf returns the mode of queries without a cache: ModeAutoregressive if there is one token per row,
// else ModeTrain. q is [batch, length, heads, size] if bthd, else [batch, heads, length, size].
func ModeOf(q Tensor, bthd bool) (Mode, error) {
	if err := q.check("q"); err != nil {
		return 0, err
	}
	var order C.int32_t
	if bthd {
		order = 1
	}
	out := C.go_mode_of(q.c(), order)
	return Mode(out.mode), failure(out.result)
}
