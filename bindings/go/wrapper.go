package kvc

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"runtime"
)

// ChildLayer is a layer of a child of a wrapper.
type ChildLayer struct{ Child, Layer int32 }

// Wrap makes one cache of several, which must be idle and empty: a window beside a full one, cross
// attention beside self attention, states beside keys and values. Layer i of the wrapper is layer
// layers[i].Layer of children[layers[i].Child]; with no layers, Put and Attention go to the children.
//
// Passes, aborts and what changes sequences reach all children or none, through the wrapper alone: a
// child returns BadState for them. Everything else works on a child as ever, also while another
// goroutine works on another child. Close lets the children go as they are. See kvc/wrapper.h.
func Wrap(children []*Cache, layers []ChildLayer) (*Cache, error) {
	n, err := number("the number of children", len(children))
	if err != nil {
		return nil, err
	}
	nLayers, err := number("the number of layers", len(layers))
	if err != nil {
		return nil, err
	}
	handles := make([]*C.kvc_cache, len(children))
	for i, child := range children {
		handles[i] = child.key()
	}
	child, layer := make([]int32, len(layers)), make([]int32, len(layers))
	for i, place := range layers {
		child[i], layer[i] = place.Child, place.Layer
	}
	out := C.go_cache_wrap((**C.kvc_cache)(pointer(handles)), n, numbers(child), numbers(layer), nLayers)
	runtime.KeepAlive(children)
	if err := failure(out.result); err != nil {
		return nil, err
	}
	c := newCache(out.cache)
	c.children, c.places = append([]*Cache(nil), children...), append([]ChildLayer(nil), layers...)
	for i, child := range children {
		if i == 0 || child.maxBatch < c.maxBatch {
			c.maxBatch = child.maxBatch
		}
		if child.maxSequences > c.maxSequences { // equal in all children where a wrapper takes rows
			c.maxSequences = child.maxSequences
		}
	}
	return c, nil
}

// Children returns the caches that a wrapper was made of, those of NewHybrid in the order in which their
// layers first appear. NotSupported: the cache is no wrapper.
func (c *Cache) Children() ([]*Cache, error) {
	if c == nil {
		return nil, &Error{InvalidHandle, "the cache is nil"}
	}
	if c.children == nil {
		return nil, &Error{NotSupported, "the cache is no wrapper: it has no children"}
	}
	return append([]*Cache(nil), c.children...), nil
}

// Owner returns the child that owns a layer of a wrapper, and the layer's number there. NotSupported:
// the cache is no wrapper. InvalidHandle: that child was closed.
func (c *Cache) Owner(layer int) (child *Cache, itsLayer int, err error) {
	at, err := number("layer", layer)
	if err != nil {
		return nil, 0, err
	}
	out := C.go_cache_child(c.key(), at)
	runtime.KeepAlive(c)
	if err := failure(out.result); err != nil {
		return nil, 0, err
	}
	for _, each := range c.children {
		if each.handle == out.cache {
			child = each
		}
	}
	return child, int(out.layer), nil
}

// Layer describes what one layer of a model needs of a cache, for NewHybrid: the arguments of NewCache.
// NLayers is counted.
type Layer struct {
	CacheDesc
	Kind Kind // CausalDesc{}, EncoderDesc{}, RecurrentDesc{…}, LightningDesc{} …
}

// NewHybrid makes one cache for a model whose layers differ: layer i of the cache is layers[i]. Equal
// layers share a cache inside it, see Children, which Close closes too; a type, a head size, heads of V or
// a ring's reach of 0 equal what they stand for. A layer of the model that needs two caches (self attention
// and cross attention) is two layers here.
//
//	full := kvc.Layer{CacheDesc: desc, Kind: kvc.CausalDesc{}}
//	window := kvc.Layer{CacheDesc: desc, Kind: kvc.CausalDesc{Reach: 511}}
//	cache, err := kvc.NewHybrid(device, []kvc.Layer{window, window, window, full})
func NewHybrid(device *Device, layers []Layer) (*Cache, error) {
	kinds, places, err := divide(layers)
	if err != nil {
		return nil, err
	}
	var children []*Cache
	closeAll := func() {
		for _, child := range children {
			_ = child.Close() // nobody else has it
		}
	}
	for i, each := range kinds {
		child, err := NewCache(device, each.CacheDesc, each.Kind)
		if err != nil {
			closeAll()
			return nil, ofLayer(err, places, i)
		}
		children = append(children, child)
	}
	c, err := Wrap(children, places)
	if err != nil {
		closeAll()
		return nil, err
	}
	c.closes = children
	return c, nil
}

