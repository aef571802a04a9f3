package kvc

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// CarriesInput marks a token that carries an input of an encoder cache: it and all later tokens of its
// sequence see the whole of it, until another token carries the next one.
const CarriesInput TokenFlags = C.KVC_TOKEN_ENCODER_INPUT

// EncoderDesc makes a cache for cross attention: it holds the keys and values of what an encoder read,
// an image, 30 seconds of audio, a source sentence. CacheDesc.Capacity is the positions of one input
// at most, and Cells must be 0. See kvc_encoder_desc.
type EncoderDesc struct {
	Inputs    int32 // that the cache holds at a time; 0: as many as a pass can ever need
	MaskDType DType // what MaskShape proposes: F32, F16 or Bool8; 0: F32
}

func (d EncoderDesc) c() (C.uint32_t, unsafe.Pointer) {
	desc := &C.kvc_encoder_desc{struct_size: C.sizeof_kvc_encoder_desc, kind: C.KVC_ENCODER}
	desc.inputs, desc.mask_dtype = C.int32_t(d.Inputs), C.uint32_t(d.MaskDType)
	return C.KVC_ENCODER, unsafe.Pointer(desc)
}

// EncoderPut stores one layer of the input that sequence carries in the open pass: k and v are
// [length, KV heads, head size]. Put is the same for the only input of a pass.
func (c *Cache) EncoderPut(layer, sequence int, k, v Tensor) error {
	var narrow narrowing
	at, of := narrow.number("layer", layer), narrow.number("sequence", sequence)
	if narrow.err != nil {
		return narrow.err
	}
	if err := required(&k, "k", &v, "v"); err != nil {
		return err
	}
	err := failure(C.go_encoder_put(c.key(), at, of, k.c(), v.c()))
	runtime.KeepAlive(c)
	return err
}

// EncoderShare makes the input that sequence carries in the open pass the one that source carries or
// holds: nothing to encode, to put or to store.
func (c *Cache) EncoderShare(sequence, source int) error {
	var narrow narrowing
	of, from := narrow.number("sequence", sequence), narrow.number("source", source)
	if narrow.err != nil {
		return narrow.err
	}
	err := failure(C.go_encoder_share(c.key(), of, from))
	runtime.KeepAlive(c)
	return err
}

// EncoderQuery returns the input that a sequence holds: the position of the token that carried it (None:
// the sequence has none) and its length.
func (c *Cache) EncoderQuery(sequence int) (position, length int, err error) {
	of, err := number("sequence", sequence)
	if err != nil {
		return None, 0, err
	}
	out := C.go_encoder_query(c.key(), of)
	runtime.KeepAlive(c)
	return int(out.first), int(out.second), failure(out.result)
}

// EncoderCached reports whether a sequence holds an input, so that its encoder need not run again.
func (c *Cache) EncoderCached(sequence int) (bool, error) {
	_, length, err := c.EncoderQuery(sequence)
	return length > 0, err
}
