package kvc

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

func newOperator(t testing.TB, device *Device, name string, desc OperatorDesc) *Operator {
	t.Helper()
	op, err := NewOperator(device, name, desc)
	must(t, err)
	t.Cleanup(func() { must(t, op.Close()) })
	return op
}

func TestRegistryOfADevice(t *testing.T) {
	device := device(t)
	all, err := device.Operators()
	must(t, err)
	canonical := map[string]string{}
	for _, info := range all {
		canonical[info.Name] = info.Canonical
		found, err := device.FindOperator(info.Name)
		must(t, err)
		equal(t, found, info)
		op := newOperator(t, device, info.Name, OperatorDesc{})
		queried, desc, err := op.Query()
		must(t, err)
		equal(t, queried, info)
		equal(t, []DType{desc.RuntimeDType, desc.SoftmaxDType}, []DType{F32, F32})
	}
	for alias, name := range map[string]string{
		"sdpa": "flash", "paged_attention": "flash", "vanilla": "vanilla", "autoregressive_decodeattn": "decode", "ring": "ring", "lightning": "lightning",
	} {
		equal(t, canonical[alias], name)
	}
	vanilla, err := device.FindOperator("vanilla")
	must(t, err)
	if !vanilla.CPU || vanilla.Modes&ModePrefill == 0 || vanilla.Features&FeatureDropout == 0 ||
		!vanilla.SoftmaxDTypes.Has(F64) || !vanilla.Storage.Has(NF4) || vanilla.Storage.Has(Bool8) {
		t.Errorf("%+v", vanilla)
	}
	_, err = device.FindOperator("nothing")
	is(t, err, NotFound, "autoregressive_decodeattn")
	_, err = device.FindOperator("flash\x00")
	is(t, err, InvalidArgument, "zero byte")
	_, err = NewOperator(device, "nothing", OperatorDesc{})
	is(t, err, NotFound, "nothing")
	_, err = NewOperator(nil, "flash", OperatorDesc{})
	is(t, err, InvalidHandle, "")
}

func TestSupports(t *testing.T) {
	device := device(t)
	needs := OperatorNeeds{Mode: ModePrefill, DTypeK: Q8_0, DTypeV: NF4, NQHeads: 8, NKVHeads: 2, HeadDimK: 64, HeadDimV: 64}
	chosen, err := device.Supports("sdpa", needs)
	must(t, err)
	equal(t, chosen, "flash")
	chosen, err = device.Supports("", needs)
	must(t, err)
	equal(t, chosen, "flash")
	needs.Features = FeatureDropout
	_, err = device.Supports("flash", needs)
	is(t, err, NotSupported, "dropout")
	chosen, err = device.Supports("", needs)
	must(t, err)
	equal(t, chosen, "vanilla")
	_, err = device.Supports("decode", OperatorNeeds{Mode: ModePrefill})
	is(t, err, NotSupported, "decode")
	_, err = device.Supports("flash", OperatorNeeds{Mode: ModePrefill, SoftmaxDType: F64})
	is(t, err, NotSupported, "f64")
	_, err = device.Supports("flash", OperatorNeeds{})
	is(t, err, InvalidArgument, "mode")
	_, err = device.Supports("nothing", needs)
	is(t, err, NotFound, "nothing")
	_, err = device.Supports("flash", OperatorNeeds{Mode: ModePrefill, DTypeK: Bool8})
	is(t, err, Dtype, "bool")
}

