package kvc

// #include "shim.h"
import "C"

// sizes returns the sizes of the header's structs in cgo; layout_test.go compares them with
// tests/abi/layout.txt.
func sizes() map[string]int {
	return map[string]int{
		"kvc_tensor":          C.sizeof_kvc_tensor,
		"kvc_device_desc":     C.sizeof_kvc_device_desc,
		"kvc_allocator":       C.sizeof_kvc_allocator,
		"kvc_cache_desc":      C.sizeof_kvc_cache_desc,
		"kvc_causal_desc":     C.sizeof_kvc_causal_desc,
		"kvc_sequence_info":   C.sizeof_kvc_sequence_info,
		"kvc_stats":           C.sizeof_kvc_stats,
		"kvc_attention_desc":  C.sizeof_kvc_attention_desc,
		"kvc_rope_desc":       C.sizeof_kvc_rope_desc,
		"kvc_attention_extra": C.sizeof_kvc_attention_extra,
		"kvc_run":             C.sizeof_kvc_run,
		"kvc_storage_info":    C.sizeof_kvc_storage_info,
		"kvc_codec_desc":      C.sizeof_kvc_codec_desc,
		"kvc_encoder_desc":    C.sizeof_kvc_encoder_desc,
		"kvc_recurrent_desc":  C.sizeof_kvc_recurrent_desc,
		"kvc_state_sequence":  C.sizeof_kvc_state_sequence,
	}
}
