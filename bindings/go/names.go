//go:build cgo

package kvc

import (
	"fmt"
	"strings"
)

// String returns the name of a type, for example "bf16".
func (d DType) String() string {
	switch d {
	case F32:
		return "f32"
	case F16:
		return "f16"
	case BF16:
		return "bf16"
	case Bool8:
		return "bool"
	case F64:
		return "f64"
	case I32:
		return "i32"
	case I8:
		return "i8"
	case U8:
		return "u8"
	case F8E4M3:
		return "f8_e4m3"
	case F8E5M2:
		return "f8_e5m2"
	case Q8_0:
		return "q8_0"
	case Q4_0:
		return "q4_0"
	case INT8:
		return "int8"
	case NF4:
		return "nf4"
	}
	return fmt.Sprintf("DType(%#x)", uint32(d))
}

// String returns the name of a state, for example "idle".
func (s State) String() string {
	switch s {
	case Idle:
		return "idle"
	case InPass:
		return "pass"
	case Reserve:
		return "reserve"
	case Poisoned:
		return "poisoned"
	}
	return fmt.Sprintf("State(%d)", uint32(s))
}

// String returns "neighbours" or "halves".
func (p RopePairs) String() string {
	switch p {
	case Neighbours:
		return "neighbours"
	case Halves:
		return "halves"
	}
	return fmt.Sprintf("RopePairs(%d)", uint32(p))
}

// String returns "conv" or "recurrent".
func (p Part) String() string {
	switch p {
	case Conv:
		return "conv"
	case Recurrent:
		return "recurrent"
	}
	return fmt.Sprintf("Part(%d)", int32(p))
}

// String returns the name of a family, for example "lightning2".
func (f SlopeFamily) String() string {
	switch f {
	case SlopesALiBi:
		return "alibi"
	case SlopesLightning2:
		return "lightning2"
	case SlopesMiniMax:
		return "minimax"
	case SlopesLinear:
		return "linear"
	}
	return fmt.Sprintf("SlopeFamily(%d)", uint32(f))
}

// String returns the names of the flags, for example "strict|prefault"; "0x0": none.
func (f CacheFlags) String() string {
	return flagNames(uint64(f), "strict", "zero_on_free", "prefault", "rotate_k", "rotate_v", "interleaved", "v_in_k")
}

var tokenFlagNames = []string{"sees_later", "carries_input", "masked"}

// String returns the names of the flags and the type, for example "sees_later|type 3"; "0x0": none.
func (f TokenFlags) String() string {
	number := uint16(f >> tokenTypeShift)
	if number == 0 {
		return flagNames(uint64(f), tokenFlagNames...)
	}
	name := fmt.Sprintf("type %d", number)
	if rest := f &^ TokenType(number); rest != 0 {
		return flagNames(uint64(rest), tokenFlagNames...) + "|" + name
	}
	return name
}

// String returns the names of the modes, for example "prefill|autoregressive"; "0x0": none.
func (m Mode) String() string {
	return flagNames(uint64(m), "train", "prefill", "autoregressive", "insert")
}

// String returns the names of the features, for example "mask|bias"; "0x0": none.
func (f Feature) String() string {
	return flagNames(uint64(f), "mask", "bias", "window", "chunk", "not_causal", "softcap", "alibi", "sinks", "lse", "weights",
		"dropout", "grouped", "dims_differ", "shifted", "rotated", "transformer", "lightning", "forward",
		"block_q", "block_k", "block_b", "scan")
}

// String returns the names of the types, for example "f32|f16"; "0x0": none.
func (s DTypeSet) String() string {
	var names []string
	for _, dtype := range setOrder {
		names = append(names, dtype.String())
	}
	return flagNames(uint64(s), names...)
}

// flagNames names bits, the lowest first, and prints those that have no name as a number.
func flagNames(flags uint64, names ...string) string {
	var set []string
	for i, name := range names {
		if bit := uint64(1) << i; flags&bit != 0 {
			set = append(set, name)
			flags &^= bit
		}
	}
	if flags != 0 || len(set) == 0 {
		set = append(set, fmt.Sprintf("%#x", flags))
	}
	return strings.Join(set, "|")
}
