package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// RecurrentDesc makes a cache of states of fixed size, for state-space models, gated delta rules and
// short convolutions. The cache computes no recurrence: it keeps states, copies sequences without
// copying states, and takes sequences back to earlier states. Of CacheDesc it uses NLayers (those with a
// state), MaxSequences, MaxBatch and Flags; all else must be 0. See kvc_recurrent_desc.
type RecurrentDesc struct {
	StateSize             int64 // elements of the recurrent part per layer and sequence; 0: no such part
	ConvChannels, ConvDim int32 // convolution part [ConvChannels, ConvDim]; 0: no such part
	DTypeState, DTypeConv DType // storage types: F32, F16 or BF16; 0: F32
	Checkpoints           int32 // that a sequence keeps; 0: 24, None: none
	CheckpointInterval    int32 // positions between automatic ones; 0: 1664, None: no automatic ones
	CheckpointMinPos      int32 // last position of a pass that leaves the first; 0: 16, None: any
	DraftStates           int32 // a pass with up to DraftStates + 1 tokens of a sequence keeps a state per token
	Approximate           bool  // middle parts may be removed; states then still contain them
	HostCheckpoints       bool  // checkpoints lie in host memory, where they are on a CPU in any case
}

func (d RecurrentDesc) c() (C.uint32_t, unsafe.Pointer) {
	desc := &C.kvc_recurrent_desc{struct_size: C.sizeof_kvc_recurrent_desc, kind: C.KVC_RECURRENT}
	if d.Approximate {
		desc.flags |= C.KVC_RECURRENT_APPROXIMATE
	}
	if d.HostCheckpoints {
		desc.flags |= C.KVC_RECURRENT_HOST_CHECKPOINTS
	}
	desc.state_size = C.int64_t(d.StateSize)
	desc.conv_channels, desc.conv_dim = C.int32_t(d.ConvChannels), C.int32_t(d.ConvDim)
	desc.dtype_state, desc.dtype_conv = C.uint32_t(d.DTypeState), C.uint32_t(d.DTypeConv)
	desc.checkpoints, desc.checkpoint_interval = C.int32_t(d.Checkpoints), C.int32_t(d.CheckpointInterval)
	desc.checkpoint_min_pos, desc.draft_states = C.int32_t(d.CheckpointMinPos), C.int32_t(d.DraftStates)
	return C.KVC_RECURRENT, unsafe.Pointer(desc)
}

// Part is a part of a layer's state.
type Part int32

// The parts of a state.
const (
	Conv      Part = C.KVC_PART_CONV      // the last inputs of a causal convolution, oldest first
	Recurrent Part = C.KVC_PART_RECURRENT // the state of the recurrence
)

// StateSequence is a sequence of the open pass. See kvc_state_sequence.
type StateSequence struct {
	Sequence   int32
	NTokens    int32 // in the batch
	FirstToken int32 // where they begin in the order of StateLayout
	FirstRow   int32 // where its rows begin in StatePut and StateSlots
	NRows      int32 // NTokens if that is at most DraftStates + 1; else 1, the state after the last
	ReadSlot   int32 // where StateView has its state from before the pass
}

// StateLayout lists the open pass by sequences, in order of first appearance, and returns how many
// there are; sequences receives as many of them as it holds. order, if it is not nil, receives indexes
// into the batch, sequence by sequence and then the padding tokens. It needs MaxBatch elements (of a
// wrapper the least of its children's), because the library is not told its length.
func (c *Cache) StateLayout(sequences []StateSequence, order []int32) (n int, err error) {
	capacity, err := number("the length of sequences", len(sequences))
	if err != nil {
		return 0, err
	}
	if c != nil && order != nil && len(order) < c.maxBatch {
		return 0, &Error{InvalidArgument, fmt.Sprintf("order has %d elements, not MaxBatch, which is %d", len(order), c.maxBatch)}
	}
	out := C.go_state_layout(c.key(), capacity, (*C.kvc_state_sequence)(pointer(sequences)), numbers(order))
	runtime.KeepAlive(c)
	return int(out.number), failure(out.result)
}

// StateGet copies what the sequences of the open pass had before it, [sequences, …], in the order of
// StateLayout; zeros for a new sequence. The extents behind the first are free, if their product is the
// size of the part.
func (c *Cache) StateGet(layer int, part Part, into Tensor) error {
	return c.state(layer, &into, "into", func(at C.int32_t, t C.go_tensor) C.go_result {
		return C.go_state_get(c.key(), at, C.int32_t(part), t)
	})
}

// StatePut stores the states that the tokens of the open pass left, [rows, …], see StateSequence.
func (c *Cache) StatePut(layer int, part Part, from Tensor) error {
	return c.state(layer, &from, "from", func(at C.int32_t, t C.go_tensor) C.go_result {
		return C.go_state_put(c.key(), at, C.int32_t(part), t)
	})
}

// StateConv is StatePut of the part Conv, made from the inputs of the convolution,
// [n tokens, ConvChannels] in the order of the batch.
func (c *Cache) StateConv(layer int, x Tensor) error {
	return c.state(layer, &x, "x", func(at C.int32_t, t C.go_tensor) C.go_result {
		return C.go_state_conv(c.key(), at, t)
	})
}

func (c *Cache) state(layer int, t *Tensor, name string, call func(C.int32_t, C.go_tensor) C.go_result) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := t.check(name); err != nil {
		return err
	}
	err = failure(call(at, t.c()))
	runtime.KeepAlive(c)
	return err
}

