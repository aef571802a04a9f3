package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// pointer returns the address of the first element, or nil for an empty slice.
func pointer[T any](values []T) unsafe.Pointer {
	if len(values) == 0 {
		return nil
	}
	return unsafe.Pointer(&values[0])
}

func numbers(values []int32) *C.int32_t { return (*C.int32_t)(pointer(values)) }

// number narrows without wrapping around: what does not fit becomes a number that is in no range.
func number(n int) C.int32_t {
	if n < math.MinInt32 || n > math.MaxInt32 {
		return math.MinInt32
	}
	return C.int32_t(n)
}

// together returns the length of two slices that belong together.
func together(what string, a, b int) (C.int32_t, error) {
	if a != b {
		return 0, &Error{InvalidArgument, fmt.Sprintf("%s have %d and %d elements", what, a, b)}
	}
	return number(a), nil
}

// tokens checks the slices of a batch. It returns the number of tokens and the flags' address.
func tokens(positions, sequences []int32, flags []TokenFlags) (C.int32_t, *C.uint32_t, error) {
	n, err := together("positions and sequences", len(positions), len(sequences))
	if err == nil && flags != nil {
		_, err = together("positions and flags", len(positions), len(flags))
	}
	return n, (*C.uint32_t)(pointer(flags)), err
}

// constants checks the length of an optional slice: the library is not told it.
func constants(values []float32, n int, name string) (*C.float, error) {
	if values == nil {
		return nil, nil
	}
	if len(values) != n {
		return nil, &Error{InvalidArgument,
			fmt.Sprintf("%s has %d elements, not %d", name, len(values), n)}
	}
	return (*C.float)(pointer(values)), nil
}

func required(a *Tensor, nameA string, b *Tensor, nameB string) error {
	if err := a.check(nameA); err != nil {
		return err
	}
	return b.check(nameB)
}

func optional(a *Tensor, nameA string, b *Tensor, nameB string) error {
	if !a.absent() {
		if err := a.check(nameA); err != nil {
			return err
		}
	}
	if b.absent() {
		return nil
	}
	return b.check(nameB)
}