func TestSettingsOfOperators(t *testing.T) {
	device := device(t)
	base := OperatorDesc{BlockQ: 16, DropoutProb: 0.5, SoftmaxDType: F64, NoScan: true, SoftmaxScale: 3, MaxRows: 7}
	got, err := OperatorDesc{BlockQ: 32, SoftmaxScale: 2}.Resolve(base)
	must(t, err)
	equal(t, got, OperatorDesc{
		BlockQ: 32, DropoutProb: 0.5, RuntimeDType: F32, SoftmaxDType: F64, NoScan: true, SoftmaxScale: 2, MaxRows: 7,
	})
	_, used, err := newOperator(t, device, "ring", OperatorDesc{
		Stretches: 3, NoScan: true, SoftmaxScale: 0.5, RuntimeDType: BF16,
		MaxRows: 1, MaxQLen: 2, MaxKVLen: 3, NKVHeads: 4, HeadDimK: 8,
	}).Query()
	must(t, err)
	if used.Stretches != 3 || !used.NoScan || used.SoftmaxScale != 0.5 || used.RuntimeDType != BF16 || used.MaxRows != 1 ||
		used.MaxQLen != 2 || used.MaxKVLen != 3 || used.NKVHeads != 4 || used.MaxQHeads != 4 || used.HeadDimK != 8 || used.HeadDimV != 8 {
		t.Errorf("%+v", used)
	}
	for _, test := range []struct {
		name   string
		desc   OperatorDesc
		status Status
		part   string
	}{
		{"flash", OperatorDesc{Stretches: 2}, NotSupported, "stretches"},
		{"flash", OperatorDesc{DropoutProb: 0.5}, NotSupported, "dropout"},
		{"vanilla", OperatorDesc{DropoutProb: 1}, InvalidArgument, "dropout_prob"},
		{"vanilla", OperatorDesc{BlockB: 1}, NotSupported, "block_b"},
		{"vanilla", OperatorDesc{RuntimeDType: I8}, Dtype, "runtime_dtype"},
		{"flash", OperatorDesc{MaxRows: 1}, InvalidArgument, "max_q_len"},
	} {
		_, err := NewOperator(device, test.name, test.desc)
		is(t, err, test.status, test.part)
	}
}

// Layers attend with the operator that is bound to them, in the modes for which it is bound.
func TestBoundOperators(t *testing.T) {
	device := device(t)
	cache, err := NewCache(device, testDesc(), CausalDesc{})
	must(t, err)
	defer cache.Close()
	dropping := newOperator(t, device, "vanilla", OperatorDesc{DropoutProb: 0.5})
	decode := newOperator(t, device, "decode", OperatorDesc{})
	k, v, q, out := arrays(3)
	for i := range q {
		q[i] = float32(math.Sin(float64(i)))
	}
	pass := func() {
		must(t, cache.Begin([]int32{0, 1, 2}, []int32{0, 0, 0}))
		must(t, cache.Put(0, kv(k, 3), kv(v, 3)))
	}
	drop := AttentionExtra{Dropout: true, DropoutSeed: 1 << 40}
	pass()
	is(t, cache.BindOperator(0, 1, ModeAll, dropping), BadState, "pass")
	is(t, cache.AttentionWith(0, qo(q, 3), qo(out, 3), drop), NotSupported, "dropout")
	is(t, cache.AttentionWith(0, qo(q, 3), qo(out, 3), AttentionExtra{DropoutSeed: 1}), InvalidArgument, "dropout_seed")
	must(t, cache.Abort())

	must(t, cache.BindOperator(0, 1, ModeTrain, dropping))
	pass()
	weights, kept := make([]float32, qHeads*3*3), make([]bool, qHeads*3*3)
	plain := append([]float32(nil), weights...)
	must(t, cache.AttentionWith(0, qo(q, 3), qo(out, 3), AttentionExtra{Weights: Float32(plain, qHeads, 3, 3)}))
	drop.Weights = Float32(weights, qHeads, 3, 3)
	must(t, cache.AttentionWith(0, qo(q, 3), qo(out, 3), drop))
	positions := []int32{0, 1, 2}
	must(t, DropoutMask(drop.DropoutSeed, 0.5, 0, 0, positions, positions, Bool(kept, qHeads, 3, 3)))
	dropped := 0
	for i, weight := range weights {
		want := 0.0
		if kept[i] {
			want = 2 * float64(plain[i])
		} else if plain[i] != 0 {
			dropped++
		}
		near(t, weight, want)
	}
	if dropped == 0 {
		t.Error("nothing was dropped")
	}
	must(t, cache.Abort())

	is(t, cache.BindOperator(0, nLayers, ModePrefill, decode), NotSupported, "decode")
	must(t, cache.BindOperator(0, nLayers, ModeAutoregressive, decode))
	must(t, cache.Begin(positions[:1], positions[:1]))
	must(t, cache.PutAttention(0, kv(k, 1), kv(v, 1), qo(q, 1), qo(out, 1)))
	near(t, out[0], 1)
	must(t, cache.Abort())
	must(t, cache.BindOperator(0, nLayers, ModeAll, nil))
	pass()
	must(t, cache.Attention(0, qo(q, 3), qo(out, 3)))
	is(t, cache.AttentionWith(0, qo(q, 3), qo(out, 3), drop), NotSupported, "dropout")
	must(t, cache.Abort())
	is(t, cache.BindOperator(0, nLayers, 0, decode), InvalidArgument, "modes")
	is(t, cache.BindOperator(0, nLayers+1, ModeAll, decode), InvalidArgument, "layer")
	is(t, cache.BindOperator(0, nLayers, ModeAll, newOperator(t, device, "lightning", OperatorDesc{})), NotSupported, "lightning")
	must(t, decode.Close())
	must(t, decode.Close())
	is(t, cache.BindOperator(0, nLayers, ModeAutoregressive, decode), InvalidHandle, "")
	_, _, err = decode.Query()
	is(t, err, InvalidHandle, "")
}