// StateView is a view of all slots of a layer's part, for kernels that work in place: read the slots
// that StateLayout names, write those of StateSlots, then call StateDone. No other slot may be
// written. It is valid until the pass ends, and keeps its cache as a View does.
type StateView struct {
	Data   unsafe.Pointer
	DType  DType
	Slots  int
	Size   int // elements of a state
	Stride int // elements from one slot to the next
	cache  *Cache
}

// StateView returns a view of the slots of a layer's part.
func (c *Cache) StateView(layer int, part Part) (StateView, error) {
	at, err := number("layer", layer)
	if err != nil {
		return StateView{}, err
	}
	out := C.go_state_view(c.key(), at, C.int32_t(part))
	runtime.KeepAlive(c)
	if err := failure(out.result); err != nil {
		return StateView{}, err
	}
	t := &out.first
	v := StateView{Data: unsafe.Add(t.data, int(t.byte_offset)), DType: DType(t.dtype), Slots: int(t.shape[0]), Size: 1, cache: c}
	v.Stride = int(t.strides[0])
	for i := 1; i < int(t.ndim); i++ {
		v.Size *= int(t.shape[i])
	}
	return v, nil
}

func (v StateView) slot(slot, width int) unsafe.Pointer {
	if slot < 0 || slot >= v.Slots {
		panic(fmt.Sprintf("kvc: slot %d is outside a view of %d slots", slot, v.Slots))
	}
	state := unsafe.Add(v.Data, slot*v.Stride*width)
	runtime.KeepAlive(v.cache)
	return state
}

// Float32 returns the state in a slot in place. It panics if the view does not store f32.
func (v StateView) Float32(slot int) []float32 {
	if v.DType != F32 {
		panic(fmt.Sprintf("kvc: Float32 of a view that stores %v", v.DType))
	}
	return unsafe.Slice((*float32)(v.slot(slot, 4)), v.Size)
}

// Bits returns the state in a slot in place. It panics if the view stores neither f16 nor bf16.
func (v StateView) Bits(slot int) []uint16 {
	if v.DType != F16 && v.DType != BF16 {
		panic(fmt.Sprintf("kvc: Bits of a view that stores %v", v.DType))
	}
	return unsafe.Slice((*uint16)(v.slot(slot, 2)), v.Size)
}

// StateSlots writes the slot of each row of the open pass to slots, as many as it holds, and returns
// how many rows there are.
func (c *Cache) StateSlots(slots []int32) (n int, err error) {
	capacity, err := number("the length of slots", len(slots))
	if err != nil {
		return 0, err
	}
	out := C.go_state_slots(c.key(), capacity, numbers(slots))
	runtime.KeepAlive(c)
	return int(out.number), failure(out.result)
}

// StateDone says that all rows of a layer's part were written in place: it counts as StatePut.
func (c *Cache) StateDone(layer int, part Part) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	err = failure(C.go_state_done(c.key(), at, C.int32_t(part)))
	runtime.KeepAlive(c)
	return err
}

// StateGather copies the state with which a sequence would continue at a position: its next, one of its
// checkpoints, or 0. NotFound: it has no state there.
func (c *Cache) StateGather(layer int, part Part, sequence, at int, into Tensor) error {
	var narrow narrowing
	of, place := narrow.number("sequence", sequence), narrow.number("at", at)
	if narrow.err != nil {
		return narrow.err
	}
	return c.state(layer, &into, "into", func(layer C.int32_t, t C.go_tensor) C.go_result {
		return C.go_state_gather(c.key(), layer, C.int32_t(part), of, place, t)
	})
}

// CheckpointTake keeps the state of a sequence: it can continue at its next for as long as the checkpoint
// lasts.
func (c *Cache) CheckpointTake(sequence int) error {
	of, err := number("sequence", sequence)
	if err != nil {
		return err
	}
	err = failure(C.go_checkpoint_take(c.key(), of))
	runtime.KeepAlive(c)
	return err
}

// CheckpointList returns where the checkpoints of a sequence continue, ascending.
func (c *Cache) CheckpointList(sequence int) ([]int32, error) {
	of, err := number("sequence", sequence)
	if err != nil {
		return nil, err
	}
	var at []int32
	for { // another goroutine may change their number between two calls
		out := C.go_checkpoint_list(c.key(), of, C.int32_t(len(at)), numbers(at))
		runtime.KeepAlive(c)
		if err := failure(out.result); err != nil {
			return nil, err
		}
		if n := int(out.number); n <= len(at) {
			return at[:n], nil
		}
		at = make([]int32, out.number)
	}
}

// ---- Names that users of Ollama's package know -------------------------------------------------------

// PrepareRestore returns the position at or below want at which a sequence can continue, and whether
// that is above 0. It is CanResume: nothing is armed, and Resume restores.
func (c *Cache) PrepareRestore(sequence, want int) (position int, ok bool, err error) {
	position, err = c.CanResume(sequence, want)
	return position, position > 0, err
}

// ConvState is StateGet of the part Conv.
func (c *Cache) ConvState(layer int, into Tensor) error { return c.StateGet(layer, Conv, into) }

// UpdateConvState is StatePut of the part Conv: a state per sequence, unless DraftStates asks for more.
func (c *Cache) UpdateConvState(layer int, from Tensor) error { return c.StatePut(layer, Conv, from) }

// RecurrentState is StateGet of the part Recurrent.
func (c *Cache) RecurrentState(layer int, into Tensor) error {
	return c.StateGet(layer, Recurrent, into)
}

// UpdateRecurrentState is StatePut of the part Recurrent: a state per sequence, unless DraftStates asks
// for more.
func (c *Cache) UpdateRecurrentState(layer int, from Tensor) error {
	return c.StatePut(layer, Recurrent, from)
}
