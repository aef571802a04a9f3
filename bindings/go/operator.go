package kvc

// #include "shim_operators.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// OperatorDesc has the settings of an operator; zero: all defaults. See kvc_operator_desc.
type OperatorDesc struct {
	RuntimeDType DType   // the least exact type that q, k, v and weights may be rounded to; 0: F32. A floor; flash, decode and ring round where AMX multiplies
	SoftmaxDType DType   // the same for scores, exponentials and sums; F64 (vanilla) computes all of them in double
	SoftmaxScale float32 // 0: that of the layer. A layer that BindAttention bound must have the same one
	DropoutProb  float32 // 0 or more, below 1: of calls with dropout
	BlockQ       int32   // query rows that read the keys together, at most
	BlockK       int32   // keys that are read at a time, at most
	BlockB       int32   // no built-in operator has it
	Stretches    int32   // ring: parts that a row's keys are cut into; 0: one per thread of the device
	NoScan       bool    // stretches side by side, on several threads; same bits

	// Bounds of Forward. All 0: the operator is only bound to caches.
	MaxRows, MaxQLen, MaxKVLen int32
	NKVHeads, MaxQHeads        int32 // MaxQHeads 0: NKVHeads
	HeadDimK, HeadDimV         int32 // HeadDimV 0: HeadDimK
}

func (d *OperatorDesc) c() (desc C.kvc_operator_desc) {
	desc.struct_size = C.sizeof_kvc_operator_desc
	if d.NoScan {
		desc.flags = C.KVC_OPERATOR_NO_SCAN
	}
	desc.runtime_dtype, desc.softmax_dtype = C.uint32_t(d.RuntimeDType), C.uint32_t(d.SoftmaxDType)
	desc.softmax_scale, desc.dropout_prob = C.float(d.SoftmaxScale), C.float(d.DropoutProb)
	desc.block_q, desc.block_k, desc.block_b = C.int32_t(d.BlockQ), C.int32_t(d.BlockK), C.int32_t(d.BlockB)
	desc.stretches = C.int32_t(d.Stretches)
	desc.max_rows, desc.max_q_len, desc.max_kv_len = C.int32_t(d.MaxRows), C.int32_t(d.MaxQLen), C.int32_t(d.MaxKVLen)
	desc.n_kv_heads, desc.max_q_heads = C.int32_t(d.NKVHeads), C.int32_t(d.MaxQHeads)
	desc.head_dim_k, desc.head_dim_v = C.int32_t(d.HeadDimK), C.int32_t(d.HeadDimV)
	return desc
}

func operatorDesc(d *C.kvc_operator_desc) OperatorDesc {
	return OperatorDesc{
		RuntimeDType: DType(d.runtime_dtype), SoftmaxDType: DType(d.softmax_dtype),
		SoftmaxScale: float32(d.softmax_scale), DropoutProb: float32(d.dropout_prob),
		BlockQ: int32(d.block_q), BlockK: int32(d.block_k), BlockB: int32(d.block_b),
		Stretches: int32(d.stretches), NoScan: d.flags&C.KVC_OPERATOR_NO_SCAN != 0,
		MaxRows: int32(d.max_rows), MaxQLen: int32(d.max_q_len), MaxKVLen: int32(d.max_kv_len),
		NKVHeads: int32(d.n_kv_heads), MaxQHeads: int32(d.max_q_heads),
		HeadDimK: int32(d.head_dim_k), HeadDimV: int32(d.head_dim_v),
	}
}

// Resolve returns the settings with each field that is 0 taken from base, and F32 for the two types.
func (d OperatorDesc) Resolve(base OperatorDesc) (OperatorDesc, error) {
	out := C.go_operator_resolve(base.c(), d.c())
	if err := failure(out.result); err != nil {
		return OperatorDesc{}, err
	}
	return operatorDesc(&out.desc), nil
}

// Operator is an algorithm for attention with settings. BindOperator lets layers of caches attend with
// it, and Forward attends without a cache. Query may run at the same time as itself, in several
// goroutines; Forward excludes both, and an overlap that breaks this rule returns Busy.
type Operator struct {
	handle *C.kvc_operator // a key of the library's table, not an address
	once   closing
}

// key returns the handle, null for a nil operator.
func (o *Operator) key() *C.kvc_operator {
	if o == nil {
		return nil
	}
	return o.handle
}

// NewOperator makes an operator of a name, see Device.Operators, and takes the room of Forward. Blocks
// are rounded up to the multiples of OperatorInfo; Query shows what is used. NotSupported: a setting that
// the operator lacks, or a block larger than it has.
func NewOperator(device *Device, name string, desc OperatorDesc) (*Operator, error) {
	text, err := cString(name)
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(text))
	out := C.go_operator_create(device.key(), text, desc.c())
	runtime.KeepAlive(device)
	if err := failure(out.result); err != nil {
		return nil, err
	}
	o := &Operator{handle: out.op}
	o.once.open = true
	whenForgotten(o, out.op, func(h *C.kvc_operator) { dropped(C.go_operator_destroy(h)) })
	return o, nil
}