// attention is the definition, over keys of one row and KV head.
func attention(q, k, v []float32, size int, sees func(key int) bool) (out []float64, lse float64) {
	keys := len(k) / size
	scores, sum := make([]float64, keys), 0.0
	for j := range scores {
		for i, x := range q {
			scores[j] += float64(x) * float64(k[j*size+i]) / math.Sqrt(float64(size))
		}
		if sees(j) {
			sum += math.Exp(scores[j])
		}
	}
	out = make([]float64, size)
	for j := 0; j < keys; j++ {
		for i := 0; sees(j) && i < size; i++ {
			out[i] += math.Exp(scores[j]) / sum * float64(v[j*size+i])
		}
	}
	return out, math.Log(sum)
}

const forwardRows, forwardQ, forwardKV, forwardHeads, forwardSize = 2, 3, 5, 4, 8

func forwardBounds() OperatorDesc {
	return OperatorDesc{
		MaxRows: forwardRows, MaxQLen: forwardQ, MaxKVLen: forwardKV, NKVHeads: 1, MaxQHeads: forwardHeads, HeadDimK: forwardSize,
	}
}

func TestForward(t *testing.T) {
	const nQ, nK = forwardRows * forwardQ * forwardHeads * forwardSize, forwardRows * forwardKV * forwardSize
	qs, ks, vs := wave(nQ, 1), wave(nK, 2), wave(nK, 3)
	q, k := Float32(qs, forwardRows, forwardQ, forwardHeads, forwardSize), Float32(ks, forwardRows, forwardKV, 1, forwardSize)
	v := Float32(vs, forwardRows, forwardKV, 1, forwardSize)
	device := device(t)
	for _, name := range []string{"flash", "vanilla", "ring"} {
		op := newOperator(t, device, name, forwardBounds())
		for _, test := range []struct {
			desc ForwardDesc
			sees func(query, key int) bool
		}{
			{ForwardDesc{}, func(int, int) bool { return true }},
			{ForwardDesc{Causal: true}, func(query, key int) bool { return key <= query+2 }},
			{ForwardDesc{Causal: true, QueryOffset: 1, Reach: 1}, func(query, key int) bool { return key <= query+1 && key >= query }},
			{ForwardDesc{Causal: true, QueryOffset: None}, func(query, key int) bool { return key <= query }},
			{ForwardDesc{Chunk: 3}, func(query, key int) bool { return key >= (query+2)/3*3 }},
		} {
			outs, lses := make([]float32, nQ), make([]float32, nQ/forwardSize)
			out := Float32(outs, forwardRows, forwardQ, forwardHeads, forwardSize)
			must(t, op.ForwardWith(test.desc, q, k, v, out, AttentionExtra{LSE: Float32(lses, forwardRows, forwardQ, forwardHeads)}))
			for line := 0; line < nQ/forwardSize; line++ {
				row, query := line/(forwardQ*forwardHeads), line/forwardHeads%forwardQ
				at := row * forwardKV * forwardSize
				want, lse := attention(qs[line*forwardSize:][:forwardSize], ks[at:at+forwardKV*forwardSize], vs[at:], forwardSize,
					func(key int) bool { return test.sees(query, key) })
				near(t, lses[line], lse)
				for i, x := range want {
					near(t, outs[line*forwardSize+i], x)
				}
			}
		}
	}

	op := newOperator(t, device, "flash", forwardBounds())
	out := Float32(make([]float32, nQ), forwardRows, forwardQ, forwardHeads, forwardSize)
	is(t, op.Forward(ForwardDesc{Sinks: ones(3)}, q, k, v, out), InvalidArgument, "Sinks has 3 elements, not 4")
	is(t, op.Forward(ForwardDesc{ALiBiSlopes: ones(5)}, q, k, v, out), InvalidArgument, "ALiBiSlopes has 5 elements, not 4")
	is(t, op.Forward(ForwardDesc{DropoutSeed: 1}, q, k, v, out), InvalidArgument, "dropout_seed")
	is(t, op.Forward(ForwardDesc{Dropout: true}, q, k, v, out), NotSupported, "dropout")
	is(t, op.Forward(ForwardDesc{}, q, k, Tensor{}, out), Shape, "v is Tensor{}")
	is(t, op.Forward(ForwardDesc{}, q, Float32(ks, forwardRows, forwardKV, 1, forwardSize+1), v, out), Shape, "k of shape")
	is(t, op.ForwardWith(ForwardDesc{}, q, k, v, out, AttentionExtra{NoSinks: true}), InvalidArgument, "extra")
	is(t, newOperator(t, device, "flash", OperatorDesc{}).Forward(ForwardDesc{}, q, k, v, out), NotSupported, "bounds")
}

