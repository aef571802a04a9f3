package kvc

// #include "shim_rows.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// ---- Passes of rows ------------------------------------------------------------------------------
//
// Transformer caches (TransformerDesc) take passes of rows alone, lightning caches (LightningDesc)
// lists of tokens too.

// RowsExtra is what a pass of rows takes besides its lengths; zero: nothing.
type RowsExtra struct {
	// AttentionMask hides columns, in this pass alone; made by Bool or Int32, 0 hides. Transformer
	// caches: [rows, n] or [rows, 1, qLen, n], a column per position; n reaches at least as far as each
	// row will and at most to Capacity, and columns from n on are not hidden; with Ring NotSupported.
	// Lightning caches: [rows, qLen], and a token that it hides counts as Masked.
	AttentionMask Tensor
	// TokenTypes are [rows * qLen], nil: none. Tokens of a row and pass with the same type, 0 apart, see
	// each other whatever their order and distance. Lightning caches: NotSupported.
	TokenTypes []int32
	// NotCausal lets every token of the pass see later ones, see SetCausal. Lightning caches:
	// NotSupported.
	NotCausal bool
	// PostPadded reads the valid lengths off an AttentionMask of two dimensions: of a row's new columns
	// those that it shows come first, and as many tokens count. valid is nil then.
	PostPadded bool
	// Replay: a captured graph does the pass, as BeginOptions has it.
	Replay bool
	// Reserve sizes a graph for the worst case, as BeginReserve does: only qLen counts.
	Reserve bool
	// Stream is one of a GPU, in DLPack's numbering; nil: the legacy default stream.
	Stream unsafe.Pointer
}

// rowsArguments are those of a pass of rows for C.
type rowsArguments struct {
	qLen  C.int32_t
	flags C.uint32_t
	valid *C.int32_t
	mask  C.go_tensor
	types *C.int32_t
}

func (c *Cache) rowsArguments(qLen int, valid []int32, extra *RowsExtra) (rows rowsArguments, err error) {
	if c == nil {
		return rows, &Error{InvalidHandle, "the cache is nil"}
	}
	if rows.qLen, err = number("qLen", qLen); err != nil {
		return rows, err
	}
	if err = perEach(valid, "valid", c.maxSequences, "row"); err != nil {
		return rows, err
	}
	if err = perEach(extra.TokenTypes, "TokenTypes", c.maxSequences*qLen, "token of the pass"); err != nil {
		return rows, err
	}
	rows.valid, rows.types = numbers(valid), numbers(extra.TokenTypes)
	if err = extra.AttentionMask.checkIfPresent("AttentionMask"); err != nil {
		return rows, err
	}
	rows.mask = extra.AttentionMask.c()
	if extra.NotCausal {
		rows.flags |= C.KVC_ROWS_NOT_CAUSAL
	}
	if extra.PostPadded {
		rows.flags |= C.KVC_ROWS_POSTPADDED
	}
	if extra.Replay {
		rows.flags |= C.KVC_ROWS_REPLAY
	}
	if extra.Reserve {
		rows.flags |= C.KVC_ROWS_RESERVE
	}
	return rows, nil
}

// BeginRows opens a pass of qLen tokens in every row, 1 … MaxBatch / MaxSequences. Row b is sequence b;
// its first valid[b] tokens continue it, and the others are padding: they are never read, see nothing
// and get 0. nil: qLen in each row. A row that is finished takes 0 tokens.
//
// In a pass of rows tensors have two dimensions, rows and qLen, in the place of the number of tokens: k
// and v are [rows, qLen, KV heads, head size], q and out [rows, qLen, query heads, head size], LSE
// [rows, qLen, query heads], Bias, Mask and Weights [rows, query heads, qLen, columns], the mask of
// Cache.Mask [rows, 1, qLen, columns]. Token i of row b has the number b*qLen + i in SetCausal.
//
// CacheFull names the row that has no room; no row was changed.
func (c *Cache) BeginRows(qLen int, valid []int32) error {
	return c.BeginRowsWith(qLen, valid, RowsExtra{})
}

