package kvc

// #include "shim_rows.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// Masked marks a token that adds nothing to the states of a lightning cache while time passes: a gap
// with an output. Its rows of k and v are not read. Other kinds return InvalidArgument.
const Masked TokenFlags = C.KVC_TOKEN_MASKED

// LightningDesc makes a cache for linear attention with decay (Lightning Attention, RetNet, MiniMax-01).
// It holds no keys and values but, per layer, sequence and KV head, one matrix of f32,
// [HeadDimK, HeadDimV], so memory does not grow with a sequence. Time is the position: with
// lambda = exp(-slope) of the head, the token at p gets
//
//	scale * q_p * (sum over j <= p of lambda^(p - j) k_j^T v_j)
//
// where scale is 1 unless BindAttention says otherwise. BindDecay binds the slopes, once, while the cache
// is empty; without them Put returns BadState. Begin and BeginRows both work. Attention attends in the
// layer that was put last; PutAttention does both in less time. Of CacheDesc Capacity, Cells, BlockK,
// BlockV and VFirst must be 0, and types 0 or F32. See kvc/lightning.h for what else differs.
type LightningDesc struct {
	Block              int32 // tokens that a pass multiplies at once, 1 … 1024; 0: the kernel's own number
	Checkpoints        int32 // that a sequence keeps; 0: 24, None: none. Each is as large as a state: see MemoryBytes
	CheckpointInterval int32 // positions between automatic ones; 0: 1664, None: no automatic ones
	CheckpointMinPos   int32 // last position of a pass that leaves the first; 0: 16, None: any
	DraftStates        int32 // CommitPrefix can cut a sequence with up to DraftStates + 1 tokens in the pass
	Approximate        bool  // middle parts may be removed; states then still contain them
	HostCheckpoints    bool  // checkpoints lie in host memory, where they are on a CPU in any case
	Fused              bool  // Attention returns NotSupported, and PutAttention of prompts takes less time on a CPU
}

func (d LightningDesc) c() (C.uint32_t, unsafe.Pointer) {
	desc := &C.kvc_lightning_desc{struct_size: C.sizeof_kvc_lightning_desc, kind: C.KVC_LIGHTNING}
	if d.Approximate {
		desc.flags |= C.KVC_LIGHTNING_APPROXIMATE
	}
	if d.HostCheckpoints {
		desc.flags |= C.KVC_LIGHTNING_HOST_CHECKPOINTS
	}
	if d.Fused {
		desc.flags |= C.KVC_LIGHTNING_FUSED
	}
	desc.block, desc.draft_states = C.int32_t(d.Block), C.int32_t(d.DraftStates)
	desc.checkpoints, desc.checkpoint_interval = C.int32_t(d.Checkpoints), C.int32_t(d.CheckpointInterval)
	desc.checkpoint_min_pos = C.int32_t(d.CheckpointMinPos)
	return C.KVC_LIGHTNING, unsafe.Pointer(desc)
}

// BindDecay binds how the states of layers [layerBegin, layerEnd) decay: by exp(-slope) per position, a
// slope for each KV head, finite and 0 or more. Only an empty cache takes them. The slice is copied.
func (c *Cache) BindDecay(layerBegin, layerEnd int, slopes []float32) error {
	begin, end, err := c.layers(layerBegin, layerEnd, func(holder *Cache) error {
		return perEach(slopes, "slopes", holder.kvHeads, "KV head")
	})
	if err != nil {
		return err
	}
	err = failure(C.go_bind_decay(c.handle, begin, end, floats(slopes)))
	runtime.KeepAlive(c)
	return err
}

// SlopeFamily is a known way to choose slopes.
type SlopeFamily uint32

// The families. H: heads, h: the head, l: the layer, L: layers.
const (
	// 2^(-8 (h + 1) / H); if H is no power of two those of the next lower power, then every second one of
	// the next higher. Also what AttentionDesc.ALiBiSlopes takes. Ignores the layer.
	SlopesALiBi      SlopeFamily = C.KVC_SLOPES_ALIBI
	SlopesLightning2 SlopeFamily = C.KVC_SLOPES_LIGHTNING2 // SlopesALiBi * (1 - l / max(L - 1, 1) + 1e-5)
	SlopesMiniMax    SlopeFamily = C.KVC_SLOPES_MINIMAX    // 2^(-8 (h + 1) / H) * (1 - l / (L - 1 + 1e-5) + 1e-5)
	SlopesLinear     SlopeFamily = C.KVC_SLOPES_LINEAR     // 8 h / H * (1 - l / L)
)

// Slopes writes the slopes of a family for one layer, one for each head.
func Slopes(family SlopeFamily, layer, nLayers int, heads []float32) error {
	var narrow narrowing
	at, all, n := narrow.number("layer", layer), narrow.number("nLayers", nLayers), narrow.number("the length of heads", len(heads))
	if narrow.err != nil {
		return narrow.err
	}
	return failure(C.go_slopes(C.uint32_t(family), n, at, all, floats(heads)))
}

// LightningRead copies the states of sequences [sequenceBegin, sequenceBegin + n) in one layer, as if
// the open pass were committed: into is [n, KV heads, HeadDimK, HeadDimV], made by Float32.
func (c *Cache) LightningRead(layer, sequenceBegin, n int, into Tensor) error {
	return c.states(layer, sequenceBegin, n, &into, "into", func(at, first, count C.int32_t, t C.go_tensor) C.go_result {
		return C.go_lightning_read(c.key(), at, first, count, t)
	})
}

// LightningWrite replaces the states of sequences in one layer by what LightningRead copied. Their
// checkpoints are dropped. BadState: a pass is open, the layer has no slopes, or a sequence is empty, so
// its state is zeros.
func (c *Cache) LightningWrite(layer, sequenceBegin, n int, from Tensor) error {
	return c.states(layer, sequenceBegin, n, &from, "from", func(at, first, count C.int32_t, t C.go_tensor) C.go_result {
		return C.go_lightning_write(c.key(), at, first, count, t)
	})
}

func (c *Cache) states(layer, sequenceBegin, n int, t *Tensor, name string,
	call func(at, first, count C.int32_t, t C.go_tensor) C.go_result) error {
	var narrow narrowing
	at, first, count := narrow.number("layer", layer), narrow.number("sequenceBegin", sequenceBegin), narrow.number("n", n)
	if narrow.err != nil {
		return narrow.err
	}
	if err := t.check(name); err != nil {
		return err
	}
	err := failure(call(at, first, count, t.c()))
	runtime.KeepAlive(c)
	return err
}
