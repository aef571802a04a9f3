// Package kvc is the KV cache that any inference runtime can link, for Go.
//
// A Cache holds the keys and values of the tokens that a transformer has processed, for several sequences at once, and
// computes attention straight from its memory:
//
//	device, err := kvc.OpenDevice("cpu", kvc.DeviceOptions{})
//	cache, err := kvc.NewCache(device, kvc.CacheDesc{NLayers: 30, NKVHeads: 3, HeadDimK: 64, …}, kvc.CausalDesc{})
//	defer cache.Close()
//	err = cache.Begin(positions, sequences)
//	for layer := 0; layer < 30; layer++ {
//		err = cache.Put(layer, kvc.Float32(k, n, 3, 64), kvc.Float32(v, n, 3, 64))
//		err = cache.Attention(layer, kvc.Float32(q, n, 9, 64), kvc.Float32(out, n, 9, 64))
//	}
//	err = cache.Commit()
//
// The C headers say what each call does, costs and asks for; here is what differs. Errors are *Error, found by
// errors.Is(err, kvc.CacheFull). Slices are used during a call only. A cache may move between goroutines; Fits,
// CanResume, Runs, Sequence, Stats, Digest, Check and MemoryBytes may overlap each other, every other method excludes them
// all: an overlap that breaks this rule is answered with Busy.
package kvc

// #include "shim.h"
import "C"

import (
	"runtime"
	"sync"
)

// SeqEnd means "to the end" in a range of positions, None means "off" where 0 means "default".
const (
	SeqEnd = C.KVC_SEQ_END
	None   = C.KVC_NONE
)

// CacheFlags of a CacheDesc.
type CacheFlags uint64

// The flags of a CacheDesc.
const (
	Strict     CacheFlags = C.KVC_CACHE_STRICT       // each position of a batch is its sequence's next: no gaps
	ZeroOnFree CacheFlags = C.KVC_CACHE_ZERO_ON_FREE // cells become zeros when they are freed
	Prefault   CacheFlags = C.KVC_CACHE_PREFAULT     // touch all memory at create
)

// TokenFlags of the tokens of a pass.
type TokenFlags uint32

// SeesLater marks a token that sees its sequence's tokens after it too.
const SeesLater TokenFlags = C.KVC_TOKEN_SEES_LATER

// CacheDesc is the geometry of a cache; all bounds are hard. See kvc_cache_desc.
type CacheDesc struct {
	NLayers, NKVHeads  int32
	HeadDimK, HeadDimV int32 // HeadDimV 0: as HeadDimK
	DTypeK, DTypeV     DType // storage types; 0: F32
	MaxSequences       int32 // sequences are 0 … MaxSequences - 1
	Capacity           int32 // positions that one sequence may hold
	MaxBatch           int32 // a pass has 1 … MaxBatch tokens
	Cells              int32 // pool that all sequences share; 0: as many as the other bounds can need
	MaxQHeads          int32 // 0: NKVHeads * 16
	Flags              CacheFlags
}

// CausalDesc is what a token sees and what is kept; zero: every token sees everything before it. See kvc_causal_desc.
type CausalDesc struct {
	Reach        int32 // a token sees itself and Reach positions before it; 0: everything
	Memory       int32 // positions kept; 0: the reach; None: unlimited
	Chunk        int32 // attention restarts every Chunk positions; 0: never
	KeepFirst    int32 // positions below it stay visible whatever the reach says
	CellPadding  int32 // the range that Get and Mask span is rounded outward to a multiple of it
	MaskDType    DType // what MaskShape proposes: F32 or F16; 0: F32
	PositionFree bool  // keys carry no rotation: positions may move without touching them
}

// AttentionDesc is bound once per range of layers. See kvc_attention_desc.
type AttentionDesc struct {
	NQHeads        int32
	Scale, Softcap float32
	ALiBiSlopes    []float32 // [NQHeads], may be nil
	Sinks          []float32 // [NQHeads], may be nil
}

// RopePairs says which dimensions turn together.
type RopePairs uint32

// The ways to pair dimensions.
const (
	Neighbours RopePairs = C.KVC_ROPE_NEIGHBOURS // (0, 1) (2, 3) …
	Halves     RopePairs = C.KVC_ROPE_HALVES     // (0, n/2) (1, n/2 + 1) …
)

