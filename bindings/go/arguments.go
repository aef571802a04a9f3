package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"strings"
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

func floats(values []float32) *C.float { return (*C.float)(pointer(values)) }

// number narrows an argument for C, whose numbers have 32 bits. What does not fit is an error with
// its real value.
func number(name string, n int) (C.int32_t, error) {
	if n < math.MinInt32 || n > math.MaxInt32 {
		return 0, &Error{InvalidArgument, fmt.Sprintf("%s %d does not fit in 32 bits", name, n)}
	}
	return C.int32_t(n), nil
}

// narrowing narrows several arguments of a call. err is the error of the first that does not fit.
type narrowing struct{ err error }

func (all *narrowing) number(name string, n int) C.int32_t {
	narrow, err := number(name, n)
	if err != nil && all.err == nil {
		all.err = err
	}
	return narrow
}

// cString returns a name for C, which the caller frees. C would read what is before a zero byte.
func cString(name string) (*C.char, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return nil, &Error{InvalidArgument, fmt.Sprintf("the name %q contains a zero byte", name)}
	}
	return C.CString(name), nil
}

// together returns the length of two slices that belong together.
func together(what string, a, b int) (C.int32_t, error) {
	if a != b {
		return 0, &Error{InvalidArgument, fmt.Sprintf("%s have %d and %d elements", what, a, b)}
	}
	return number("the number of elements", a)
}

// tokens checks the slices of a batch. It returns the number of tokens and the flags' address.
func tokens(positions, sequences []int32, flags []TokenFlags) (C.int32_t, *C.uint32_t, error) {
	n, err := together("positions and sequences", len(positions), len(sequences))
	if err == nil && flags != nil {
		_, err = together("positions and flags", len(positions), len(flags))
	}
	if err == nil && n == 0 {
		err = &Error{InvalidArgument, "positions is empty: a pass has at least one token"}
	}
	return n, (*C.uint32_t)(pointer(flags)), err
}

// perEach checks the length of an optional slice: the library is not told it.
func perEach[T any](values []T, name string, n int, each string) error {
	if values == nil || len(values) == n {
		return nil
	}
	return &Error{InvalidArgument,
		fmt.Sprintf("%s has %d elements, not %d, one for each %s", name, len(values), n, each)}
}

func required(a *Tensor, nameA string, b *Tensor, nameB string) error {
	if err := a.check(nameA); err != nil {
		return err
	}
	return b.check(nameB)
}

func optional(a *Tensor, nameA string, b *Tensor, nameB string) error {
	if err := a.checkIfPresent(nameA); err != nil {
		return err
	}
	return b.checkIfPresent(nameB)
}
