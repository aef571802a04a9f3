// Package kvc is the KV cache that any inference runtime can link, for Go.
//
// A Cache holds the keys and values of the tokens that a transformer has processed, for several
// sequences at once, and computes attention straight from its memory. Other kinds of cache hold what an
// encoder read (EncoderDesc), the states of recurrent layers (RecurrentDesc) or of linear attention
// (LightningDesc), and batches of rows (TransformerDesc). NewHybrid makes one cache for a model with layers
// of several kinds, and an Operator is an algorithm for attention, by name.
//
//	device, err := kvc.OpenDevice("cpu", kvc.DeviceOptions{})
//	cache, err := kvc.NewCache(device, kvc.CacheDesc{NLayers: 30, NKVHeads: 3, …}, kvc.CausalDesc{})
//	defer cache.Close()
//	err = cache.Begin(positions, sequences)
//	for layer := 0; layer < 30; layer++ {
//		err = cache.Put(layer, kvc.Float32(k, n, 3, 64), kvc.Float32(v, n, 3, 64))
//		err = cache.Attention(layer, kvc.Float32(q, n, 9, 64), kvc.Float32(out, n, 9, 64))
//	}
//	err = cache.Commit()
//
// The C headers say what each call does, what it costs and which errors it returns. This is what
// differs in Go: errors are *Error, and errors.Is(err, kvc.CacheFull) finds the status. Slices are
// used during a call only. A cache may move between goroutines. Fits, CanResume, CanRemove, Runs,
// Sequence, Digest, Check and MemoryBytes may run at the same time; every other method excludes them
// all, and an overlap that breaks this rule returns Busy. Only Stats may overlap any method, a pass
// in another goroutine or Close too: it never returns Busy and makes none return it. EncoderQuery,
// StateLayout, StateSlots, CheckpointList, Owner, FitsRows, RowsQuery, RowsView and LightningRead are like
// Fits. Methods of a nil Cache, Device and Operator return InvalidHandle.
//
// A position above the one where its sequence continues is legal: it leaves a gap. Set the flag Strict
// of CacheDesc unless you want gaps; a wrong position is then an error.
//
// Messages name functions, flags and fields as the C headers do. The function kvc_copy_prefix is the
// method CopyPrefix, the field n_q_heads is NQHeads, the flag KVC_CACHE_STRICT is Strict, and the
// struct kvc_attention_extra is AttentionExtra. These have other names: kvc_cache_create is NewCache,
// kvc_device_open OpenDevice, kvc_cache_destroy Close, kvc_sequence_query Sequence, kvc_state_digest
// Digest, KVC_NONE None, kvc_cache_wrap Wrap, kvc_cache_child Owner, KVC_TOKEN_ENCODER_INPUT
// CarriesInput, KVC_TOKEN_MASKED Masked, KVC_CAUSAL_POSITION_FREE the field CausalDesc.PositionFree,
// KVC_CODEC_ROTATE CodecDesc.Rotate, KVC_TENSOR_TRANSPOSED GatherTransposed, kvc_operator_create
// NewOperator, kvc_operator_find, _supports and _at FindOperator, Supports and Operators of a Device,
// KVC_SET_… DTypeSet. kvc_bind_shift, kvc_operator_register and strides of tensors have no
// counterpart.
package kvc

// #include "shim.h"
import "C"

import (
	"runtime"
	"sync"
	"unsafe"
)

// VersionNumber returns the library's version: major << 16 | minor << 8 | patch.
func VersionNumber() uint32 { return uint32(C.kvc_version_number()) }

// BuildInfo returns one line about the library, for people.
func BuildInfo() string { return C.GoString(C.kvc_build_info()) }

// Cache holds keys and values. A method that is called after Close returns InvalidHandle.
type Cache struct {
	handle       *C.kvc_cache // a key of the library's table, not an address; it never changes
	once         closing
	kvHeads      int
	headDimK     int
	maxBatch     int
	maxSequences int      // and rows of a pass of rows
	children     []*Cache // of a wrapper
	places       []ChildLayer
	closes       []*Cache // those of them that Close closes
}

// key returns the handle, null for a nil cache.
func (c *Cache) key() *C.kvc_cache {
	if c == nil {
		return nil
	}
	return c.handle
}

// closing makes Close idempotent, also if several goroutines call it.
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

// dropped takes the result of destroying what was collected without Close: nobody can handle it.
func dropped(result C.go_result) { _ = failure(result) }

// described returns the descriptors of a cache for C.
func described(desc *CacheDesc, kind Kind) (C.kvc_cache_desc, unsafe.Pointer, error) {
	if kind = plain(kind); kind == nil {
		return C.kvc_cache_desc{}, nil, &Error{InvalidArgument, "the kind is nil: pass CausalDesc{}"}
	}
	number, kindDesc := kind.c()
	return desc.c(number), kindDesc, nil
}

// MemoryBytes returns how many bytes NewCache would take from the device. It takes none.
func MemoryBytes(device *Device, desc CacheDesc, kind Kind) (uint64, error) {
	d, kindDesc, err := described(&desc, kind)
	if err != nil {
		return 0, err
	}
	out := C.go_cache_memory_bytes(device.key(), d, kindDesc)
	runtime.KeepAlive(device)
	return uint64(out.number), failure(out.result)
}

