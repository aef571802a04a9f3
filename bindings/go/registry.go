package kvc

// #include "shim_operators.h"
import "C"

import (
	"errors"
	"runtime"
	"unsafe"
)

// Mode is what attention is called for; modes are combined by |.
type Mode uint32

// The modes.
const (
	ModeTrain          Mode = C.KVC_MODE_TRAIN          // a call with dropout; without a cache more than one query token
	ModePrefill        Mode = C.KVC_MODE_PREFILL        // a pass in which some sequence has more than one token
	ModeAutoregressive Mode = C.KVC_MODE_AUTOREGRESSIVE // each sequence has one token
	ModeInsert         Mode = C.KVC_MODE_INSERT         // rows move from cache to cache; no operator runs
	ModeAll            Mode = C.KVC_MODE_ALL
)

// Feature is what an operator has, and a layer or a call may need; features are combined by |.
type Feature uint32

// The features.
const (
	FeatureMask        Feature = C.KVC_FEATURE_MASK
	FeatureBias        Feature = C.KVC_FEATURE_BIAS
	FeatureWindow      Feature = C.KVC_FEATURE_WINDOW
	FeatureChunk       Feature = C.KVC_FEATURE_CHUNK
	FeatureNotCausal   Feature = C.KVC_FEATURE_NOT_CAUSAL // tokens that see later ones; encoder caches
	FeatureSoftcap     Feature = C.KVC_FEATURE_SOFTCAP
	FeatureALiBi       Feature = C.KVC_FEATURE_ALIBI
	FeatureSinks       Feature = C.KVC_FEATURE_SINKS
	FeatureLSE         Feature = C.KVC_FEATURE_LSE
	FeatureWeights     Feature = C.KVC_FEATURE_WEIGHTS
	FeatureDropout     Feature = C.KVC_FEATURE_DROPOUT
	FeatureGrouped     Feature = C.KVC_FEATURE_GROUPED     // fewer KV heads than query heads
	FeatureDimsDiffer  Feature = C.KVC_FEATURE_DIMS_DIFFER // head sizes of K and V that differ
	FeatureShifted     Feature = C.KVC_FEATURE_SHIFTED     // keys with a pending rotation
	FeatureRotated     Feature = C.KVC_FEATURE_ROTATED     // storage rotated by RotateK or RotateV
	FeatureTransformer Feature = C.KVC_FEATURE_TRANSFORMER // rows of a transformer cache
	FeatureLightning   Feature = C.KVC_FEATURE_LIGHTNING   // states of a lightning cache
	FeatureForward     Feature = C.KVC_FEATURE_FORWARD     // attention without a cache
	FeatureBlockQ      Feature = C.KVC_FEATURE_BLOCK_Q     // settings of OperatorDesc
	FeatureBlockK      Feature = C.KVC_FEATURE_BLOCK_K
	FeatureBlockB      Feature = C.KVC_FEATURE_BLOCK_B
	FeatureScan        Feature = C.KVC_FEATURE_SCAN // Stretches
)

// DTypeSet is a set of types.
type DTypeSet uint32

// setOrder has the types of a DTypeSet, that of the lowest bit first.
var setOrder = [...]DType{F64, F32, F16, BF16, F8E4M3, F8E5M2, Q8_0, Q4_0, INT8, NF4}

// Has reports whether a type is in the set.
func (s DTypeSet) Has(dtype DType) bool {
	for i, each := range setOrder {
		if each == dtype {
			return s>>i&1 != 0
		}
	}
	return false
}

// OperatorInfo is what an operator can do. See kvc_operator_info.
type OperatorInfo struct {
	Name            string // that was asked for or listed
	Canonical       string // the first name of the operator, the same for all of its aliases
	CPU, CUDA       bool   // devices that it runs on
	Modes           Mode
	Features        Feature
	Storage         DTypeSet // of K and V in a cache
	RuntimeDTypes   DTypeSet // that may be asked for
	SoftmaxDTypes   DTypeSet
	HeadDimMin      int // 0: any, here and in the next two
	HeadDimMax      int
	HeadDimMultiple int // head sizes are multiples of it
	BlockQMultiple  int // a block that is asked for is rounded up to a multiple
	BlockKMultiple  int
}