// Two halves of the keys, merged, are the whole; sinks come last.
func TestMergeAttention(t *testing.T) {
	const size, heads, keys = forwardSize, forwardHeads, 4
	qs, ks, vs, sinks := wave(heads*size, 1), wave(keys*size, 2), wave(keys*size, 3), wave(heads, 4)
	op := newOperator(t, device(t), "flash", forwardBounds())
	results := func(first, n int, desc ForwardDesc) (o, lse []float32) {
		o, lse = make([]float32, heads*size), make([]float32, heads)
		desc.Sinks = sinks
		part := func(x []float32) Tensor { return Float32(x[first*size:], 1, n, 1, size) }
		must(t, op.ForwardWith(desc, Float32(qs, 1, 1, heads, size), part(ks), part(vs), Float32(o, 1, 1, heads, size),
			AttentionExtra{LSE: Float32(lse, 1, 1, heads)}))
		return o, lse
	}
	want, wantLSE := results(0, keys, ForwardDesc{})
	o, lse := results(0, 1, ForwardDesc{NoSinks: true})
	o2, lse2 := results(1, keys-1, ForwardDesc{NoSinks: true})
	must(t, MergeAttention(Float32(o, heads, size), Float32(lse, heads), Float32(o2, heads, size), Float32(lse2, heads)))
	is(t, ApplySinks(Float32(o, heads, size), Float32(lse, heads), sinks[1:]), InvalidArgument, "sinks has 3 elements, not 4, one for each head")
	must(t, ApplySinks(Float32(o, heads, size), Float32(lse, heads), sinks))
	for i := range o {
		near(t, o[i], float64(want[i]))
		near(t, lse[i/size], float64(wantLSE[i/size]))
	}
	is(t, MergeAttention(Float32(o, heads, size), Float32(lse, heads), Float32(o2, heads, size), Float32(lse2, 2, 2)), Shape, "lse2")
	is(t, MergeAttention(Float32(o, heads, size), Tensor{}, Float32(o2, heads, size), Float32(lse2, heads)), Shape, "lse is Tensor{}")
	is(t, ApplySinks(Float32(o, heads, size), Float32(lse, heads), nil), InvalidArgument, "sinks")

	// The same by a layer's sinks, left out and applied.
	cache := open(t)
	must(t, cache.BindAttention(0, 1, AttentionDesc{NQHeads: qHeads, Sinks: sinks}))
	k, v, q, whole := arrays(1)
	partial, sums := make([]float32, len(whole)), make([]float32, qHeads)
	must(t, cache.Begin([]int32{0}, []int32{0}))
	must(t, cache.PutAttention(0, kv(k, 1), kv(v, 1), qo(q, 1), qo(whole, 1)))
	must(t, cache.AttentionWith(0, qo(q, 1), qo(partial, 1), AttentionExtra{NoSinks: true, LSE: Float32(sums, 1, qHeads)}))
	equal(t, partial[0], float32(1))
	must(t, ApplySinks(qo(partial, 1), Float32(sums, 1, qHeads), sinks))
	for i := range partial {
		near(t, partial[i], float64(whole[i]))
	}
}

