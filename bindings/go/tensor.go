package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"math/big"
	"runtime"
	"unsafe"
)

// DType is an element type of a tensor or a storage type of a cache.
type DType uint32

// The element types that every cache takes and stores; masks may also be Bool8. In a descriptor 0 means
// F32.
const (
	F32   DType = C.KVC_F32
	F16   DType = C.KVC_F16
	BF16  DType = C.KVC_BF16
	Bool8 DType = C.KVC_BOOL // one byte: 0 is false, anything else is true
)

// Storage types of 8 and 4 bits, for causal and encoder caches. Keys and values are encoded when they are
// put, and attention reads the codes. kvc/storage.h says what their bytes are. Q8_0, Q4_0, INT8 and NF4
// are never the type of a tensor: their codes are tensors of I8 or U8.
const (
	F8E4M3 DType = C.KVC_F8_E4M3 // scales are bound, see BindScales
	F8E5M2 DType = C.KVC_F8_E5M2
	Q8_0   DType = C.KVC_Q8_0 // 8-bit codes, blocks of 32 values with one f16 scale
	Q4_0   DType = C.KVC_Q4_0 // 4-bit codes, blocks of 32 values with one f16 scale
	INT8   DType = C.KVC_INT8 // 8-bit codes, one f32 scale per vector
	NF4    DType = C.KVC_NF4  // 4-bit codes of a table, blocks of 16, 32, 64 or 128 values with one f32 scale
)

// Element types of codes.
const (
	I8 DType = C.KVC_I8 // Q8_0, INT8
	U8 DType = C.KVC_U8 // Q4_0, NF4: two codes in a byte
)

// I32 is a type of attention masks of rows, see RowsExtra.
const I32 DType = C.KVC_I32

// F64 is a type that no tensor has in this version. OperatorDesc.SoftmaxDType may be it.
const F64 DType = C.KVC_F64

// size returns the bytes of an element; 0 for types of less than a byte, which no tensor has.
func (d DType) size() int { return int(d>>8&0xff) / 8 }

// maxDims is how many dimensions a tensor has at most: rows of states of matrices have four.
const maxDims = 4

// Tensor is a dense row-major view of a slice. kvc uses it during a call only and keeps no pointer
// to it. The zero Tensor is absent: it stands for an optional tensor that is not wanted.
type Tensor struct {
	data  unsafe.Pointer
	n     int   // elements behind data
	dtype DType // 0: absent. An empty slice has a type
	ndim  int
	shape [maxDims]int

	deviceType, deviceID int32 // 0: the CPU
}

// Float32 makes a tensor of a slice; the last index of the shape runs fastest.
func Float32(data []float32, shape ...int) Tensor {
	return tensor(F32, pointer(data), len(data), shape)
}

// Float16 makes a tensor of a slice of IEEE half-precision bits.
func Float16(data []uint16, shape ...int) Tensor {
	return tensor(F16, pointer(data), len(data), shape)
}

// BFloat16 makes a tensor of a slice of bfloat16 bits.
func BFloat16(data []uint16, shape ...int) Tensor {
	return tensor(BF16, pointer(data), len(data), shape)
}

// Bool makes a mask of a slice of truth values, or of bytes that are 0 or not: false hides.
func Bool[T bool | uint8](data []T, shape ...int) Tensor {
	return tensor(Bool8, pointer(data), len(data), shape)
}

// Int32 makes an attention mask of rows of a slice of numbers: 0 hides.
func Int32(data []int32, shape ...int) Tensor {
	return tensor(I32, pointer(data), len(data), shape)
}

// Int8 makes a tensor of a slice of codes of Q8_0 or INT8.
func Int8(data []int8, shape ...int) Tensor {
	return tensor(I8, pointer(data), len(data), shape)
}

// Uint8 makes a tensor of a slice of codes of Q4_0 or NF4.
func Uint8(data []uint8, shape ...int) Tensor {
	return tensor(U8, pointer(data), len(data), shape)
}

