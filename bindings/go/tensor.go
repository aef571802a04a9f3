package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// DType is an element type, with DLPack's numbers.
type DType uint32

// The element types that a cache stores and takes. Their zero value stands for F32 in a description.
const (
	F32  DType = C.KVC_F32
	F16  DType = C.KVC_F16
	BF16 DType = C.KVC_BF16
)

// Tensor is a dense row-major view of a slice. kvc uses it during a call only and keeps no pointer to it.
type Tensor struct {
	data  unsafe.Pointer
	n     int // elements behind data
	dtype DType
	ndim  int
	shape [3]int
}

// Float32 views a slice as a tensor; the last index of the shape runs fastest.
func Float32(data []float32, shape ...int) Tensor {
	t := shaped(F32, len(data), shape)
	if len(data) > 0 {
		t.data = unsafe.Pointer(&data[0])
	}
	return t
}

// Float16 views a slice of IEEE half-precision bits as a tensor.
func Float16(data []uint16, shape ...int) Tensor { return halves(F16, data, shape) }

// BFloat16 views a slice of bfloat16 bits as a tensor.
func BFloat16(data []uint16, shape ...int) Tensor { return halves(BF16, data, shape) }

// Bool views a slice of truth values, or of bytes that are 0 or not, as a mask: what is false is hidden.
func Bool[T bool | uint8](data []T, shape ...int) Tensor {
	t := shaped(C.KVC_BOOL, len(data), shape)
	t.data = pointer(data)
	return t
}

func halves(dtype DType, data []uint16, shape []int) Tensor {
	t := shaped(dtype, len(data), shape)
	if len(data) > 0 {
		t.data = unsafe.Pointer(&data[0])
	}
	return t
}

func shaped(dtype DType, n int, shape []int) Tensor {
	t := Tensor{n: n, dtype: dtype, ndim: len(shape)}
	copy(t.shape[:], shape)
	return t
}

func (t *Tensor) absent() bool { return t.dtype == 0 } // Tensor{}; an empty slice has a type

// check keeps the library, which knows no lengths, from reading beyond a slice.
func (t *Tensor) check(name string) error {
	if t.ndim < 1 || t.ndim > len(t.shape) {
		return &Error{Shape, fmt.Sprintf("%s has %d dimensions", name, t.ndim)}
	}
	need := 1
	for _, extent := range t.shape[:t.ndim] {
		if extent < 0 || (extent > 0 && need > t.n/extent) {
			return tooShort(*t, name)
		}
		need *= extent
	}
	return nil
}

// tooShort takes a copy, so that the tensors of a call that succeeds stay on the stack.
func tooShort(t Tensor, name string) error {
	return &Error{Shape, fmt.Sprintf("%s of shape %v does not fit in a slice of %d", name, t.shape[:t.ndim], t.n)}
}

// The arguments that GO_TENSOR in shim.h stands for. Bytes and not void: cgo then has nothing to look for pointers in.
func (t *Tensor) bytes() *C.uint8_t { return (*C.uint8_t)(t.data) }
func (t *Tensor) kind() C.uint32_t {
	if t.dtype == 0 { // an absent tensor must be well formed too
		return C.KVC_F32
	}
	return C.uint32_t(t.dtype)
}
func (t *Tensor) dims() C.int32_t {
	if t.ndim == 0 {
		return 1
	}
	return C.int32_t(t.ndim)
}
func (t *Tensor) at(i int) C.int64_t { return C.int64_t(t.shape[i]) }
func (t *Tensor) present() C.int32_t {
	if t.absent() {
		return 0
	}
	return 1
}

// View is memory of the cache, as Get shows it: element (cell, head, i) is at cell*Strides[0] + head*Strides[1] + i.
// It is valid until the pass ends. A View keeps its cache from being collected. What is taken out of it, Data and the
// slices of Float32 and Bits, does not: it is C's memory, which the collector does not know. While such a slice is in use
// the View or the cache must be too; runtime.KeepAlive says so where nothing else does.
type View struct {
	Data    unsafe.Pointer
	DType   DType
	Shape   [3]int // history, KV heads, head size
	Strides [3]int // in elements
	cache   *Cache
}

// row is where the vector of one cell and head begins.
func (v View) row(cell, head int) unsafe.Pointer {
	if cell < 0 || cell >= v.Shape[0] || head < 0 || head >= v.Shape[1] {
		panic(fmt.Sprintf("kvc: cell %d and head %d are outside a view of shape %v", cell, head, v.Shape))
	}
	width := 2
	if v.DType == F32 {
		width = 4
	}
	row := unsafe.Add(v.Data, (cell*v.Strides[0]+head*v.Strides[1])*width)
	runtime.KeepAlive(v.cache)
	return row
}

// Float32 is the vector of one cell and head of a view that stores f32, in place.
func (v View) Float32(cell, head int) []float32 {
	if v.DType != F32 {
		panic("kvc: this view does not store f32")
	}
	return unsafe.Slice((*float32)(v.row(cell, head)), v.Shape[2])
}

// Bits is the vector of one cell and head of a view that stores f16 or bf16, in place.
func (v View) Bits(cell, head int) []uint16 {
	if v.DType == F32 {
		panic("kvc: this view stores f32")
	}
	return unsafe.Slice((*uint16)(v.row(cell, head)), v.Shape[2])
}

func viewOf(c *Cache, t C.kvc_tensor) View {
	v := View{Data: unsafe.Add(t.data, int(t.byte_offset)), DType: DType(t.dtype), cache: c}
	for i := range v.Shape {
		v.Shape[i], v.Strides[i] = int(t.shape[i]), int(t.strides[i])
	}
	return v
}
