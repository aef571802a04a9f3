package kvc

import (
	"reflect"
	"testing"
)

func openKind(t testing.TB, desc CacheDesc, kind Kind) *Cache {
	t.Helper()
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	cache, err := NewCache(device, desc, kind)
	must(t, err)
	bytes, err := MemoryBytes(device, desc, kind)
	must(t, err)
	stats, err := cache.Stats()
	must(t, err)
	if stats.Bytes != bytes {
		t.Errorf("%d bytes were told, %d are taken", bytes, stats.Bytes)
	}
	must(t, device.Close())
	t.Cleanup(func() { must(t, cache.Close()) })
	return cache
}

func statesDesc(nLayers int32) CacheDesc {
	return CacheDesc{NLayers: nLayers, MaxSequences: 3, MaxBatch: 8}
}

func testStates() RecurrentDesc {
	return RecurrentDesc{StateSize: 6, ConvChannels: 2, ConvDim: 3, DraftStates: 1, CheckpointInterval: None}
}

func equal(t testing.TB, got, want interface{}) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v is not %v", got, want)
	}
}

func TestEncoderInputs(t *testing.T) {
	desc := testDesc()
	cache := openKind(t, desc, &EncoderDesc{Inputs: 3})
	k, v, _, _ := arrays(5)
	_, _, q, out := arrays(2)
	flags := []TokenFlags{CarriesInput, CarriesInput}
	is(t, cache.BeginFlagged([]int32{0, 1}, []int32{0, 0}, flags), InvalidArgument, "both carry")
	must(t, cache.BeginFlagged([]int32{0, 0}, []int32{0, 1}, flags))
	is(t, cache.EncoderShare(0, 0), InvalidArgument, "differ")
	must(t, cache.EncoderShare(1, 0))
	for layer := 0; layer < nLayers; layer++ {
		must(t, cache.EncoderPut(layer, 0, kv(k, 5), kv(v, 5)))
		must(t, cache.Attention(layer, qo(q, 2), qo(out, 2)))
	}
	is(t, cache.EncoderPut(0, 0, kv(k, 4), kv(v, 4)), Shape, "k")
	is(t, cache.EncoderPut(0, 0, Tensor{}, kv(v, 5)), Shape, "k is Tensor{}")
	is(t, cache.EncoderPut(0, 1<<40, kv(k, 5), kv(v, 5)), InvalidArgument, "32 bits")
	must(t, cache.Commit())
	for i, got := range out { // queries of zeros: the mean of the values 1 to 5
		if got < 3-1e-5 || got > 3+1e-5 {
			t.Fatalf("out[%d] is %v", i, got)
		}
	}
	position, length, err := cache.EncoderQuery(1)
	must(t, err)
	equal(t, []int{position, length}, []int{0, 5})
	cached, err := cache.EncoderCached(1)
	must(t, err)
	equal(t, cached, true)
	must(t, cache.Remove(1, 0, SeqEnd))
	position, length, err = cache.EncoderQuery(1)
	must(t, err)
	equal(t, []int{position, length}, []int{None, 0})
	cached, err = cache.EncoderCached(1)
	must(t, err)
	equal(t, cached, false)
	is(t, cache.SetCausal(nil), NotSupported, "causal")
}