// RopeDesc is how the caller rotates keys and queries. See kvc_rope_desc.
type RopeDesc struct {
	Pairs            RopePairs
	NDims            int32 // 0: HeadDimK
	Base, Scale      float32
	FrequencyFactors []float32 // [NDims / 2], may be nil
}

// Run is a row of cells that hold consecutive positions. See kvc_run.
type Run struct{ Cell, Length, Position, Offset int32 }

// SequenceInfo is what a sequence holds. See kvc_sequence_info.
type SequenceInfo struct{ First, Next, Count, Room, LostBelow int }

// State of a cache. A later library may answer with one that has no name here.
type State uint32

// The states of a cache.
const (
	Idle     State = C.KVC_STATE_IDLE
	InPass   State = C.KVC_STATE_PASS
	Reserve  State = C.KVC_STATE_RESERVE
	Poisoned State = C.KVC_STATE_POISONED // only Close and Stats work
)

// Stats counts what a cache holds. See kvc_stats.
type Stats struct {
	State                                        State
	Cells, CellsUsed, CellsShared, Bytes, Passes uint64
}

// VersionNumber is the library's version: major << 16 | minor << 8 | patch.
func VersionNumber() uint32 { return uint32(C.kvc_version_number()) }

// BuildInfo is one line about the library, for people.
func BuildInfo() string { return C.GoString(C.kvc_build_info()) }

// Cache holds keys and values. Its handle never changes and is a key of a table, not an address: a method that is called
// after Close answers InvalidHandle.
type Cache struct {
	handle   *C.kvc_cache
	once     closing
	headDimK int
}

// closing makes Close idempotent, from several goroutines too.
type closing struct {
	lock sync.Mutex
	open bool
}

func (c *closing) close(destroy func() C.go_result) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	if !c.open {
		return nil
	}
	if err := failure(destroy()); err != nil {
		return err
	}
	c.open = false
	return nil
}

// dropped destroys what was collected without Close; nobody is there to hear of an error.
func dropped(result C.go_result) { _ = failure(result) }

func (d *CacheDesc) c() (desc C.kvc_cache_desc) {
	desc.struct_size = C.sizeof_kvc_cache_desc
	desc.kind = C.KVC_CAUSAL
	desc.flags = C.uint64_t(d.Flags)
	desc.n_layers, desc.n_kv_heads = C.int32_t(d.NLayers), C.int32_t(d.NKVHeads)
	desc.head_dim_k, desc.head_dim_v = C.int32_t(d.HeadDimK), C.int32_t(d.HeadDimV)
	desc.dtype_k, desc.dtype_v = C.uint32_t(d.DTypeK), C.uint32_t(d.DTypeV)
	desc.max_sequences, desc.capacity = C.int32_t(d.MaxSequences), C.int32_t(d.Capacity)
	desc.max_batch, desc.cells = C.int32_t(d.MaxBatch), C.int32_t(d.Cells)
	desc.max_q_heads = C.int32_t(d.MaxQHeads)
	return desc
}

func (d *CausalDesc) c() (desc C.kvc_causal_desc) {
	desc.struct_size = C.sizeof_kvc_causal_desc
	if d.PositionFree {
		desc.flags = C.KVC_CAUSAL_POSITION_FREE
	}
	desc.reach, desc.memory, desc.chunk = C.int32_t(d.Reach), C.int32_t(d.Memory), C.int32_t(d.Chunk)
	desc.keep_first, desc.cell_padding = C.int32_t(d.KeepFirst), C.int32_t(d.CellPadding)
	desc.mask_dtype = C.uint32_t(d.MaskDType)
	return desc
}

// MemoryBytes is what such a cache would take from the device; allocates nothing.
func MemoryBytes(device *Device, desc CacheDesc, causal CausalDesc) (uint64, error) {
	answer := C.go_cache_memory_bytes(device.handle, desc.c(), causal.c())
	runtime.KeepAlive(device)
	return uint64(answer.number), failure(answer.result)
}

