package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"runtime"
	"strings"
)

// storageTypes are what CacheDesc.DTypeK may be.
var storageTypes = []DType{F32, F16, BF16, F8E4M3, F8E5M2, Q8_0, Q4_0, INT8, NF4}

// ParseDType returns the storage type of a name, for settings: "f16", "q8_0", "q4_0", "nf4" and so on, as
// String writes them.
func ParseDType(name string) (DType, error) {
	var names []string
	for _, dtype := range storageTypes {
		if dtype.String() == name {
			return dtype, nil
		}
		names = append(names, dtype.String())
	}
	return 0, &Error{Dtype, fmt.Sprintf("%q is no storage type; there are %s", name, strings.Join(names, ", "))}
}

// StorageInfo tells how vectors lie in a storage type. See kvc_storage_info.
type StorageInfo struct {
	DType        DType
	CodeDType    DType // element type of codes: the type itself (F32, F16, BF16, F8E4M3, F8E5M2), I8 or U8
	ScaleDType   DType // F16 or F32; 0: no scale is stored
	Block        int   // values that share a stored scale; 0: none is stored
	CodesPerRow  int   // elements of CodeDType of one vector
	ScalesPerRow int
	BytesPerRow  int // codes and scales
}

// StorageQuery tells how vectors of headDim numbers lie in a storage type. block is that of NF4, or 0.
func StorageQuery(dtype DType, headDim, block int) (StorageInfo, error) {
	var narrow narrowing
	dim, values := narrow.number("headDim", headDim), narrow.number("block", block)
	if narrow.err != nil {
		return StorageInfo{}, narrow.err
	}
	out := C.go_storage_query(C.uint32_t(dtype), dim, values)
	if err := failure(out.result); err != nil {
		return StorageInfo{}, err
	}
	info := &out.info
	return StorageInfo{
		DType: DType(info.dtype), CodeDType: DType(info.code_dtype), ScaleDType: DType(info.scale_dtype),
		Block: int(info.block), CodesPerRow: int(info.codes_per_row), ScalesPerRow: int(info.scales_per_row),
		BytesPerRow: int(info.bytes_per_row),
	}, nil
}

// CodecDesc says how Encode and Decode store numbers. See kvc_codec_desc.
type CodecDesc struct {
	DType  DType   // a storage type
	Rotate bool    // as RotateK and RotateV do
	Block  int32   // of NF4, as CacheDesc.BlockK; else 0
	Scale  float32 // of F8E4M3 and F8E5M2, 0: 1; else 0
}

func (d *CodecDesc) c() (desc C.kvc_codec_desc) {
	desc.struct_size = C.sizeof_kvc_codec_desc
	desc.dtype, desc.block, desc.scale = C.uint32_t(d.DType), C.int32_t(d.Block), C.float(d.Scale)
	if d.Rotate {
		desc.flags = C.KVC_CODEC_ROTATE
	}
	return desc
}

// Encode writes vectors as codes and scales, byte for byte what a cache of the type stores. The last
// extents are the head size, CodesPerRow and ScalesPerRow of StorageQuery; the others are equal. scales
// is Tensor{} where none is stored.
func Encode(desc CodecDesc, values, codes, scales Tensor) error {
	if err := required(&values, "values", &codes, "codes"); err != nil {
		return err
	}
	if err := scales.checkIfPresent("scales"); err != nil {
		return err
	}
	return failure(C.go_encode(desc.c(), values.c(), codes.c(), scales.c()))
}

// Decode reads vectors from codes and scales. Everything else is as in Encode.
func Decode(desc CodecDesc, codes, scales, values Tensor) error {
	if err := required(&codes, "codes", &values, "values"); err != nil {
		return err
	}
	if err := scales.checkIfPresent("scales"); err != nil {
		return err
	}
	return failure(C.go_decode(desc.c(), codes.c(), scales.c(), values.c()))
}

// Codes are views of the codes and scales of one layer's keys or values. Scales is View{} where none is
// stored.
type Codes struct{ Codes, Scales View }

// GetCodes returns views of what a layer stores, of every storage type, over the range of cells of
// History. The codes of F32, F16 and BF16 are the numbers. Keys are as they were put, and Runs tells what
// rotation each of them owes. The views are valid until the pass ends; do not write through them.
func (c *Cache) GetCodes(layer int) (k, v Codes, err error) {
	at, err := number("layer", layer)
	if err != nil {
		return Codes{}, Codes{}, err
	}
	out := C.go_get_codes(c.key(), at)
	runtime.KeepAlive(c)
	if err = failure(out.result); err != nil {
		return Codes{}, Codes{}, err
	}
	return Codes{viewOf(c, out.k), viewOf(c, out.k_scales)}, Codes{viewOf(c, out.v), viewOf(c, out.v_scales)}, nil
}

// CopyShapes returns the shapes that GetCopy requires: [history, KV heads, head size], and
// [rows, history, KV heads, head size] of rows. Like GetCopy it may change History.
func (c *Cache) CopyShapes(layer int) (k, v []int, err error) {
	at, err := number("layer", layer)
	if err != nil {
		return nil, nil, err
	}
	out := C.go_copy_shapes(c.key(), at)
	runtime.KeepAlive(c)
	if err = failure(out.result); err != nil {
		return nil, nil, err
	}
	return shapeOf(&out.first), shapeOf(&out.second), nil
}

// GetCopy copies a layer's keys and values over the range of cells of History as numbers, of every storage
// type: decoded, and rotated as Get would return them. Cells that no token of the batch sees are zeros.
// Tensor{}: not wanted.
func (c *Cache) GetCopy(layer int, k, v Tensor) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := optional(&k, "k", &v, "v"); err != nil {
		return err
	}
	err = failure(C.go_get_copy(c.key(), at, k.c(), v.c()))
	runtime.KeepAlive(c)
	return err
}

// PutCodes is Put of what a cache of the same storage stored, byte for byte: [n tokens, KV heads, codes or
// scales of a vector]. Scales that are not stored are Tensor{}, and with VInK v and vScales. Nothing checks
// that the codes make sense.
func (c *Cache) PutCodes(layer int, k, kScales, v, vScales Tensor) error {
	at, err := number("layer", layer)
	if err != nil {
		return err
	}
	if err := k.check("k"); err != nil {
		return err
	}
	if err := optional(&kScales, "kScales", &v, "v"); err != nil {
		return err
	}
	if err := vScales.checkIfPresent("vScales"); err != nil {
		return err
	}
	err = failure(C.go_put_codes(c.key(), at, k.c(), kScales.c(), v.c(), vScales.c()))
	runtime.KeepAlive(c)
	return err
}
