package kvc

// #include "shim_operators.h"
import "C"

import "bytes"

// Metadata has the sizes of a transformer or lightning cache as models describe them: the fields of
// EasyDeL's TransformerCacheMetaData and LightningCacheMetaData. 0 in a field: not given. Heads are KV
// heads.
//
// As JSON it is an object of EasyDeL's field names (batch_size, …, update_causal_mask); what was not given
// is null. Reading neither derives nor checks, and ignores fields of other names. The text does not say
// for which kind it is: set Lightning before json.Unmarshal.
type Metadata struct {
	Lightning       bool // of a lightning cache: SequenceLength and PadTokenID must be 0, and the last two fields false
	BatchSize       int32
	SequenceLength  int32
	NumHiddenLayers int32
	PadTokenID      int32 // any number: what Padding is given
	NumHeads        int32 // KeyHeads and ValueHeads, where they are not given
	HeadDim         int32 // KeyDim and ValueDim, where they are not given
	KeyHeads        int32
	ValueHeads      int32
	KeyDim          int32
	ValueDim        int32
	NoCausalMask    bool // update_causal_mask = false: TransformerDesc.NotCausal
	NoAttentionBias bool // create_attention_bias = false: MaskShape proposes Bool8 instead of F32
}

func (m *Metadata) c() (metadata C.kvc_metadata) {
	metadata.struct_size, metadata.kind = C.sizeof_kvc_metadata, C.KVC_TRANSFORMER
	if m.Lightning {
		metadata.kind = C.KVC_LIGHTNING
	}
	if m.NoCausalMask {
		metadata.flags |= C.KVC_METADATA_NO_CAUSAL_MASK
	}
	if m.NoAttentionBias {
		metadata.flags |= C.KVC_METADATA_NO_ATTENTION_BIAS
	}
	metadata.batch_size, metadata.sequence_length = C.int32_t(m.BatchSize), C.int32_t(m.SequenceLength)
	metadata.num_hidden_layers, metadata.pad_token_id = C.int32_t(m.NumHiddenLayers), C.int32_t(m.PadTokenID)
	metadata.num_heads, metadata.head_dim = C.int32_t(m.NumHeads), C.int32_t(m.HeadDim)
	metadata.key_heads, metadata.value_heads = C.int32_t(m.KeyHeads), C.int32_t(m.ValueHeads)
	metadata.key_dim, metadata.value_dim = C.int32_t(m.KeyDim), C.int32_t(m.ValueDim)
	return metadata
}

// set takes the metadata of a call that has not failed.
func (m *Metadata) set(out *C.go_metadata) error {
	if err := failure(out.result); err != nil {
		return err
	}
	from := &out.metadata
	*m = Metadata{
		Lightning: from.kind == C.KVC_LIGHTNING,
		BatchSize: int32(from.batch_size), SequenceLength: int32(from.sequence_length),
		NumHiddenLayers: int32(from.num_hidden_layers), PadTokenID: int32(from.pad_token_id),
		NumHeads: int32(from.num_heads), HeadDim: int32(from.head_dim),
		KeyHeads: int32(from.key_heads), ValueHeads: int32(from.value_heads),
		KeyDim: int32(from.key_dim), ValueDim: int32(from.value_dim),
		NoCausalMask:    from.flags&C.KVC_METADATA_NO_CAUSAL_MASK != 0,
		NoAttentionBias: from.flags&C.KVC_METADATA_NO_ATTENTION_BIAS != 0,
	}
	return nil
}

// Resolve checks what was given, and fills in KeyHeads and ValueHeads from NumHeads, KeyDim and ValueDim
// from HeadDim, where they were not. InvalidArgument: the message is EasyDeL's, for example "batch_size
// must be positive", and nothing is filled in.
func (m *Metadata) Resolve() error {
	out := C.go_metadata_resolve(m.c())
	return m.set(&out)
}

// Descriptors fills in what the metadata says in the descriptors of a cache: in desc NLayers, NKVHeads,
// HeadDimK, HeadDimV, MaxSequences, Capacity and Cells, in kind ValueHeads, MaskDType and NotCausal. The
// other fields, for example the storage types, MaxBatch and Ring, stay as they are. For lightning caches
// kind is nil. The metadata need not be resolved. On failure nothing is filled in.
func (m *Metadata) Descriptors(desc *CacheDesc, kind *TransformerDesc) error {
	if desc == nil {
		return &Error{InvalidArgument, "desc is nil"}
	}
	var kindDesc C.kvc_transformer_desc
	var hasKind C.int32_t
	if kind != nil {
		kindDesc, hasKind = kind.desc(), 1
	}
	out := C.go_metadata_descriptors(m.c(), desc.c(0), kindDesc, hasKind)
	if err := failure(out.result); err != nil {
		return err
	}
	desc.NLayers, desc.NKVHeads = int32(out.desc.n_layers), int32(out.desc.n_kv_heads)
	desc.HeadDimK, desc.HeadDimV = int32(out.desc.head_dim_k), int32(out.desc.head_dim_v)
	desc.MaxSequences, desc.Capacity = int32(out.desc.max_sequences), int32(out.desc.capacity)
	desc.Cells = int32(out.desc.cells)
	if kind != nil {
		kind.ValueHeads, kind.MaskDType = int32(out.kind.value_heads), DType(out.kind.mask_dtype)
		kind.NotCausal = out.kind.flags&C.KVC_TRANSFORMER_NOT_CAUSAL != 0
	}
	return nil
}

// MarshalJSON writes the metadata as one object, on one line, as Python's json.dumps would.
func (m Metadata) MarshalJSON() ([]byte, error) {
	out := C.go_metadata_to_json(m.c())
	if err := failure(out.result); err != nil {
		return nil, err
	}
	return []byte(C.GoStringN(&out.text[0], C.int(out.length))), nil
}

// UnmarshalJSON reads what MarshalJSON writes. A field that is missing or null is not given; null in the
// place of the object changes nothing. Corrupt: the text is no JSON object, or a field is of another type,
// and nothing is filled in.
func (m *Metadata) UnmarshalJSON(text []byte) error {
	if bytes.Equal(text, []byte("null")) { // as every type of Go does it
		return nil
	}
	out := C.go_metadata_from_json((*C.char)(pointer(text)), C.size_t(len(text)), m.c())
	return m.set(&out)
}

// Padding finds the padding at both ends of rows of tokens, [rows, qLen]: starts receives the index of a
// row's first token that is not padding, as RowsSet takes it, and ends one past that of its last one, as
// BeginRows takes valid. Both have an element per row; nil: not wanted. Padding between other tokens is
// none. A row of padding alone has qLen and qLen.
func Padding(rows, qLen int, tokenIDs []int32, padTokenID int32, starts, ends []int32) error {
	var narrow narrowing
	n, length := narrow.number("rows", rows), narrow.number("qLen", qLen)
	if narrow.err != nil {
		return narrow.err
	}
	if err := perEach(tokenIDs, "tokenIDs", rows*qLen, "token of each row"); err != nil {
		return err
	}
	if err := perEach(starts, "starts", rows, "row"); err != nil {
		return err
	}
	if err := perEach(ends, "ends", rows, "row"); err != nil {
		return err
	}
	return failure(C.go_padding(n, length, numbers(tokenIDs), C.int32_t(padTokenID), numbers(starts), numbers(ends)))
}