// Close destroys the operator. Layers that are bound to it keep what they need, and so does it of its
// device: close in any order. A second Close does nothing. An operator that is collected without Close is
// closed then.
func (o *Operator) Close() error {
	if o == nil {
		return &Error{InvalidHandle, "the operator is nil"}
	}
	err := o.once.close(func() C.go_result { return C.go_operator_destroy(o.handle) })
	runtime.KeepAlive(o)
	return err
}

// Query describes the operator, and its settings as they are used.
func (o *Operator) Query() (OperatorInfo, OperatorDesc, error) {
	if o == nil {
		return OperatorInfo{}, OperatorDesc{}, &Error{InvalidHandle, "the operator is nil"}
	}
	out := C.go_operator_query(o.handle)
	runtime.KeepAlive(o)
	if err := failure(out.result); err != nil {
		return OperatorInfo{}, OperatorDesc{}, err
	}
	return operatorInfo(&out.info), operatorDesc(&out.desc), nil
}

// BindOperator lets layers [layerBegin, layerEnd) attend with op in passes of these modes; nil: with what
// the library chooses. A pass whose sequences have one token each is ModeAutoregressive, any other
// ModePrefill, and a call with dropout is ModeTrain. BadState: a pass is open. NotSupported names what
// the layers have bound or store and the operator lacks; what BindAttention adds later is checked there,
// what a call brings at the call.
func (c *Cache) BindOperator(layerBegin, layerEnd int, modes Mode, op *Operator) error {
	var narrow narrowing
	begin, end := narrow.number("layerBegin", layerBegin), narrow.number("layerEnd", layerEnd)
	if narrow.err != nil {
		return narrow.err
	}
	err := failure(C.go_bind_operator(c.key(), begin, end, C.uint32_t(modes), op.key()))
	runtime.KeepAlive(c)
	runtime.KeepAlive(op)
	return err
}

// ForwardDesc says what the queries of Forward see; zero: all keys. Key j has the position j.
type ForwardDesc struct {
	Causal      bool  // a query sees keys at or below its position
	NoSinks     bool  // a partial result, see MergeAttention
	Dropout     bool  // with DropoutProb of the operator; the row is the sequence
	Reach       int32 // keys at or above the query's position minus Reach; 0: no limit
	Chunk       int32 // keys at or above the start of the chunk that the query lies in; 0: no chunks
	QueryOffset int32 // position of query 0; 0: the queries are the last positions, None: 0
	Layer       int32 // of dropout, 0 … 65535
	DropoutSeed uint64
	Softcap     float32
	ALiBiSlopes []float32 // [query heads], may be nil
	Sinks       []float32 // [query heads], may be nil
}

func (d *ForwardDesc) c() (desc C.kvc_forward_desc) {
	desc.struct_size = C.sizeof_kvc_forward_desc
	if d.Causal {
		desc.flags |= C.KVC_FORWARD_CAUSAL
	}
	if d.NoSinks {
		desc.flags |= C.KVC_FORWARD_NO_SINKS
	}
	if d.Dropout {
		desc.flags |= C.KVC_FORWARD_DROPOUT
	}
	desc.dropout_seed, desc.softcap = C.uint64_t(d.DropoutSeed), C.float(d.Softcap)
	desc.reach, desc.chunk = C.int32_t(d.Reach), C.int32_t(d.Chunk)
	desc.query_offset, desc.layer = C.int32_t(d.QueryOffset), C.int32_t(d.Layer)
	return desc
}

// Forward attends without a cache, within the bounds of OperatorDesc. q is
// [rows, qLen, query heads, HeadDimK], k and v are [rows, kvLen, KV heads, HeadDimK] and […, HeadDimV],
// and out, which is written, is [rows, qLen, query heads, HeadDimV]. A query that sees no key gets 0.
func (o *Operator) Forward(desc ForwardDesc, q, k, v, out Tensor) error {
	return o.ForwardWith(desc, q, k, v, out, AttentionExtra{})
}

// ForwardWith is Forward with the tensors of extra: Bias, Mask and Weights are
// [rows, query heads, qLen, kvLen], LSE is [rows, qLen, query heads]. Its other fields must be zero:
// ForwardDesc has them.
func (o *Operator) ForwardWith(desc ForwardDesc, q, k, v, out Tensor, extra AttentionExtra) error {
	if o == nil {
		return &Error{InvalidHandle, "the operator is nil"}
	}
	if err := required(&q, "q", &k, "k"); err != nil {
		return err
	}
	if err := required(&v, "v", &out, "out"); err != nil {
		return err
	}
	if err := extra.check(); err != nil {
		return err
	}
	if err := perEach(desc.ALiBiSlopes, "ALiBiSlopes", q.shape[2], "query head"); err != nil {
		return err
	}
	if err := perEach(desc.Sinks, "Sinks", q.shape[2], "query head"); err != nil {
		return err
	}
	err := failure(C.go_operator_forward(o.handle, desc.c(), q.c(), k.c(), v.c(),
		floats(desc.ALiBiSlopes), floats(desc.Sinks), extra.c(), out.c()))
	runtime.KeepAlive(o)
	return err
}