func operatorInfo(info *C.kvc_operator_info) OperatorInfo {
	return OperatorInfo{
		Name: C.GoString(&info.name[0]), Canonical: C.GoString(&info.canonical[0]),
		CPU: info.devices>>C.KVC_CPU&1 != 0, CUDA: info.devices>>C.KVC_CUDA&1 != 0,
		Modes: Mode(info.modes), Features: Feature(info.features), Storage: DTypeSet(info.storage),
		RuntimeDTypes: DTypeSet(info.runtime_dtypes), SoftmaxDTypes: DTypeSet(info.softmax_dtypes),
		HeadDimMin: int(info.head_dim_min), HeadDimMax: int(info.head_dim_max),
		HeadDimMultiple: int(info.head_dim_multiple),
		BlockQMultiple:  int(info.block_q_multiple), BlockKMultiple: int(info.block_k_multiple),
	}
}

// Operators describes each name of the device's registry, in order of registration: an alias follows its
// operator. Every device that is opened has a registry of its own, with the built-in operators: flash,
// what attends where no operator is bound; vanilla, the definition, for comparisons; decode; ring; and
// lightning, for lightning caches alone. kvc/operators.h says what each does.
func (d *Device) Operators() (all []OperatorInfo, err error) {
	for i := 0; ; i++ {
		out := C.go_operator_at(d.key(), C.int32_t(i))
		runtime.KeepAlive(d)
		if err := failure(out.result); err != nil {
			if errors.Is(err, NotFound) { // behind the last
				return all, nil
			}
			return nil, err
		}
		all = append(all, operatorInfo(&out.info))
	}
}

// FindOperator describes the operator that a name stands for. NotFound: the message lists the names.
func (d *Device) FindOperator(name string) (OperatorInfo, error) {
	text, err := cString(name)
	if err != nil {
		return OperatorInfo{}, err
	}
	defer C.free(unsafe.Pointer(text))
	out := C.go_operator_find(d.key(), text)
	runtime.KeepAlive(d)
	if err := failure(out.result); err != nil {
		return OperatorInfo{}, err
	}
	return operatorInfo(&out.info), nil
}

// OperatorNeeds is what a layer or a call needs of an operator; 0: any, of a type F32.
type OperatorNeeds struct {
	Mode                       Mode    // one of them
	Features                   Feature // FeatureGrouped and FeatureDimsDiffer follow from the numbers below, too
	DTypeK, DTypeV             DType   // storage
	NQHeads, NKVHeads          int32
	HeadDimK, HeadDimV         int32
	RuntimeDType, SoftmaxDType DType
}

// Supports returns the name of an operator if it can do what is needed; without a name ("") that of the
// first built-in one that can. NotSupported: the message names the first thing that it lacks.
func (d *Device) Supports(name string, needs OperatorNeeds) (chosen string, err error) {
	var text *C.char
	if name != "" {
		if text, err = cString(name); err != nil {
			return "", err
		}
		defer C.free(unsafe.Pointer(text))
	}
	out := C.go_operator_supports(d.key(), text, C.kvc_operator_needs{
		struct_size: C.sizeof_kvc_operator_needs, mode: C.uint32_t(needs.Mode), features: C.uint32_t(needs.Features),
		dtype_k: C.uint32_t(needs.DTypeK), dtype_v: C.uint32_t(needs.DTypeV),
		n_q_heads: C.int32_t(needs.NQHeads), n_kv_heads: C.int32_t(needs.NKVHeads),
		head_dim_k: C.int32_t(needs.HeadDimK), head_dim_v: C.int32_t(needs.HeadDimV),
		runtime_dtype: C.uint32_t(needs.RuntimeDType), softmax_dtype: C.uint32_t(needs.SoftmaxDType),
	})
	runtime.KeepAlive(d)
	if err := failure(out.result); err != nil {
		return "", err
	}
	return C.GoString(&out.name[0]), nil
}
