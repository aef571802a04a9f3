package kvc

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// TokenFlags of the tokens of a pass.
type TokenFlags uint32

// SeesLater marks a token that also sees later tokens of its sequence.
const SeesLater TokenFlags = C.KVC_TOKEN_SEES_LATER

// TokenType returns the flags of a token of a type; 0 is no type. Tokens of one sequence that have
// the same type in a pass see each other, later ones and ones outside the window too: an image sees
// itself whole. They must be consecutive tokens of their sequence, so each image of a pass has a
// type of its own.
func TokenType(number uint16) TokenFlags { return TokenFlags(number) << tokenTypeShift }

const tokenTypeShift = C.KVC_TOKEN_TYPE_SHIFT

// Begin opens a pass. positions and sequences have one element per token. A token whose sequence is
// None is padding: kvc ignores its position and never reads its rows, and its output is 0. See
// kvc_begin.
func (c *Cache) Begin(positions, sequences []int32) error {
	return c.BeginFlagged(positions, sequences, nil)
}

// BeginFlagged is Begin with flags per token; nil: none. The flags of padding are 0.
func (c *Cache) BeginFlagged(positions, sequences []int32, flags []TokenFlags) error {
	return c.BeginWith(positions, sequences, BeginOptions{Flags: flags})
}

// BeginOptions of BeginWith; zero: those of Begin.
type BeginOptions struct {
	Flags  []TokenFlags   // per token
	Stream unsafe.Pointer // of a GPU, in DLPack's numbering; nil: the legacy default stream
	Replay bool           // a captured graph does the pass: KVC_BEGIN_REPLAY
}

// BeginWith is Begin on a stream of a GPU.
func (c *Cache) BeginWith(positions, sequences []int32, options BeginOptions) error {
	n, first, err := tokens(positions, sequences, options.Flags)
	if err != nil {
		return err
	}
	var flags C.uint32_t
	if options.Replay {
		flags = C.KVC_BEGIN_REPLAY
	}
	err = failure(C.go_begin(c.key(), n, numbers(positions), numbers(sequences), first, flags, options.Stream))
	runtime.KeepAlive(c)
	return err
}

// BeginReserve opens a pass to size a graph for the worst case. Nothing is planned.
func (c *Cache) BeginReserve(nTokens int) error { return c.BeginReserveOn(nTokens, nil) }

// BeginReserveOn is BeginReserve on a stream of a GPU. While the stream is captured, Put, Attention and
// PutAttention become part of the graph.
func (c *Cache) BeginReserveOn(nTokens int, stream unsafe.Pointer) error {
	n, err := number("nTokens", nTokens)
	if err != nil {
		return err
	}
	err = failure(C.go_begin(c.key(), n, nil, nil, nil, C.KVC_BEGIN_RESERVE, stream))
	runtime.KeepAlive(c)
	return err
}

// Fits returns the error that Begin would return now. Nothing changes.
func (c *Cache) Fits(positions, sequences []int32) error {
	return c.FitsFlagged(positions, sequences, nil)
}

// FitsFlagged returns the error that BeginFlagged would return now. Nothing changes.
func (c *Cache) FitsFlagged(positions, sequences []int32, flags []TokenFlags) error {
	n, first, err := tokens(positions, sequences, flags)
	if err != nil {
		return err
	}
	err = failure(C.go_fits(c.key(), n, numbers(positions), numbers(sequences), first))
	runtime.KeepAlive(c)
	return err
}

// Put stores one layer's keys and values [n tokens, KV heads, head size] of the open pass. With VInK v is
// Tensor{}, here and in PutAttention.
func (c *Cache) Put(layer int, k, v Tensor) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := k.check("k"); err != nil {
		return err
	}
	if err := v.checkIfPresent("v"); err != nil {
		return err
	}
	err = failure(C.go_put(c.key(), at, k.c(), v.c()))
	runtime.KeepAlive(c)
	return err
}

