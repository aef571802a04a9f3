package kvc

// #include "shim_rows.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// TransformerDesc makes a cache for a batch of MaxSequences rows, as EasyDeL's TransformerCache is: the
// token at position p of a row lies in column p of it, and a row has Capacity columns. Passes are begun
// by BeginRows; Begin and Fits return NotSupported, and so do BindRope and Remove of a middle part:
// tokens do not change columns. CacheDesc.Cells must be 0. See kvc/transformer.h for what else differs.
type TransformerDesc struct {
	Ring       bool  // a row goes on past Capacity and keeps its last Capacity positions, in column position mod columns
	NotCausal  bool  // tokens see later ones of their pass, until SetCausal says otherwise
	Reach      int32 // a token sees itself and Reach positions before it; 0: everything, of a ring Capacity - 1
	ValueHeads int32 // heads of V; 0: NKVHeads. Others store and read like any, and attention is NotSupported
	MaskDType  DType // what MaskShape proposes: F32, F16 or Bool8; 0: F32
}

func (d TransformerDesc) c() (C.uint32_t, unsafe.Pointer) {
	desc := d.desc()
	return C.KVC_TRANSFORMER, unsafe.Pointer(&desc)
}

func (d *TransformerDesc) desc() (desc C.kvc_transformer_desc) {
	desc.struct_size, desc.kind = C.sizeof_kvc_transformer_desc, C.KVC_TRANSFORMER
	if d.Ring {
		desc.flags |= C.KVC_TRANSFORMER_RING
	}
	if d.NotCausal {
		desc.flags |= C.KVC_TRANSFORMER_NOT_CAUSAL
	}
	desc.reach, desc.value_heads = C.int32_t(d.Reach), C.int32_t(d.ValueHeads)
	desc.mask_dtype = C.uint32_t(d.MaskDType)
	return desc
}

// RowsView returns views of what all rows of a layer store, of every storage type, without a pass: cell
// row*Columns + column of a view is a column of a row. Columns that hold no position hold anything. The
// codes of F32, F16 and BF16 are the numbers. The views are valid until a call that is not like Fits.
func (c *Cache) RowsView(layer int) (k, v Codes, err error) {
	at, err := number("layer", layer)
	if err != nil {
		return Codes{}, Codes{}, err
	}
	out := C.go_rows_view(c.key(), at)
	runtime.KeepAlive(c)
	if err = failure(out.result); err != nil {
		return Codes{}, Codes{}, err
	}
	return Codes{viewOf(c, out.k), viewOf(c, out.k_scales)}, Codes{viewOf(c, out.v), viewOf(c, out.v_scales)}, nil
}

// RowsFill replaces what rows [rowBegin, rowBegin + n) hold in one layer. k and v are
// [n, columns, heads, …], of any number of columns up to that of the cache: numbers, which are stored
// as Put does, or the codes of RowsView with their scales. Tensor{}: stays. Columns that hold no position
// are not read, and those behind the tensors' last stay.
//
// So a cache is built from arrays: BeginRows with the lengths, Commit without a Put, RowsFill of each
// layer, RowsSet of the starts.
func (c *Cache) RowsFill(layer, rowBegin, n int, k, kScales, v, vScales Tensor) error {
	var narrow narrowing
	at, first, count := narrow.number("layer", layer), narrow.number("rowBegin", rowBegin), narrow.number("n", n)
	if narrow.err != nil {
		return narrow.err
	}
	if err := optional(&k, "k", &kScales, "kScales"); err != nil {
		return err
	}
	if err := optional(&v, "v", &vScales, "vScales"); err != nil {
		return err
	}
	err := failure(C.go_rows_fill(c.key(), at, first, count, k.c(), kScales.c(), v.c(), vScales.c()))
	runtime.KeepAlive(c)
	return err
}