// HybridMemoryBytes returns how many bytes NewHybrid would take from the device. It takes none.
func HybridMemoryBytes(device *Device, layers []Layer) (total uint64, err error) {
	kinds, places, err := divide(layers)
	if err != nil {
		return 0, err
	}
	for i, each := range kinds {
		bytes, err := MemoryBytes(device, each.CacheDesc, each.Kind)
		if err != nil {
			return 0, ofLayer(err, places, i)
		}
		total += bytes
	}
	return total, nil
}

// divide returns the different layers, with their number, and where each layer goes.
func divide(layers []Layer) (kinds []Layer, places []ChildLayer, err error) {
	for i, layer := range layers {
		if layer.NLayers != 0 {
			return nil, nil, &Error{InvalidArgument,
				fmt.Sprintf("NLayers of layers[%d] is %d; it must be 0: layers are counted", i, layer.NLayers)}
		}
		layer.Kind = plain(layer.Kind)
		child := 0
		for ; child < len(kinds); child++ {
			same := kinds[child]
			same.NLayers = 0
			if same.spelledOut() == layer.spelledOut() {
				break
			}
		}
		if child == len(kinds) {
			kinds = append(kinds, layer)
		}
		places = append(places, ChildLayer{int32(child), kinds[child].NLayers})
		kinds[child].NLayers++
	}
	if len(layers) == 0 {
		return nil, nil, &Error{InvalidArgument, "layers is empty: name each layer of the model"}
	}
	if n := len(kinds); n > C.KVC_MAX_CHILDREN {
		return nil, nil, &Error{InvalidArgument, fmt.Sprintf("the layers need %d caches, one for each that differs "+
			"from those before it; at most %d move as one", n, C.KVC_MAX_CHILDREN)}
	}
	return kinds, places, nil
}

// spelledOut puts what each 0 stands for in its place.
func (l Layer) spelledOut() Layer {
	spell := func(dtype *DType) {
		if *dtype == 0 {
			*dtype = F32
		}
	}
	switch kind := l.Kind.(type) {
	case CausalDesc:
		spell(&kind.MaskDType)
		l.Kind = kind
	case EncoderDesc:
		spell(&kind.MaskDType)
		l.Kind = kind
	case TransformerDesc:
		spell(&kind.MaskDType)
		if kind.ValueHeads == 0 {
			kind.ValueHeads = l.NKVHeads
		}
		if kind.Ring && kind.Reach == 0 && l.Capacity > 0 {
			kind.Reach = l.Capacity - 1
		}
		l.Kind = kind
	case RecurrentDesc:
		spell(&kind.DTypeState)
		spell(&kind.DTypeConv)
		l.Kind = kind
		return l
	}
	spell(&l.DTypeK)
	if l.Flags&VInK == 0 {
		spell(&l.DTypeV)
	}
	if l.HeadDimV == 0 {
		l.HeadDimV = l.HeadDimK
	}
	return l
}

// ofLayer says in the error of a child which layer lies in it first.
func ofLayer(err error, places []ChildLayer, child int) error {
	var cause *Error
	for i, place := range places {
		if place == (ChildLayer{int32(child), 0}) && errors.As(err, &cause) {
			return &Error{cause.Status, fmt.Sprintf("layers[%d]: %s", i, cause.Message)}
		}
	}
	return err
}

// plain returns what a kind points to, so that equal kinds compare equal.
func plain(kind Kind) Kind {
	switch k := kind.(type) {
	case *CausalDesc:
		if k != nil {
			return *k
		}
	case *EncoderDesc:
		if k != nil {
			return *k
		}
	case *RecurrentDesc:
		if k != nil {
			return *k
		}
	case *TransformerDesc:
		if k != nil {
			return *k
		}
	case *LightningDesc:
		if k != nil {
			return *k
		}
	default:
		return kind
	}
	return nil
}
