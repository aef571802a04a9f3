package kvc

// #include "shim.h"
import "C"

import "unsafe"

// SeqEnd means "to the end" in a range of positions.
const SeqEnd = C.KVC_SEQ_END

// None means "off" where 0 means "default". As the sequence of a token it makes the token padding.
const None = C.KVC_NONE

// CacheFlags of a CacheDesc.
type CacheFlags uint64

// The flags of a CacheDesc.
const (
	Strict     CacheFlags = C.KVC_CACHE_STRICT       // each position of a batch is its sequence's next: no gaps. Recommended to begin with
	ZeroOnFree CacheFlags = C.KVC_CACHE_ZERO_ON_FREE // overwrite cells with zeros when they are freed
	Prefault   CacheFlags = C.KVC_CACHE_PREFAULT     // touch all memory in NewCache
)

// Flags of a CacheDesc that say how K and V are stored.
const (
	RotateK     CacheFlags = C.KVC_CACHE_ROTATE_K    // K is stored rotated by a Hadamard matrix: Q8_0, Q4_0, INT8, NF4
	RotateV     CacheFlags = C.KVC_CACHE_ROTATE_V    // V likewise
	Interleaved CacheFlags = C.KVC_CACHE_INTERLEAVED // K and V of a token lie side by side in one row: F32, F16 or BF16
	VInK        CacheFlags = C.KVC_CACHE_V_IN_K      // V is dimensions VFirst … of K: put Tensor{} as V
)

// CacheDesc is the geometry that every kind of cache shares; all bounds are hard. See kvc_cache_desc.
type CacheDesc struct {
	NLayers, NKVHeads  int32
	HeadDimK, HeadDimV int32 // HeadDimV 0: as HeadDimK
	DTypeK, DTypeV     DType // storage types, each of its own; 0: F32, and with VInK DTypeV must be 0
	MaxSequences       int32 // sequences are 0 … MaxSequences - 1
	Capacity           int32 // positions that one sequence may hold
	MaxBatch           int32 // a pass has 1 … MaxBatch tokens, padding included
	Cells              int32 // pool that all sequences share; 0: as many as the other bounds can need
	MaxQHeads          int32 // 0: NKVHeads * 16
	BlockK, BlockV     int32 // NF4: values that share a scale, 16, 32, 64 or 128; 0: the largest of 64, 32, 16 that fits
	VFirst             int32 // VInK: the first dimension of K that belongs to V
	Flags              CacheFlags
}

func (d *CacheDesc) c(kind C.uint32_t) (desc C.kvc_cache_desc) {
	desc.struct_size = C.sizeof_kvc_cache_desc
	desc.kind = kind
	desc.flags = C.uint64_t(d.Flags)
	desc.n_layers, desc.n_kv_heads = C.int32_t(d.NLayers), C.int32_t(d.NKVHeads)
	desc.head_dim_k, desc.head_dim_v = C.int32_t(d.HeadDimK), C.int32_t(d.HeadDimV)
	desc.dtype_k, desc.dtype_v = C.uint32_t(d.DTypeK), C.uint32_t(d.DTypeV)
	desc.max_sequences, desc.capacity = C.int32_t(d.MaxSequences), C.int32_t(d.Capacity)
	desc.max_batch, desc.cells = C.int32_t(d.MaxBatch), C.int32_t(d.Cells)
	desc.max_q_heads = C.int32_t(d.MaxQHeads)
	desc.block_k, desc.block_v = C.int32_t(d.BlockK), C.int32_t(d.BlockV)
	desc.v_first = C.int32_t(d.VFirst)
	return desc
}

// Kind is the kind of a cache and what only that kind needs: CausalDesc, EncoderDesc, RecurrentDesc,
// TransformerDesc or LightningDesc.
type Kind interface {
	// c returns the number of the kind and its descriptor, which holds no Go pointers.
	c() (kind C.uint32_t, desc unsafe.Pointer)
}

// CausalDesc is what a token of a causal cache sees and what the cache keeps; zero: every token sees
// everything before it, without limit. See kvc_causal_desc.
type CausalDesc struct {
	Reach        int32 // a token sees itself and Reach positions before it; 0: everything
	Memory       int32 // positions kept; 0: the reach; None: unlimited
	Chunk        int32 // attention restarts every Chunk positions; 0: never
	KeepFirst    int32 // positions below it stay visible whatever the reach
	CellPadding  int32 // the range that Get and Mask span is rounded outward to a multiple of it; 0: 1
	MaskDType    DType // what MaskShape proposes: F32, F16 or Bool8; 0: F32
	PositionFree bool  // keys carry no rotation: positions may move without touching them
}

func (d CausalDesc) c() (C.uint32_t, unsafe.Pointer) {
	desc := &C.kvc_causal_desc{struct_size: C.sizeof_kvc_causal_desc, kind: C.KVC_CAUSAL}
	if d.PositionFree {
		desc.flags = C.KVC_CAUSAL_POSITION_FREE
	}
	desc.reach, desc.memory, desc.chunk = C.int32_t(d.Reach), C.int32_t(d.Memory), C.int32_t(d.Chunk)
	desc.keep_first, desc.cell_padding = C.int32_t(d.KeepFirst), C.int32_t(d.CellPadding)
	desc.mask_dtype = C.uint32_t(d.MaskDType)
	return C.KVC_CAUSAL, unsafe.Pointer(desc)
}

// AttentionDesc is bound once per range of layers. See kvc_attention_desc.
type AttentionDesc struct {
	NQHeads        int32 // required: a multiple of NKVHeads, at most MaxQHeads
	Scale, Softcap float32
	ALiBiSlopes    []float32 // [NQHeads], may be nil
	Sinks          []float32 // [NQHeads], may be nil
}

func (d *AttentionDesc) c() C.kvc_attention_desc {
	return C.kvc_attention_desc{
		struct_size: C.sizeof_kvc_attention_desc,
		n_q_heads:   C.int32_t(d.NQHeads), scale: C.float(d.Scale), softcap: C.float(d.Softcap),
	}
}

// RopePairs says which dimensions are rotated together, counted from FirstDim.
type RopePairs uint32

// The ways to pair dimensions.
const (
	Neighbours RopePairs = C.KVC_ROPE_NEIGHBOURS // (0, 1) (2, 3) …
	Halves     RopePairs = C.KVC_ROPE_HALVES     // (0, n/2) (1, n/2 + 1) …
)

// RopeDesc is how the caller rotates keys and queries, over the dimensions
// [FirstDim, FirstDim + NDims). See kvc_rope_desc.
type RopeDesc struct {
	Pairs            RopePairs
	FirstDim         int32
	NDims            int32     // even; 0: HeadDimK - FirstDim, rounded down to even
	Base             float32   // 0: 10000
	Scale            float32   // 0: 1
	FrequencyFactors []float32 // [NDims / 2], may be nil
}

func (d *RopeDesc) c() C.kvc_rope_desc {
	return C.kvc_rope_desc{
		struct_size: C.sizeof_kvc_rope_desc, pairs: C.uint32_t(d.Pairs), n_dims: C.int32_t(d.NDims),
		base: C.float(d.Base), scale: C.float(d.Scale), first_dim: C.int32_t(d.FirstDim),
	}
}