// NewCache reserves all memory that the cache will ever use. Close gives it back; a forgotten cache is closed when it is
// collected.
func NewCache(device *Device, desc CacheDesc, causal CausalDesc) (*Cache, error) {
	answer := C.go_cache_create(device.handle, desc.c(), causal.c())
	runtime.KeepAlive(device)
	if err := failure(answer.result); err != nil {
		return nil, err
	}
	c := &Cache{handle: answer.cache, headDimK: int(desc.HeadDimK)}
	c.once.open = true
	whenForgotten(c, answer.cache, func(h *C.kvc_cache) { dropped(C.go_cache_destroy(h)) })
	return c, nil
}

// Close gives the memory back, whatever the state. Closing twice is fine. Busy: another goroutine is inside a call.
func (c *Cache) Close() error {
	err := c.once.close(func() C.go_result { return C.go_cache_destroy(c.handle) })
	runtime.KeepAlive(c)
	return err
}

// BindAttention binds how layers [layerBegin, layerEnd) attend. Slices are copied.
func (c *Cache) BindAttention(layerBegin, layerEnd int, desc AttentionDesc) error {
	slopes, err := constants(desc.ALiBiSlopes, int(desc.NQHeads), "ALiBiSlopes")
	if err != nil {
		return err
	}
	sinks, err := constants(desc.Sinks, int(desc.NQHeads), "Sinks")
	if err != nil {
		return err
	}
	var d C.kvc_attention_desc
	d.struct_size = C.sizeof_kvc_attention_desc
	d.n_q_heads, d.scale, d.softcap = C.int32_t(desc.NQHeads), C.float(desc.Scale), C.float(desc.Softcap)
	err = failure(C.go_bind_attention(c.handle, number(layerBegin), number(layerEnd), d, slopes, sinks))
	runtime.KeepAlive(c)
	return err
}

// BindRope tells how the caller rotates, so that positions can move afterwards. Slices are copied.
func (c *Cache) BindRope(layerBegin, layerEnd int, desc RopeDesc) error {
	turned := int(desc.NDims)
	if turned == 0 {
		turned = c.headDimK
	}
	factors, err := constants(desc.FrequencyFactors, turned/2, "FrequencyFactors")
	if err != nil {
		return err
	}
	var d C.kvc_rope_desc
	d.struct_size = C.sizeof_kvc_rope_desc
	d.pairs, d.n_dims = C.uint32_t(desc.Pairs), C.int32_t(desc.NDims)
	d.base, d.scale = C.float(desc.Base), C.float(desc.Scale)
	err = failure(C.go_bind_rope(c.handle, number(layerBegin), number(layerEnd), d, factors))
	runtime.KeepAlive(c)
	return err
}

// ---- A pass ---------------------------------------------------------------------------------------------------------

// Begin opens a pass. positions and sequences have one element per token; see kvc_begin.
func (c *Cache) Begin(positions, sequences []int32) error {
	return c.BeginFlagged(positions, sequences, nil)
}

// BeginFlagged is Begin with flags per token; nil: none.
func (c *Cache) BeginFlagged(positions, sequences []int32, flags []TokenFlags) error {
	n, err := together("positions and sequences", len(positions), len(sequences))
	if err != nil {
		return err
	}
	var first *C.uint32_t
	if flags != nil {
		if _, err = together("positions and flags", len(positions), len(flags)); err != nil {
			return err
		}
		first = (*C.uint32_t)(pointer(flags))
	}
	err = failure(C.go_begin(c.handle, n, numbers(positions), numbers(sequences), first, 0))
	runtime.KeepAlive(c)
	return err
}

// BeginReserve opens a pass that plans nothing, to size a graph for the worst case.
func (c *Cache) BeginReserve(nTokens int) error {
	err := failure(C.go_begin(c.handle, number(nTokens), nil, nil, nil, C.KVC_BEGIN_RESERVE))
	runtime.KeepAlive(c)
	return err
}

// Fits returns the error that Begin would return now. Nothing changes.
func (c *Cache) Fits(positions, sequences []int32) error {
	n, err := together("positions and sequences", len(positions), len(sequences))
	if err != nil {
		return err
	}
	err = failure(C.go_fits(c.handle, n, numbers(positions), numbers(sequences)))
	runtime.KeepAlive(c)
	return err
}