// Bytes makes a tensor of any type of a slice that holds its bytes: codes and scales that were saved, or
// codes of F8E4M3 and F8E5M2. The first byte must be aligned for the type, as that of a slice from make
// is. A dtype of 0, as StorageInfo.ScaleDType is where no scale is stored, makes Tensor{}.
func Bytes(dtype DType, data []byte, shape ...int) Tensor {
	n := len(data)
	if size := dtype.size(); size > 1 {
		n /= size
	}
	return tensor(dtype, pointer(data), n, shape)
}

// OnGPU makes a tensor of memory of the GPU "cuda:<id>", dense in row-major order. It has to stay until the work
// of the pass is done there, which Device.Synchronize waits for.
func OnGPU(id int, dtype DType, address unsafe.Pointer, shape ...int) Tensor {
	t := tensor(dtype, address, math.MaxInt, shape)
	t.deviceType, t.deviceID = C.KVC_CUDA, int32(id)
	return t
}

func tensor(dtype DType, data unsafe.Pointer, n int, shape []int) Tensor {
	t := Tensor{data: data, n: n, dtype: dtype, ndim: len(shape)}
	copy(t.shape[:], shape)
	return t
}

func (t *Tensor) absent() bool { return t.dtype == 0 }

// check keeps the library, which knows no lengths, from accessing memory behind a slice.
func (t *Tensor) check(name string) error {
	if t.ndim < 1 || t.ndim > len(t.shape) {
		return refused(*t, name)
	}
	need, empty := 1, false
	for _, extent := range t.shape[:t.ndim] {
		if extent < 0 {
			return refused(*t, name)
		}
		empty = empty || extent == 0
	}
	for i := 0; i < t.ndim && !empty; i++ {
		if need > t.n/t.shape[i] {
			return refused(*t, name)
		}
		need *= t.shape[i]
	}
	return nil
}

func (t *Tensor) checkIfPresent(name string) error {
	if t.absent() {
		return nil
	}
	return t.check(name)
}

// refused says what check found. It takes a copy, so that the tensors of a successful call stay on
// the stack.
func refused(t Tensor, name string) error {
	if t.absent() {
		return &Error{Shape, name + " is Tensor{}, but the call needs it"}
	}
	if t.ndim < 1 || t.ndim > len(t.shape) {
		return &Error{Shape, fmt.Sprintf("%s has %d dimensions, a tensor has 1 to %d", name, t.ndim, len(t.shape))}
	}
	shape, need := t.shape[:t.ndim], big.NewInt(1)
	for _, extent := range shape {
		if extent < 0 {
			return &Error{InvalidArgument, fmt.Sprintf("%s of shape %v has a negative extent", name, shape)}
		}
		need.Mul(need, big.NewInt(int64(extent)))
	}
	return &Error{Shape, fmt.Sprintf("%s of shape %v needs %v elements, the slice has %d", name, shape, need, t.n)}
}

// c returns the argument of a foreign call.
func (t *Tensor) c() C.go_tensor {
	return C.go_tensor{
		data:  (*C.uint8_t)(t.data),
		dtype: C.uint32_t(t.dtype),
		ndim:  C.int32_t(t.ndim),
		shape: [maxDims]C.int64_t{C.int64_t(t.shape[0]), C.int64_t(t.shape[1]), C.int64_t(t.shape[2]), C.int64_t(t.shape[3])},

		device_type: C.int32_t(t.deviceType),
		device_id:   C.int32_t(t.deviceID),
	}
}

// View is memory of the cache, which Get, GetCodes and RowsView return: element (cell, head, i) is at
// cell*Strides[0] + head*Strides[1] + i. That of Get and GetCodes is valid until the pass ends. Of rows,
// cell row*Columns + column is a column of a row.
//
// A View keeps its cache from being collected. Data and the slices that its methods return do not: the
// collector does not know C's memory. Keep the View or the cache alive while you use them, with
// runtime.KeepAlive if nothing else does.
type View struct {
	Data    unsafe.Pointer
	DType   DType
	Shape   [3]int // cells, KV heads, and the head size, or the codes or scales of a vector
	Strides [3]int // in elements
	Columns int    // cells of a row; all, where the cache has no rows
	OnGPU   bool   // Data is an address of a GPU, and the methods that return slices panic
	cache   *Cache
}

