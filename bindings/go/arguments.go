package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// pointer is where a slice begins; nil for an empty one.
func pointer[T any](values []T) unsafe.Pointer {
	if len(values) == 0 {
		return nil
	}
	return unsafe.Pointer(&values[0])
}

func numbers(values []int32) *C.int32_t { return (*C.int32_t)(pointer(values)) }

// number narrows without wrapping around: what does not fit is out of every range.
func number(n int) C.int32_t {
	if n < math.MinInt32 || n > math.MaxInt32 {
		return math.MinInt32
	}
	return C.int32_t(n)
}

// together is the length of two slices that belong together.
func together(what string, a, b int) (C.int32_t, error) {
	if a != b {
		return 0, &Error{InvalidArgument, fmt.Sprintf("%s have %d and %d elements", what, a, b)}
	}
	return number(a), nil
}

// constants checks the length of an optional slice, which the library trusts.
func constants(values []float32, n int, name string) (*C.float, error) {
	if values == nil {
		return nil, nil
	}
	if len(values) != n {
		return nil, &Error{InvalidArgument, fmt.Sprintf("%s has %d elements where %d belong", name, len(values), n)}
	}
	return (*C.float)(pointer(values)), nil
}

func checked(a *Tensor, nameA string, b *Tensor, nameB string) error {
	if err := a.check(nameA); err != nil {
		return err
	}
	return b.check(nameB)
}

func optional(t *Tensor, name string) error {
	if t.absent() {
		return nil
	}
	return t.check(name)
}

// wanted is optional for what cannot be empty: an empty slice must not be taken for none.
func wanted(t *Tensor, name string) error {
	if t.absent() {
		return nil
	}
	if t.data == nil {
		return &Error{Shape, name + " is empty"}
	}
	return t.check(name)
}