// Put stores one layer's keys and values [n tokens, KV heads, head size] of the open pass.
func (c *Cache) Put(layer int, k, v Tensor) error {
	if err := checked(&k, "k", &v, "v"); err != nil {
		return err
	}
	err := failure(C.go_put(c.handle, number(layer),
		k.bytes(), k.kind(), k.dims(), k.at(0), k.at(1), k.at(2), v.bytes(), v.kind(), v.dims(), v.at(0), v.at(1), v.at(2)))
	runtime.KeepAlive(c)
	return err
}

// Attention of the queries [n tokens, query heads, head size] of the pass, written to out.
func (c *Cache) Attention(layer int, q, out Tensor) error {
	return c.AttentionLSE(layer, q, out, Tensor{})
}

// AttentionLSE is Attention that also writes the log of the sum of exponentials, [n tokens, query heads].
func (c *Cache) AttentionLSE(layer int, q, out, lse Tensor) error {
	if err := checked(&q, "q", &out, "out"); err != nil {
		return err
	}
	if err := wanted(&lse, "lse"); err != nil {
		return err
	}
	err := failure(C.go_attention(c.handle, number(layer),
		q.bytes(), q.kind(), q.dims(), q.at(0), q.at(1), q.at(2),
		out.bytes(), out.kind(), out.dims(), out.at(0), out.at(1), out.at(2),
		lse.bytes(), lse.kind(), lse.dims(), lse.at(0), lse.at(1), lse.at(2)))
	runtime.KeepAlive(c)
	return err
}

// AttentionExtra is what one call of AttentionWith takes and gives beside q and out; Tensor{}: not wanted. Columns are the
// cells that History names. Bias and Mask are broadcast: an extent may be 1, and leading dimensions may be missing.
type AttentionExtra struct {
	Bias    Tensor // [query heads, n tokens, history], added to the scores; minus infinity hides
	Mask    Tensor // [query heads, n tokens, history], made by Bool: false hides what the cache's rules would show
	LSE     Tensor // [n tokens, query heads], written: the log of the sum of exponentials
	Weights Tensor // [query heads, n tokens, history], written: what each value counts for. For looking, not for speed
}

// AttentionWith is Attention with what extra holds.
func (c *Cache) AttentionWith(layer int, q, out Tensor, extra AttentionExtra) error {
	if err := checked(&q, "q", &out, "out"); err != nil {
		return err
	}
	if err := extra.check(); err != nil {
		return err
	}
	bias, mask, lse, weights := &extra.Bias, &extra.Mask, &extra.LSE, &extra.Weights
	err := failure(C.go_attention_with(c.handle, number(layer),
		q.bytes(), q.kind(), q.dims(), q.at(0), q.at(1), q.at(2),
		out.bytes(), out.kind(), out.dims(), out.at(0), out.at(1), out.at(2),
		lse.bytes(), lse.kind(), lse.dims(), lse.at(0), lse.at(1), lse.at(2),
		bias.bytes(), bias.kind(), bias.dims(), bias.at(0), bias.at(1), bias.at(2),
		mask.bytes(), mask.kind(), mask.dims(), mask.at(0), mask.at(1), mask.at(2),
		weights.bytes(), weights.kind(), weights.dims(), weights.at(0), weights.at(1), weights.at(2)))
	runtime.KeepAlive(c)
	return err
}

func (e *AttentionExtra) check() error {
	if err := wanted(&e.Bias, "Bias"); err != nil {
		return err
	}
	if err := wanted(&e.Mask, "Mask"); err != nil {
		return err
	}
	if err := wanted(&e.LSE, "LSE"); err != nil {
		return err
	}
	return wanted(&e.Weights, "Weights")
}

// PutAttention is Put and Attention in one crossing; all arguments are checked before anything is stored.
func (c *Cache) PutAttention(layer int, k, v, q, out Tensor) error {
	return c.PutAttentionLSE(layer, k, v, q, out, Tensor{})
}

