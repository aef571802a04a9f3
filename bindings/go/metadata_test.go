package kvc

import (
	"encoding/json"
	"testing"
)

func testMetadata() Metadata {
	return Metadata{BatchSize: 4, SequenceLength: 10, NumHiddenLayers: 2, NumHeads: 8, HeadDim: 64}
}

func TestVectorsOfMetadata(t *testing.T) {
	var all struct {
		Metadata []struct {
			Arguments json.RawMessage
			Result    json.RawMessage
			Error     string
		}
		Padding []struct {
			IDs          [][]int32
			Pad          int32
			Starts, Ends []int32
		}
	}
	readVectors(t, "metadata.json", &all)
	equal(t, len(all.Metadata), 14)
	for _, test := range all.Metadata {
		var m, want Metadata
		must(t, json.Unmarshal(test.Arguments, &m))
		given := m
		err := m.Resolve()
		if test.Error != "" {
			is(t, err, InvalidArgument, test.Error)
			equal(t, err.(*Error).Message, test.Error)
			equal(t, m, given)
			continue
		}
		must(t, err)
		must(t, json.Unmarshal(test.Result, &want))
		equal(t, m, want)
	}
	for _, test := range all.Padding {
		rows := len(test.IDs)
		starts, ends := make([]int32, rows), make([]int32, rows)
		must(t, Padding(rows, len(test.IDs[0]), flat(test.IDs), test.Pad, starts, ends))
		equal(t, [][]int32{starts, ends}, [][]int32{test.Starts, test.Ends})
		must(t, Padding(rows, len(test.IDs[0]), flat(test.IDs), test.Pad, nil, nil))
	}
}

func TestMetadataAsJSON(t *testing.T) {
	m := testMetadata()
	m.PadTokenID, m.NoAttentionBias = -3, true
	text, err := m.MarshalJSON()
	must(t, err)
	equal(t, string(text), `{"batch_size": 4, "sequence_length": 10, "num_hidden_layers": 2, "pad_token_id": -3, "num_heads": 8, `+
		`"head_dim": 64, "key_heads": null, "value_heads": null, "key_dim": null, "value_dim": null, `+
		`"update_causal_mask": true, "create_attention_bias": false}`)
	text, err = json.Marshal(map[string]any{"cache": &m})
	must(t, err)
	var read struct{ Cache, Other Metadata }
	must(t, json.Unmarshal(text, &read))
	equal(t, read.Cache, m)

	linear := Metadata{Lightning: true, BatchSize: 2, NumHiddenLayers: 3, KeyHeads: 1, ValueHeads: 1, KeyDim: 8, ValueDim: 4}
	text, err = json.Marshal(linear)
	must(t, err)
	got := Metadata{Lightning: true}
	must(t, json.Unmarshal(text, &got))
	equal(t, got, linear)

	for text, part := range map[string]string{
		`[]`: "object", `{"batch_size": "4"}`: "batch_size", `{"key_dim": 4294967296}`: "key_dim", `{"head_dim": 1.5}`: "head_dim",
	} {
		before := m
		is(t, json.Unmarshal([]byte(text), &m), Corrupt, part)
		equal(t, m, before)
	}
	is(t, m.UnmarshalJSON([]byte(`{"batch_size"`)), Corrupt, "byte")
	is(t, m.UnmarshalJSON(nil), InvalidArgument, "text")
	must(t, json.Unmarshal([]byte(`{"cache": null}`), &read))
	equal(t, read.Cache.BatchSize, int32(4))
	linear.PadTokenID = 1
	_, err = linear.MarshalJSON()
	is(t, err, InvalidArgument, "pad_token_id")
}

func TestMetadataMakesCaches(t *testing.T) {
	device := device(t)
	m := testMetadata()
	m.NoCausalMask, m.NoAttentionBias, m.ValueHeads = true, true, 2
	desc, kind := CacheDesc{DTypeK: F16, MaxBatch: 8, Cells: 5}, TransformerDesc{Reach: 3}
	must(t, m.Descriptors(&desc, &kind))
	equal(t, desc, CacheDesc{
		NLayers: 2, NKVHeads: 8, HeadDimK: 64, HeadDimV: 64, DTypeK: F16, MaxSequences: 4, Capacity: 10, MaxBatch: 8,
	})
	equal(t, kind, TransformerDesc{NotCausal: true, Reach: 3, ValueHeads: 2, MaskDType: Bool8})
	cache, err := NewCache(device, desc, kind)
	must(t, err)
	must(t, cache.Close())
	before := desc
	is(t, m.Descriptors(&desc, nil), InvalidArgument, "kvc_transformer_desc is null")
	is(t, m.Descriptors(nil, &kind), InvalidArgument, "desc")
	m.BatchSize = 0
	is(t, m.Descriptors(&desc, &kind), InvalidArgument, "batch_size must be positive")
	equal(t, desc, before)

	linear := Metadata{Lightning: true, BatchSize: 2, NumHiddenLayers: 3, NumHeads: 2, HeadDim: 8}
	desc = CacheDesc{MaxBatch: 4}
	must(t, linear.Descriptors(&desc, nil))
	cache, err = NewCache(device, desc, LightningDesc{})
	must(t, err)
	must(t, cache.Close())
	is(t, linear.Descriptors(&desc, &kind), InvalidArgument, "kind_desc")
	linear.ValueHeads = 1
	is(t, linear.Descriptors(&desc, nil), NotSupported, "value_heads")
	linear.SequenceLength = 9
	is(t, linear.Resolve(), InvalidArgument, "sequence_length")
}

func TestErrorsOfPadding(t *testing.T) {
	ids, ends := []int32{1, 0, 2, 0}, make([]int32, 2)
	is(t, Padding(2, 3, ids, 0, nil, ends), InvalidArgument, "tokenIDs has 4 elements, not 6, one for each token of each row")
	is(t, Padding(2, 2, ids, 0, nil, ends[:1]), InvalidArgument, "ends has 1 elements, not 2, one for each row")
	is(t, Padding(2, 2, ids, 0, []int32{0, 0, 0}, ends), InvalidArgument, "starts has 3 elements")
	is(t, Padding(2, 2, nil, 0, nil, ends), InvalidArgument, "token_ids")
	is(t, Padding(0, 2, []int32{}, 0, nil, nil), InvalidArgument, "n_rows")
	is(t, Padding(1<<31, 1, ids, 0, nil, nil), InvalidArgument, "rows 2147483648 does not fit")
}