// AttentionExtra is what one attention call takes and returns besides q and out; zero: nothing, and
// Tensor{}: not wanted. Columns are the cells that History returns. Bias and Mask are broadcast: an
// extent may be 1, and leading dimensions may be missing. See kvc_attention_extra.
type AttentionExtra struct {
	Bias    Tensor // [query heads, n tokens, history], added to the scores; minus infinity hides
	Mask    Tensor // [query heads, n tokens, history], made by Bool: false hides
	Weights Tensor // [query heads, n tokens, history], written: for analysis, not for speed
	LSE     Tensor // [n tokens, query heads], written: log of the sum of exponentials

	// Dropout drops weights by DropoutSeed, with the probability of the operator that BindOperator bound
	// to the layer for ModeTrain. Weights are what is left, and LSE is that of all keys.
	Dropout     bool
	DropoutSeed uint64 // 0 without Dropout
	NoSinks     bool   // a partial result, see MergeAttention: the layer's sinks take no part
}

func (e *AttentionExtra) check() error {
	if err := optional(&e.Bias, "Bias", &e.Mask, "Mask"); err != nil {
		return err
	}
	return optional(&e.Weights, "Weights", &e.LSE, "LSE")
}

func (e *AttentionExtra) c() C.go_extra {
	extra := C.go_extra{
		bias: e.Bias.c(), mask: e.Mask.c(), weights: e.Weights.c(), lse: e.LSE.c(), dropout_seed: C.uint64_t(e.DropoutSeed),
	}
	if e.Dropout {
		extra.flags |= C.KVC_EXTRA_DROPOUT
	}
	if e.NoSinks {
		extra.flags |= C.KVC_EXTRA_NO_SINKS
	}
	return extra
}

// Attention computes attention of the queries [n tokens, query heads, head size] of the pass and
// writes it to out.
func (c *Cache) Attention(layer int, q, out Tensor) error {
	return c.AttentionWith(layer, q, out, AttentionExtra{})
}

// AttentionWith is Attention with the tensors of extra.
func (c *Cache) AttentionWith(layer int, q, out Tensor, extra AttentionExtra) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := required(&q, "q", &out, "out"); err != nil {
		return err
	}
	if err := extra.check(); err != nil {
		return err
	}
	err = failure(C.go_attention(c.key(), at, q.c(), out.c(), extra.c()))
	runtime.KeepAlive(c)
	return err
}

// PutAttention is Put and Attention in one foreign call. All arguments are checked before anything
// is stored.
func (c *Cache) PutAttention(layer int, k, v, q, out Tensor) error {
	return c.PutAttentionWith(layer, k, v, q, out, AttentionExtra{})
}

// PutAttentionWith is PutAttention with the tensors of extra.
func (c *Cache) PutAttentionWith(layer int, k, v, q, out Tensor, extra AttentionExtra) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := k.check("k"); err != nil {
		return err
	}
	if err := v.checkIfPresent("v"); err != nil {
		return err
	}
	if err := required(&q, "q", &out, "out"); err != nil {
		return err
	}
	if err := extra.check(); err != nil {
		return err
	}
	err = failure(C.go_put_attention(c.key(), at, k.c(), v.c(), q.c(), out.c(), extra.c()))
	runtime.KeepAlive(c)
	return err
}

// SetCausal replaces the set of tokens of the open pass, by index, that also see later tokens.
func (c *Cache) SetCausal(except []int32) error {
	n, err := number("the length of except", len(except))
	if err != nil {
		return err
	}
	err = failure(C.go_set_causal(c.key(), n, numbers(except)))
	runtime.KeepAlive(c)
	return err
}

// Commit keeps the pass. In a layer that was not put, its tokens hold zeros.
func (c *Cache) Commit() error {
	err := failure(C.go_commit(c.key()))
	runtime.KeepAlive(c)
	return err
}

// CommitPrefix keeps the first tokens of each named sequence in this pass; sequences that are not
// named keep all their tokens. After an error the pass is still open.
func (c *Cache) CommitPrefix(sequences, keep []int32) error {
	n, err := together("sequences and keep", len(sequences), len(keep))
	if err != nil {
		return err
	}
	err = failure(C.go_commit_prefix(c.key(), n, numbers(sequences), numbers(keep)))
	runtime.KeepAlive(c)
	return err
}

// Abort discards the pass: the cache is as it was before Begin.
func (c *Cache) Abort() error {
	err := failure(C.go_abort(c.key()))
	runtime.KeepAlive(c)
	return err
}