// PutAttentionLSE is PutAttention that also writes the log of the sum of exponentials, [n tokens, query heads].
func (c *Cache) PutAttentionLSE(layer int, k, v, q, out, lse Tensor) error {
	if err := checked(&k, "k", &v, "v"); err != nil {
		return err
	}
	if err := checked(&q, "q", &out, "out"); err != nil {
		return err
	}
	if err := wanted(&lse, "lse"); err != nil {
		return err
	}
	err := failure(C.go_put_attention(c.handle, number(layer),
		k.bytes(), k.kind(), k.dims(), k.at(0), k.at(1), k.at(2),
		v.bytes(), v.kind(), v.dims(), v.at(0), v.at(1), v.at(2),
		q.bytes(), q.kind(), q.dims(), q.at(0), q.at(1), q.at(2),
		out.bytes(), out.kind(), out.dims(), out.at(0), out.at(1), out.at(2),
		lse.bytes(), lse.kind(), lse.dims(), lse.at(0), lse.at(1), lse.at(2)))
	runtime.KeepAlive(c)
	return err
}

// SetCausal replaces the tokens of the open pass, by index, that see later tokens too.
func (c *Cache) SetCausal(except []int32) error {
	err := failure(C.go_set_causal(c.handle, number(len(except)), numbers(except)))
	runtime.KeepAlive(c)
	return err
}

// Commit keeps the pass.
func (c *Cache) Commit() error {
	err := failure(C.go_commit(c.handle))
	runtime.KeepAlive(c)
	return err
}

// CommitPrefix keeps of each named sequence its first tokens of this pass; sequences not named keep all.
func (c *Cache) CommitPrefix(sequences, keep []int32) error {
	n, err := together("sequences and keep", len(sequences), len(keep))
	if err != nil {
		return err
	}
	err = failure(C.go_commit_prefix(c.handle, n, numbers(sequences), numbers(keep)))
	runtime.KeepAlive(c)
	return err
}

// Abort forgets the pass: the cache is as it was before Begin.
func (c *Cache) Abort() error {
	err := failure(C.go_abort(c.handle))
	runtime.KeepAlive(c)
	return err
}

// ---- Sequences ------------------------------------------------------------------------------------------------------

// CanResume is the largest position up to want at which the sequence can continue. Nothing changes.
func (c *Cache) CanResume(sequence, want int) (best int, err error) {
	answer := C.go_can_resume(c.handle, number(sequence), number(want))
	runtime.KeepAlive(c)
	return int(answer.number), failure(answer.result)
}

// Resume drops what lies at or behind that position and returns it.
func (c *Cache) Resume(sequence, want int) (got int, err error) {
	answer := C.go_resume(c.handle, number(sequence), number(want))
	runtime.KeepAlive(c)
	return int(answer.number), failure(answer.result)
}

// CopyPrefix makes destination share the first tokens of source and returns where it continues.
func (c *Cache) CopyPrefix(source, destination, length int) (got int, err error) {
	answer := C.go_copy_prefix(c.handle, number(source), number(destination), number(length))
	runtime.KeepAlive(c)
	return int(answer.number), failure(answer.result)
}

// Reorder makes several whole copies at once, each source as it was before the call.
func (c *Cache) Reorder(destinations, sources []int32) error {
	n, err := together("destinations and sources", len(destinations), len(sources))
	if err != nil {
		return err
	}
	err = failure(C.go_reorder(c.handle, n, numbers(destinations), numbers(sources)))
	runtime.KeepAlive(c)
	return err
}

// Remove releases the positions [begin, end) of a sequence; later ones move down. SeqEnd: to the end.
func (c *Cache) Remove(sequence, begin, end int) error {
	err := failure(C.go_remove(c.handle, number(sequence), number(begin), number(end)))
	runtime.KeepAlive(c)
	return err
}

// ---- Reading, for callers with kernels of their own -----------------------------------------------------------------

// Get shows a layer's keys and values over the cells that the batch may see. The views last until the pass ends.
func (c *Cache) Get(layer int) (k, v View, err error) {
	answer := C.go_get(c.handle, number(layer))
	runtime.KeepAlive(c)
	if err = failure(answer.result); err != nil {
		return View{}, View{}, err
	}
	return viewOf(c, answer.first), viewOf(c, answer.second), nil
}