func TestStates(t *testing.T) {
	cache := openKind(t, statesDesc(2), testStates())
	_, err := cache.StateLayout(nil, nil)
	is(t, err, BadState, "no pass")
	must(t, cache.Begin([]int32{0, 0, 1, 9}, []int32{1, 0, 1, None}))
	sequences, order, slots := make([]StateSequence, 3), make([]int32, 8), make([]int32, 8)
	n, err := cache.StateLayout(sequences, order)
	must(t, err)
	equal(t, n, 2)
	equal(t, order[:4], []int32{0, 2, 1, 3})
	equal(t, []int32{sequences[0].Sequence, sequences[0].NTokens, sequences[1].FirstRow}, []int32{1, 2, 2})
	_, err = cache.StateLayout(nil, order[:4])
	is(t, err, InvalidArgument, "MaxBatch, which is 8")

	before, after, x := ones(2*6), ones(3*6), ones(4*2)
	for layer := 0; layer < 2; layer++ {
		must(t, cache.RecurrentState(layer, Float32(before, 2, 1, 2, 3)))
		equal(t, before, make([]float32, 12))
		is(t, cache.StateGet(layer, Recurrent, Float32(before, 2, 5)), InvalidRecurrentShape, "dims [5]")
		must(t, cache.StateConv(layer, Float32(x, 4, 2)))
		if layer == 0 {
			must(t, cache.UpdateRecurrentState(layer, Float32(after, 3, 6)))
			continue
		}
		view, err := cache.StateView(layer, Recurrent)
		must(t, err)
		n, err := cache.StateSlots(slots)
		must(t, err)
		for _, slot := range slots[:n] {
			copy(view.Float32(int(slot)), after)
		}
		panics(t, func() { view.Float32(view.Slots) })
		panics(t, func() { view.Bits(0) })
		must(t, cache.StateDone(layer, Recurrent))
	}
	must(t, cache.CommitPrefix([]int32{1}, []int32{1}))
	must(t, cache.CheckpointTake(1))
	at, err := cache.CheckpointList(1)
	must(t, err)
	equal(t, at, []int32{1})
	got := make([]float32, 6)
	for layer := 0; layer < 2; layer++ {
		must(t, cache.StateGather(layer, Recurrent, 1, 1, Float32(got, 6)))
		equal(t, got, ones(6))
		must(t, cache.StateGather(layer, Conv, 1, 1, Float32(got, 2, 3)))
		equal(t, got, []float32{0, 0, 1, 0, 0, 1})
	}
	is(t, cache.StateGather(0, Conv, 1, 2, Float32(got, 6)), NotFound, "at 2")
	position, ok, err := cache.PrepareRestore(1, 5)
	must(t, err)
	equal(t, position, 1)
	equal(t, ok, true)
	info, err := cache.Sequence(1)
	must(t, err)
	equal(t, info, SequenceInfo{First: 1, Next: 1, Room: 1<<31 - 3})
	equal(t, Conv.String()+" "+Recurrent.String()+" "+Part(7).String(), "conv recurrent Part(7)")
}

func panics(t testing.TB, call func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("it does not panic")
		}
	}()
	call()
}

func TestWrapper(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	full, err := NewCache(device, testDesc(), CausalDesc{})
	must(t, err)
	window, err := NewCache(device, testDesc(), CausalDesc{Reach: 4})
	must(t, err)
	_, err = Wrap(nil, nil)
	is(t, err, InvalidArgument, "children")
	_, err = Wrap([]*Cache{full, nil}, nil)
	is(t, err, InvalidHandle, "children[1]")
	_, err = Wrap([]*Cache{full, window}, []ChildLayer{{2, 0}})
	is(t, err, InvalidArgument, "child_of_layer[0]")
	model, err := Wrap([]*Cache{full, window}, []ChildLayer{{1, 0}, {1, 1}, {0, 0}, {0, 1}})
	must(t, err)
	child, layer, err := model.Owner(3)
	must(t, err)
	if child != full || layer != 1 {
		t.Errorf("layer 3 is %p's layer %d", child, layer)
	}
	_, _, err = full.Owner(0)
	is(t, err, NotSupported, "wrappers")
	is(t, full.Begin([]int32{0}, []int32{0}), BadState, "wrapper")
	k, v, q, out := arrays(2)
	must(t, model.BindRope(0, 4, RopeDesc{FrequencyFactors: ones(headDim / 2)}))
	must(t, model.Begin([]int32{0, 1}, []int32{0, 0}))
	for layer := 0; layer < 4; layer++ {
		must(t, model.PutAttention(layer, kv(k, 2), kv(v, 2), qo(q, 2), qo(out, 2)))
	}
	must(t, model.Commit())
	must(t, window.Close())
	_, _, err = model.Owner(0)
	is(t, err, InvalidHandle, "child 1")
	must(t, model.Close())
	info, err := full.Sequence(0)
	must(t, err)
	equal(t, info.Next, 2)
	must(t, full.Close())
}

// The library is not told how many factors there are: it would read behind the slice.
func TestFactorsFitTheKeysOfTheLayersThatTheyAreBoundTo(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	small, large := testDesc(), testDesc()
	small.NLayers, large.NLayers, large.HeadDimK = 0, 0, 4*headDim
	model, err := NewHybrid(device, []Layer{{statesDesc(0), testStates()}, {small, CausalDesc{}}, {large, CausalDesc{}}})
	must(t, err)
	defer model.Close()
	few, many := ones(headDim/2), ones(2*headDim)
	must(t, model.BindRope(1, 2, RopeDesc{FrequencyFactors: few}))
	must(t, model.BindRope(2, 3, RopeDesc{FrequencyFactors: many}))
	is(t, model.BindRope(2, 3, RopeDesc{FrequencyFactors: few}), InvalidArgument, "8 elements, not 32")
	is(t, model.BindRope(1, 3, RopeDesc{FrequencyFactors: few}), InvalidArgument, "8 elements, not 32")
	must(t, model.BindRope(1, 3, RopeDesc{NDims: headDim, FrequencyFactors: few}))
	is(t, model.BindRope(0, 1, RopeDesc{FrequencyFactors: few}), NotSupported, "child 0")
}

