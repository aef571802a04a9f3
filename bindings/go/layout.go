package kvc

// #include "shim_operators.h"
// #include "shim_rows.h"
import "C"

// sizes returns the sizes of the header's structs in cgo; layout_test.go compares them with
// the lists of tests/abi.
func sizes() map[string]int {
	return map[string]int{
		"kvc_tensor":           C.sizeof_kvc_tensor,
		"kvc_device_desc":      C.sizeof_kvc_device_desc,
		"kvc_allocator":        C.sizeof_kvc_allocator,
		"kvc_cache_desc":       C.sizeof_kvc_cache_desc,
		"kvc_causal_desc":      C.sizeof_kvc_causal_desc,
		"kvc_sequence_info":    C.sizeof_kvc_sequence_info,
		"kvc_stats":            C.sizeof_kvc_stats,
		"kvc_attention_desc":   C.sizeof_kvc_attention_desc,
		"kvc_rope_desc":        C.sizeof_kvc_rope_desc,
		"kvc_attention_extra":  C.sizeof_kvc_attention_extra,
		"kvc_run":              C.sizeof_kvc_run,
		"kvc_storage_info":     C.sizeof_kvc_storage_info,
		"kvc_codec_desc":       C.sizeof_kvc_codec_desc,
		"kvc_encoder_desc":     C.sizeof_kvc_encoder_desc,
		"kvc_recurrent_desc":   C.sizeof_kvc_recurrent_desc,
		"kvc_state_sequence":   C.sizeof_kvc_state_sequence,
		"kvc_transformer_desc": C.sizeof_kvc_transformer_desc,
		"kvc_lightning_desc":   C.sizeof_kvc_lightning_desc,
		"kvc_metadata":         C.sizeof_kvc_metadata,
		"kvc_operator_info":    C.sizeof_kvc_operator_info,
		"kvc_operator_needs":   C.sizeof_kvc_operator_needs,
		"kvc_operator_desc":    C.sizeof_kvc_operator_desc,
		"kvc_forward_desc":     C.sizeof_kvc_forward_desc,
	}
}