// BeginRowsWith is BeginRows with a mask, types and more, see RowsExtra.
func (c *Cache) BeginRowsWith(qLen int, valid []int32, extra RowsExtra) error {
	rows, err := c.rowsArguments(qLen, valid, &extra)
	if err != nil {
		return err
	}
	err = failure(C.go_begin_rows(c.handle, rows.qLen, rows.flags, rows.valid, rows.mask, rows.types, extra.Stream))
	runtime.KeepAlive(c)
	return err
}

// FitsRows returns the error that BeginRows would return now. Nothing changes.
func (c *Cache) FitsRows(qLen int, valid []int32) error {
	return c.FitsRowsWith(qLen, valid, RowsExtra{})
}

// FitsRowsWith returns the error that BeginRowsWith would return now. Nothing changes.
func (c *Cache) FitsRowsWith(qLen int, valid []int32, extra RowsExtra) error {
	rows, err := c.rowsArguments(qLen, valid, &extra)
	if err != nil {
		return err
	}
	err = failure(C.go_fits_rows(c.handle, rows.qLen, rows.flags, rows.valid, rows.mask, rows.types))
	runtime.KeepAlive(c)
	return err
}

// ---- Where rows continue -------------------------------------------------------------------------

// rowsOf returns how many rows the slices of an index and of starts are for; nil: not this one.
func rowsOf(index, starts []int32) (C.int32_t, error) {
	if index == nil {
		return number("the length of starts", len(starts))
	}
	if starts == nil {
		return number("the length of index", len(index))
	}
	return together("index and starts", len(index), len(starts))
}

// RowsQuery writes where the rows from rowBegin on continue (index) and the positions below which they
// are padding (starts), as if the open pass were committed. Both have an element per row; nil: not
// wanted.
func (c *Cache) RowsQuery(rowBegin int, index, starts []int32) error {
	first, err := number("rowBegin", rowBegin)
	if err != nil {
		return err
	}
	n, err := rowsOf(index, starts)
	if err != nil {
		return err
	}
	err = failure(C.go_rows_query(c.key(), first, n, numbers(index), numbers(starts)))
	runtime.KeepAlive(c)
	return err
}

// RowsSet sets index and starts of the rows from rowBegin on, all of them or none; nil: stays.
//
// A row of a transformer cache goes back: what lies at or behind its index is dropped. Only an empty row
// of a ring may go anywhere, and then continues there. Starts are 0 … Capacity, of a ring any position.
// In a lightning cache the index is a label of time: the state stays as it is and checkpoints are
// dropped; 0 empties the row, and starts must be 0. WindowLost: a ring no longer holds what a token at
// that index would see.
func (c *Cache) RowsSet(rowBegin int, index, starts []int32) error {
	first, err := number("rowBegin", rowBegin)
	if err != nil {
		return err
	}
	n, err := rowsOf(index, starts)
	if err != nil {
		return err
	}
	err = failure(C.go_rows_set(c.key(), first, n, numbers(index), numbers(starts)))
	runtime.KeepAlive(c)
	return err
}

// Insert puts all rows of another cache in the place of rows [slot, slot + rows of other): what they
// hold, byte for byte, index and starts. What these rows held is gone. The two are of one kind and one
// device, and store in the same way; MaxBatch may differ, and Capacity except in rings. Methods of other
// that may overlap Fits may overlap this one too. BadState: a pass of other is open. CacheFull: index or
// starts of a row are beyond Capacity.
func (c *Cache) Insert(other *Cache, slot int) error {
	at, err := number("slot", slot)
	if err != nil {
		return err
	}
	err = failure(C.go_insert(c.key(), other.key(), at))
	runtime.KeepAlive(c)
	runtime.KeepAlive(other)
	return err
}