func TestRepeatKVHeads(t *testing.T) {
	in, out := []uint16{1, 2, 3, 4}, make([]uint16, 8)
	must(t, RepeatKVHeads(BFloat16(in, 1, 2, 2), 2, BFloat16(out, 1, 4, 2)))
	equal(t, out, []uint16{1, 2, 1, 2, 3, 4, 3, 4})
	is(t, RepeatKVHeads(BFloat16(in, 1, 2, 2), 2, BFloat16(out, 1, 2, 4)), Shape, "out")
	is(t, RepeatKVHeads(BFloat16(in, 1, 2, 2), 0, BFloat16(out, 1, 4, 2)), InvalidArgument, "n")
	is(t, RepeatKVHeads(BFloat16(in, 1, 2, 2), 1<<40, BFloat16(out, 1, 4, 2)), InvalidArgument, "n 1099511627776 does not fit")
	is(t, RepeatKVHeads(BFloat16(in, 1, 2, 2), 2, Float16(out, 1, 4, 2)), Dtype, "out")
}

// The first mask of the definition: Philox4x32-10 of zeros is 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
func TestDropoutMask(t *testing.T) {
	kept := make([]bool, 4)
	must(t, DropoutMask(0, 0.625, 0, 0, []int32{0}, []int32{0, 1, 2, 3}, Bool(kept, 1, 1, 4)))
	equal(t, kept, []bool{false, true, true, false}) // 0.399 0.880 0.736 0.605
	is(t, DropoutMask(0, 1, 0, 0, []int32{0}, []int32{0}, Bool(kept, 1, 1, 1)), InvalidArgument, "probability")
	is(t, DropoutMask(0, 0, 65536, 0, []int32{0}, []int32{0}, Bool(kept, 1, 1, 1)), InvalidArgument, "layer")
	is(t, DropoutMask(0, 0, 0, 1<<33, []int32{0}, []int32{0}, Bool(kept, 1, 1, 1)), InvalidArgument, "sequence 8589934592 does not fit")
	is(t, DropoutMask(0, 0, 0, 0, []int32{0}, []int32{0}, Bool(kept, 1, 1, 2)), Shape, "into")
	is(t, DropoutMask(0, 0, 0, 0, []int32{0}, []int32{0}, Bool(kept, 1, 1, 5)), Shape, "needs 5")
	is(t, DropoutMask(0, 0, 0, 0, []int32{0}, []int32{-1}, Bool(kept, 1, 1, 1)), InvalidArgument, "k_position")
}

func TestModeOf(t *testing.T) {
	q := make([]float32, 12)
	for _, test := range []struct {
		tensor Tensor
		bthd   bool
		want   Mode
	}{
		{Float32(q, 2, 1, 3, 2), true, ModeAutoregressive}, {Float32(q, 2, 3, 1, 2), true, ModeTrain},
		{Float32(q, 2, 3, 1, 2), false, ModeAutoregressive}, {Float32(q, 2, 1, 3, 2), false, ModeTrain},
	} {
		mode, err := ModeOf(test.tensor, test.bthd)
		must(t, err)
		equal(t, mode, test.want)
	}
	_, err := ModeOf(Float32(q, 2, 6), true)
	is(t, err, Shape, "q")
	_, err = ModeOf(Tensor{}, true)
	is(t, err, Shape, "q is Tensor{}")
}

func TestModesFeaturesAndSetsOfTypesHaveNames(t *testing.T) {
	for _, test := range []struct {
		value fmt.Stringer
		want  string
	}{
		{ModeAll, "train|prefill|autoregressive|insert"}, {Mode(16), "0x10"},
		{FeatureScan | FeatureMask, "mask|scan"}, {FeatureForward, "forward"}, {FeatureRotated | FeatureShifted, "shifted|rotated"},
		{DTypeSet(0), "0x0"}, {DTypeSet(1<<9 | 2), "f32|nf4"}, {DTypeSet(1 << 10), "0x400"},
	} {
		if got := fmt.Sprint(test.value); got != test.want {
			t.Errorf("%s, not %s", got, test.want)
		}
	}
	if got := Feature(1<<22 - 1).String(); strings.Count(got, "|") != 21 || strings.Contains(got, "0x") {
		t.Errorf("all features are %s", got)
	}
}
