package kvc

// #include "shim.h"
import "C"

import "runtime"

// Get returns views of a layer's keys and values over the range of cells that the batch may see.
// The views are valid until the pass ends. It lends F32, F16 and BF16; for other storage types it returns
// NotSupported, and GetCodes lends what is stored, GetCopy decodes it, and Attention needs neither.
// Where one side alone is stored as codes, GetKeys or GetValues lends the other.
func (c *Cache) Get(layer int) (k, v View, err error) {
	out, err := c.get(layer, 1, 1)
	if err != nil {
		return View{}, View{}, err
	}
	return viewOf(c, out.first), viewOf(c, out.second), nil
}

// GetKeys is Get of the keys alone.
func (c *Cache) GetKeys(layer int) (View, error) {
	out, err := c.get(layer, 1, 0)
	if err != nil {
		return View{}, err
	}
	return viewOf(c, out.first), nil
}

// GetValues is Get of the values alone.
func (c *Cache) GetValues(layer int) (View, error) {
	out, err := c.get(layer, 0, 1)
	if err != nil {
		return View{}, err
	}
	return viewOf(c, out.second), nil
}

func (c *Cache) get(layer int, ofK, ofV C.int) (C.go_tensors, error) {
	at, err := number("layer", layer)
	if err != nil {
		return C.go_tensors{}, err
	}
	out := C.go_get(c.key(), at, ofK, ofV)
	runtime.KeepAlive(c)
	return out, failure(out.result)
}

// History returns the range of cells that the columns of a layer's views, mask, bias and weights
// stand for: column i is cell firstCell + i, as Runs numbers cells. Get may change the range.
func (c *Cache) History(layer int) (firstCell, nCells int, err error) {
	at, err := number("layer", layer)
	if err != nil {
		return 0, 0, err
	}
	out := C.go_history_of(c.key(), at)
	runtime.KeepAlive(c)
	return int(out.first_cell), int(out.n_cells), failure(out.result)
}

// MaskShape returns the shape that Mask requires, [n tokens, history], and the MaskDType of the
// cache. Of rows, nTokens is rows * qLen, and Mask requires [rows, 1, qLen, history].
func (c *Cache) MaskShape(layer int) (nTokens, history int, dtype DType, err error) {
	at, err := number("layer", layer)
	if err != nil {
		return 0, 0, 0, err
	}
	out := C.go_mask_shape(c.key(), at)
	runtime.KeepAlive(c)
	mask := &out.first
	nTokens, history = int(mask.shape[0]), int(mask.shape[1])
	if mask.ndim == maxDims { // of rows
		nTokens, history = nTokens*int(mask.shape[2]), int(mask.shape[3])
	}
	return nTokens, history, DType(mask.dtype), failure(out.result)
}

// Mask writes the mask that belongs to the views of Get: 0 where a token of the batch sees a cell
// and minus infinity elsewhere, or, into a tensor made by Bool, true and false.
func (c *Cache) Mask(layer int, into Tensor) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := into.check("into"); err != nil {
		return err
	}
	err = failure(C.go_mask(c.key(), at, into.c()))
	runtime.KeepAlive(c)
	return err
}

// Gather copies what a sequence holds in a layer, in order of position: k and v are
// [count, KV heads, head size], where count is that of Sequence. Tensor{}: not wanted.
func (c *Cache) Gather(layer, sequence int, k, v Tensor) error {
	return c.gather(layer, sequence, k, v, 0)
}

// GatherTransposed is Gather with v as [KV heads, head size, count].
func (c *Cache) GatherTransposed(layer, sequence int, k, v Tensor) error {
	return c.gather(layer, sequence, k, v, C.KVC_TENSOR_TRANSPOSED)
}

func (c *Cache) gather(layer, sequence int, k, v Tensor, flags C.uint32_t) error {
	var narrow narrowing
	at, of := narrow.number("layer", layer), narrow.number("sequence", sequence)
	if narrow.err != nil {
		return narrow.err
	}
	if err := optional(&k, "k", &v, "v"); err != nil {
		return err
	}
	err := failure(C.go_gather(c.key(), at, of, k.c(), v.c(), flags))
	runtime.KeepAlive(c)
	return err
}

// Run is a range of neighbouring cells that hold consecutive positions. See kvc_run.
type Run struct{ Cell, Length, Position, Offset int32 }

// Runs returns where a sequence's tokens lie in a layer, in order of position.
func (c *Cache) Runs(layer, sequence int) ([]Run, error) {
	var narrow narrowing
	at, of := narrow.number("layer", layer), narrow.number("sequence", sequence)
	if narrow.err != nil {
		return nil, narrow.err
	}
	var found []Run
	for { // another goroutine may change their number between two calls
		out := C.go_runs(c.key(), at, of, C.int32_t(len(found)), (*C.kvc_run)(pointer(found)))
		runtime.KeepAlive(c)
		if err := failure(out.result); err != nil {
			return nil, err
		}
		if n := int(out.number); n <= len(found) {
			return found[:n], nil
		}
		found = make([]Run, out.number)
	}
}
