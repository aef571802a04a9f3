package kvc

import (
	"math"
	"testing"
)

func device(t testing.TB) *Device {
	t.Helper()
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	t.Cleanup(func() { must(t, device.Close()) })
	return device
}

// create makes a cache of testDesc with one change.
func create(t testing.TB, kind Kind, change func(*CacheDesc)) (*Cache, error) {
	t.Helper()
	desc := testDesc()
	change(&desc)
	cache, err := NewCache(device(t), desc, kind)
	if err == nil {
		t.Cleanup(func() { must(t, cache.Close()) })
	}
	return cache, err
}

func TestFieldsThatDoNotFitAreRefused(t *testing.T) {
	for _, test := range []struct {
		change func(*CacheDesc)
		status Status
		part   string
	}{
		{func(d *CacheDesc) { d.DTypeK = Q8_0 }, InvalidArgument, "multiples of 32, and head_dim is 16"},
		{func(d *CacheDesc) { d.DTypeK = Bool8 }, Dtype, "bool"},
		{func(d *CacheDesc) { d.DTypeK = I8 }, Dtype, "i8"},
		{func(d *CacheDesc) { d.DTypeV = 77 }, Dtype, "code 77"},
		{func(d *CacheDesc) { d.Flags = RotateK }, InvalidArgument, "f16"},
		{func(d *CacheDesc) { d.Flags = Interleaved }, InvalidArgument, "f16"}, // and V is f32
		{func(d *CacheDesc) { d.Flags = Strict | VInK }, InvalidArgument, "dtype_v"},
		{func(d *CacheDesc) { d.Flags = 1 << 40 }, InvalidArgument, ""},
		{func(d *CacheDesc) { d.BlockK = 16 }, InvalidArgument, "block 16 of dtype_k, which is f16"},
		{func(d *CacheDesc) { d.DTypeV, d.BlockV = NF4, 32 }, InvalidArgument, "dtype_v is nf4"},
		{func(d *CacheDesc) { d.VFirst = 1 }, InvalidArgument, "v_first"},
	} {
		_, err := create(t, CausalDesc{}, test.change)
		is(t, err, test.status, test.part)
		desc := testDesc()
		test.change(&desc)
		_, err = MemoryBytes(device(t), desc, CausalDesc{})
		is(t, err, test.status, test.part)
	}
	_, err := create(t, CausalDesc{MaskDType: BF16}, func(*CacheDesc) {})
	is(t, err, Dtype, "mask_dtype")
}

func TestKinds(t *testing.T) {
	_, err := create(t, nil, func(*CacheDesc) {})
	is(t, err, InvalidArgument, "kind")
	_, err = MemoryBytes(device(t), testDesc(), nil)
	is(t, err, InvalidArgument, "kind")
	var none *CausalDesc
	_, err = create(t, none, func(*CacheDesc) {})
	is(t, err, InvalidArgument, "kind")
	cache, err := create(t, &CausalDesc{Reach: 4, Memory: 4}, func(*CacheDesc) {})
	must(t, err)
	stats, err := cache.Stats()
	must(t, err)
	if stats.Cells != 2*(4+1)+2*8 {
		t.Errorf("%d cells: the descriptor of the kind did not arrive", stats.Cells)
	}
}

func TestViewsOfOtherTypesPanic(t *testing.T) {
	panics := func(call func()) (message any) {
		defer func() { message = recover() }()
		call()
		return nil
	}
	row := []float32{1, 2}
	view := View{Data: pointer(row), Shape: [3]int{1, 1, 2}, Strides: [3]int{2, 2, 1}}
	for _, dtype := range []DType{0, Bool8, F64, Q8_0} {
		view.DType = dtype
		if panics(func() { view.Float32(0, 0) }) == nil || panics(func() { view.Bits(0, 0) }) == nil {
			t.Errorf("a view of %v was read", dtype)
		}
	}
	view.DType = F32
	if view.Float32(0, 0)[1] != 2 || panics(func() { view.Bits(0, 0) }) == nil {
		t.Error("a view of f32")
	}
	if panics(func() { view.Float32(1, 0) }) == nil || panics(func() { view.Float32(0, -1) }) == nil {
		t.Error("a row outside of a view was read")
	}
}

// Removing the first position rotates the keys of the others by -1, only from FirstDim on.
func TestRopeFromFirstDim(t *testing.T) {
	const first, rotated = 4, 6
	cache, err := create(t, CausalDesc{}, func(d *CacheDesc) { d.DTypeK = F32 })
	must(t, err)
	desc := RopeDesc{FirstDim: first, NDims: rotated, Base: 100}
	must(t, cache.BindRope(0, nLayers, desc))
	desc.NDims = 0 // 12 dimensions are left
	desc.FrequencyFactors = ones(rotated / 2)
	is(t, cache.BindRope(0, nLayers, desc), InvalidArgument, "3 elements, not 6")
	desc.FirstDim, desc.FrequencyFactors = headDim, nil
	is(t, cache.BindRope(0, nLayers, desc), InvalidArgument, "first_dim")

	fill(t, cache, 0, 0, 2)
	before := make([]float32, 2*kvHeads*headDim)
	must(t, cache.Gather(0, 0, kv(before, 2), Tensor{}))
	must(t, cache.Remove(0, 0, 1))
	after := make([]float32, kvHeads*headDim)
	must(t, cache.Gather(0, 0, kv(after, 1), Tensor{}))
	for i, got := range after {
		row, dim := before[kvHeads*headDim+i/headDim*headDim:], i%headDim
		want := float64(row[dim])
		if dim >= first && dim < first+rotated {
			pair := (dim - first) / 2
			sin, cos := math.Sincos(-math.Pow(100, -2*float64(pair)/rotated))
			a, b := float64(row[first+2*pair]), float64(row[first+2*pair+1])
			want = a*cos - b*sin
			if (dim-first)%2 == 1 {
				want = a*sin + b*cos
			}
		}
		if math.Abs(float64(got)-want) > 1e-5 {
			t.Errorf("dimension %d of a key is %v, not %v", dim, got, want)
		}
	}
}