// History is the range of cells that the columns of views, masks, biases and weights stand for: column i is cell
// firstCell + i, as Runs numbers them. Get may change it.
func (c *Cache) History() (firstCell, nCells int, err error) {
	answer := C.go_history_of(c.handle)
	runtime.KeepAlive(c)
	return int(answer.first_cell), int(answer.n_cells), failure(answer.result)
}

// MaskShape is the shape and type that Mask asks for: [n tokens, history].
func (c *Cache) MaskShape() (nTokens, history int, dtype DType, err error) {
	answer := C.go_mask_shape(c.handle)
	runtime.KeepAlive(c)
	return int(answer.first.shape[0]), int(answer.first.shape[1]), DType(answer.first.dtype), failure(answer.result)
}

// Mask writes 0 where a token of the batch sees a cell of Get's views, minus infinity elsewhere.
func (c *Cache) Mask(into Tensor) error {
	if err := into.check("into"); err != nil {
		return err
	}
	err := failure(C.go_mask(c.handle, into.bytes(), into.kind(), into.dims(), into.at(0), into.at(1), into.at(2)))
	runtime.KeepAlive(c)
	return err
}

// Gather copies what a sequence holds in a layer, in order of position: k and v [count, KV heads, head size], where count
// is that of Sequence. Tensor{}: not wanted.
func (c *Cache) Gather(layer, sequence int, k, v Tensor) error {
	return c.gather(layer, sequence, k, v, 0)
}

// GatherTransposed is Gather with v as [KV heads, head size, count].
func (c *Cache) GatherTransposed(layer, sequence int, k, v Tensor) error {
	return c.gather(layer, sequence, k, v, C.KVC_TENSOR_TRANSPOSED)
}

func (c *Cache) gather(layer, sequence int, k, v Tensor, flags C.uint32_t) error {
	if err := optional(&k, "k"); err != nil {
		return err
	}
	if err := optional(&v, "v"); err != nil {
		return err
	}
	err := failure(C.go_gather(c.handle, number(layer), number(sequence), k.present(), v.present(), flags,
		k.bytes(), k.kind(), k.dims(), k.at(0), k.at(1), k.at(2), v.bytes(), v.kind(), v.dims(), v.at(0), v.at(1), v.at(2)))
	runtime.KeepAlive(c)
	return err
}

// Runs is where a sequence's tokens lie, in order of position.
func (c *Cache) Runs(sequence int) ([]Run, error) {
	var found []Run
	for { // another goroutine may change their number between two calls
		answer := C.go_runs(c.handle, number(sequence), number(len(found)), (*C.kvc_run)(pointer(found)))
		runtime.KeepAlive(c)
		if err := failure(answer.result); err != nil {
			return nil, err
		}
		if n := int(answer.number); n <= len(found) {
			return found[:n], nil
		}
		found = make([]Run, answer.number)
	}
}

// ---- Watching -------------------------------------------------------------------------------------------------------

// Sequence is what a sequence holds.
func (c *Cache) Sequence(sequence int) (SequenceInfo, error) {
	answer := C.go_sequence_query(c.handle, number(sequence))
	runtime.KeepAlive(c)
	i := &answer.info
	return SequenceInfo{int(i.first), int(i.next), int(i.count), int(i.room), int(i.lost_below)}, failure(answer.result)
}

// Stats counts what the cache holds.
func (c *Cache) Stats() (Stats, error) {
	answer := C.go_cache_stats(c.handle)
	runtime.KeepAlive(c)
	s := &answer.stats
	return Stats{
		State: State(s.state), Cells: uint64(s.cells), CellsUsed: uint64(s.cells_used),
		CellsShared: uint64(s.cells_shared), Bytes: uint64(s.bytes), Passes: uint64(s.passes),
	}, failure(answer.result)
}

// Digest is 128 bits over everything observable; as text, 16 hexadecimal digits of each half in this order. It reads all
// keys and values: not for the hot path.
func (c *Cache) Digest() ([2]uint64, error) {
	answer := C.go_state_digest(c.handle)
	runtime.KeepAlive(c)
	return [2]uint64{uint64(answer.first), uint64(answer.second)}, failure(answer.result)
}

// Check walks every invariant and names the broken one.
func (c *Cache) Check() error {
	err := failure(C.go_check(c.handle))
	runtime.KeepAlive(c)
	return err
}