func TestHybrid(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	desc := testDesc()
	desc.NLayers = 0
	full, window := Layer{desc, CausalDesc{}}, Layer{desc, &CausalDesc{Reach: 4}}
	cross, delta := Layer{desc, EncoderDesc{}}, Layer{statesDesc(0), testStates()}
	again := Layer{desc, &CausalDesc{Reach: 4}}
	layers := []Layer{window, full, delta, again, cross, full, delta}
	bytes, err := HybridMemoryBytes(device, layers)
	must(t, err)
	model, err := NewHybrid(device, layers)
	must(t, err)
	stats, err := model.Stats()
	must(t, err)
	equal(t, stats.Bytes, bytes)
	children, err := model.Children()
	must(t, err)
	_, err = children[0].Children()
	is(t, err, NotSupported, "no wrapper")
	equal(t, len(children), 4)
	for i, want := range []ChildLayer{{0, 0}, {1, 0}, {2, 0}, {0, 1}, {3, 0}, {1, 1}, {2, 1}} {
		child, layer, err := model.Owner(i)
		must(t, err)
		if child != children[want.Child] || layer != int(want.Layer) {
			t.Errorf("layer %d is not %v", i, want)
		}
	}
	must(t, model.Begin([]int32{0}, []int32{0}))
	n, err := model.StateLayout(make([]StateSequence, 1), make([]int32, 8))
	must(t, err)
	equal(t, n, 1)
	must(t, model.Abort())
	must(t, model.Close())
	must(t, model.Close())
	_, err = children[2].Stats()
	is(t, err, InvalidHandle, "")
	_, err = NewHybrid(device, nil)
	is(t, err, InvalidArgument, "empty")
	_, err = NewHybrid(device, []Layer{{testDesc(), CausalDesc{}}})
	is(t, err, InvalidArgument, "NLayers of layers[0]")
	none, bad := Layer{desc, nil}, Layer{statesDesc(0), CausalDesc{}}
	var windows []Layer
	for reach := int32(1); reach <= 17; reach++ {
		windows = append(windows, Layer{desc, CausalDesc{Reach: reach}})
	}
	for _, test := range []struct {
		layers []Layer
		part   string
	}{
		{[]Layer{full, none}, "layers[1]: the kind is nil"},
		{[]Layer{full, full, bad, bad}, "layers[2]: n_kv_heads"},
		{windows, "17 caches, one for each that differs from those before it; at most 16"},
	} {
		_, err = NewHybrid(device, test.layers)
		is(t, err, InvalidArgument, test.part)
		_, err = HybridMemoryBytes(device, test.layers)
		is(t, err, InvalidArgument, test.part)
	}
	model, err = NewHybrid(device, windows[1:])
	must(t, err)
	must(t, model.Close())
}

func TestADefaultEqualsWhatItStandsFor(t *testing.T) {
	full := testDesc()
	full.NLayers, full.DTypeK, full.DTypeV = 0, 0, 0
	named, latent, other := full, full, full
	named.DTypeK, named.DTypeV, named.HeadDimV = F32, F32, headDim
	latent.Flags = VInK
	other.DTypeK = F16
	states, namedStates := testStates(), testStates()
	namedStates.DTypeState, namedStates.DTypeConv = F32, F32
	shared(t, []Layer{
		{full, CausalDesc{}}, {named, CausalDesc{MaskDType: F32}}, {latent, CausalDesc{}}, {other, CausalDesc{}},
		{statesDesc(0), states}, {statesDesc(0), &namedStates},
		{full, EncoderDesc{}}, {full, EncoderDesc{MaskDType: F32}},
	}, []int{0, 0, 1, 2, 3, 3, 4, 4})
	namedRows := TransformerDesc{ValueHeads: full.NKVHeads, MaskDType: F32}
	shared(t, []Layer{
		{full, TransformerDesc{}}, {full, namedRows},
		{full, TransformerDesc{Ring: true}}, {full, TransformerDesc{Ring: true, Reach: full.Capacity - 1}},
	}, []int{0, 0, 1, 1})
}

// shared fails unless layer i of the layers lies in child want[i].
func shared(t *testing.T, layers []Layer, want []int) {
	t.Helper()
	model, err := NewHybrid(device(t), layers)
	must(t, err)
	defer model.Close()
	children, err := model.Children()
	must(t, err)
	for layer, its := range want {
		child, _, err := model.Owner(layer)
		must(t, err)
		equal(t, child.handle, children[its].handle)
	}
}