// NewCache creates a cache of a kind, for example CausalDesc{}, and reserves all memory that it will
// ever use. Close releases the memory; a cache that is collected without Close is closed then.
func NewCache(device *Device, desc CacheDesc, kind Kind) (*Cache, error) {
	d, kindDesc, err := described(&desc, kind)
	if err != nil {
		return nil, err
	}
	out := C.go_cache_create(device.key(), d, kindDesc)
	runtime.KeepAlive(device)
	if err := failure(out.result); err != nil {
		return nil, err
	}
	c := newCache(out.cache)
	c.kvHeads, c.headDimK = int(desc.NKVHeads), int(desc.HeadDimK)
	c.maxBatch, c.maxSequences = int(desc.MaxBatch), int(desc.MaxSequences)
	return c, nil
}

func newCache(handle *C.kvc_cache) *Cache {
	c := &Cache{handle: handle}
	c.once.open = true
	whenForgotten(c, handle, func(h *C.kvc_cache) { dropped(C.go_cache_destroy(h)) })
	return c
}

// Close destroys the cache in any state. A second Close does nothing. Busy: another goroutine is
// inside a call.
func (c *Cache) Close() error {
	if c == nil {
		return &Error{InvalidHandle, "the cache is nil"}
	}
	err := c.once.close(func() C.go_result { return C.go_cache_destroy(c.handle) })
	runtime.KeepAlive(c)
	for i := 0; err == nil && i < len(c.closes); i++ {
		err = c.closes[i].Close()
	}
	return err
}

// BindAttention binds the constants of layers [layerBegin, layerEnd). NQHeads has no default: 0 is
// refused. Slices are copied.
func (c *Cache) BindAttention(layerBegin, layerEnd int, desc AttentionDesc) error {
	var narrow narrowing
	begin, end := narrow.number("layerBegin", layerBegin), narrow.number("layerEnd", layerEnd)
	if narrow.err != nil {
		return narrow.err
	}
	if err := perEach(desc.ALiBiSlopes, "ALiBiSlopes", int(desc.NQHeads), "query head"); err != nil {
		return err
	}
	if err := perEach(desc.Sinks, "Sinks", int(desc.NQHeads), "query head"); err != nil {
		return err
	}
	err := failure(C.go_bind_attention(c.key(), begin, end, desc.c(), floats(desc.ALiBiSlopes), floats(desc.Sinks)))
	runtime.KeepAlive(c)
	return err
}

// BindRope binds how the caller rotates, so that positions can move later. Only an empty cache takes
// it. Slices are copied.
func (c *Cache) BindRope(layerBegin, layerEnd int, desc RopeDesc) error {
	begin, end, err := c.layers(layerBegin, layerEnd, func(holder *Cache) error {
		rotated := int(desc.NDims)
		if rotated == 0 {
			rotated = holder.headDimK - int(desc.FirstDim)
		}
		return perEach(desc.FrequencyFactors, "FrequencyFactors", rotated/2, "pair of dimensions that rotate")
	})
	if err != nil {
		return err
	}
	err = failure(C.go_bind_rope(c.handle, begin, end, desc.c(), floats(desc.FrequencyFactors)))
	runtime.KeepAlive(c)
	return err
}

// BindScales binds the scales of F8E4M3 and F8E5M2, one for each KV head, for layers
// [layerBegin, layerEnd): a number is stored as number / scale. 1 where none was bound; nil: stay as they
// are. Only an empty cache takes them. Slices are copied.
func (c *Cache) BindScales(layerBegin, layerEnd int, kScales, vScales []float32) error {
	begin, end, err := c.layers(layerBegin, layerEnd, func(holder *Cache) error {
		if err := perEach(kScales, "kScales", holder.kvHeads, "KV head"); err != nil {
			return err
		}
		return perEach(vScales, "vScales", holder.kvHeads, "KV head")
	})
	if err != nil {
		return err
	}
	err = failure(C.go_bind_scales(c.handle, begin, end, floats(kScales), floats(vScales)))
	runtime.KeepAlive(c)
	return err
}

// layers narrows a range of layers for C. check looks at each cache that holds some of them.
func (c *Cache) layers(layerBegin, layerEnd int, check func(holder *Cache) error) (begin, end C.int32_t, err error) {
	if c == nil {
		return 0, 0, &Error{InvalidHandle, "the cache is nil"}
	}
	var narrow narrowing
	begin, end = narrow.number("layerBegin", layerBegin), narrow.number("layerEnd", layerEnd)
	if narrow.err != nil {
		return 0, 0, narrow.err
	}
	for _, holder := range c.holders(layerBegin, layerEnd) {
		if err := check(holder); err != nil {
			return 0, 0, err
		}
	}
	return begin, end, nil
}

// holders returns the caches that hold the keys and values of some layers: itself, or children of a
// wrapper.
func (c *Cache) holders(layerBegin, layerEnd int) (holders []*Cache) {
	if c.children == nil {
		return []*Cache{c}
	}
	for layer, place := range c.places {
		if child := c.children[place.Child]; layerBegin <= layer && layer < layerEnd && child.headDimK > 0 {
			holders = append(holders, child)
		}
	}
	return holders
}