// row returns where the vector of one cell and head begins, of elements of width bytes.
func (v View) row(cell, head, width int) unsafe.Pointer {
	if v.OnGPU {
		panic("kvc: the memory of the view is a GPU's, which the host cannot read")
	}
	if cell < 0 || cell >= v.Shape[0] || head < 0 || head >= v.Shape[1] {
		panic(fmt.Sprintf("kvc: cell %d and head %d are outside a view of shape %v", cell, head, v.Shape))
	}
	row := unsafe.Add(v.Data, (cell*v.Strides[0]+head*v.Strides[1])*width)
	runtime.KeepAlive(v.cache)
	return row
}

// Float32 returns the vector of one cell and head in place. It panics if the view does not store f32.
func (v View) Float32(cell, head int) []float32 {
	if v.DType != F32 {
		panic(fmt.Sprintf("kvc: Float32 of a view that stores %v", v.DType))
	}
	return unsafe.Slice((*float32)(v.row(cell, head, 4)), v.Shape[2])
}

// Bits returns the vector of one cell and head in place. It panics if the view stores neither f16
// nor bf16.
func (v View) Bits(cell, head int) []uint16 {
	if v.DType != F16 && v.DType != BF16 {
		panic(fmt.Sprintf("kvc: Bits of a view that stores %v", v.DType))
	}
	return unsafe.Slice((*uint16)(v.row(cell, head, 2)), v.Shape[2])
}

// Int8 returns the vector of one cell and head in place. It panics if the view does not store i8.
func (v View) Int8(cell, head int) []int8 {
	if v.DType != I8 {
		panic(fmt.Sprintf("kvc: Int8 of a view that stores %v", v.DType))
	}
	return unsafe.Slice((*int8)(v.row(cell, head, 1)), v.Shape[2])
}

// Bytes returns the bytes of the vector of one cell and head in place, whatever the view stores.
func (v View) Bytes(cell, head int) []byte {
	width := v.DType.size()
	return unsafe.Slice((*byte)(v.row(cell, head, width)), v.Shape[2]*width)
}

// AppendCells appends the bytes of n cells, all heads of each. Bytes makes a tensor [n, KV heads, Shape[2]]
// of them, for PutCodes of another cache, now or after they were saved. View{} appends nothing.
func (v View) AppendCells(to []byte, cell, n int) []byte {
	if v.DType == 0 {
		return to
	}
	for end := cell + n; cell < end; cell++ {
		for head := 0; head < v.Shape[1]; head++ {
			to = append(to, v.Bytes(cell, head)...)
		}
	}
	runtime.KeepAlive(v.cache)
	return to
}

func viewOf(c *Cache, t C.kvc_tensor) View {
	if t.ndim == 0 { // scales of a type that stores none
		return View{}
	}
	v := View{Data: unsafe.Add(t.data, int(t.byte_offset)), DType: DType(t.dtype), OnGPU: t.device_type == C.KVC_CUDA, cache: c}
	first := int(t.ndim) - len(v.Shape) // 1: of rows, which lie one behind the other
	for i := range v.Shape {
		v.Shape[i], v.Strides[i] = int(t.shape[first+i]), int(t.strides[first+i])
	}
	v.Columns = v.Shape[0]
	if first == 1 {
		v.Shape[0] *= int(t.shape[0])
	}
	return v
}

func shapeOf(t *C.kvc_tensor) (shape []int) {
	for i := 0; i < int(t.ndim); i++ {
		shape = append(shape, int(t.shape[i]))
	}
	return shape
}
