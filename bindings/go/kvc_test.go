package kvc

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const (
	nLayers, kvHeads, qHeads, headDim = 2, 2, 4, 16
)

func testDesc() CacheDesc {
	return CacheDesc{
		NLayers: nLayers, NKVHeads: kvHeads, HeadDimK: headDim, DTypeK: F16, DTypeV: F32,
		MaxSequences: 2, Capacity: 32, MaxBatch: 8, MaxQHeads: qHeads,
	}
}

func open(t testing.TB) *Cache {
	t.Helper()
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 2})
	must(t, err)
	cache, err := NewCache(device, testDesc(), CausalDesc{})
	must(t, err)
	must(t, device.Close()) // the cache keeps what it needs
	t.Cleanup(func() { must(t, cache.Close()) })
	return cache
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t testing.TB, err error, status Status, part string) {
	t.Helper()
	var e *Error
	if !errors.Is(err, status) || !errors.As(err, &e) || !strings.Contains(e.Message, part) {
		t.Fatalf("%v is not %v with %q", err, status, part)
	}
}

// arrays returns tensors of n tokens; all values of token i are i + 1.
func arrays(n int) (k, v, q, out []float32) {
	k, v = make([]float32, n*kvHeads*headDim), make([]float32, n*kvHeads*headDim)
	q, out = make([]float32, n*qHeads*headDim), make([]float32, n*qHeads*headDim)
	for i := range v {
		k[i], v[i] = float32(i%7)-3, float32(i/(kvHeads*headDim)+1)
	}
	return k, v, q, out
}

func kv(data []float32, n int) Tensor { return Float32(data, n, kvHeads, headDim) }
func qo(data []float32, n int) Tensor { return Float32(data, n, qHeads, headDim) }

func TestPass(t *testing.T) {
	cache := open(t)
	k, v, q, out := arrays(3)
	lse := make([]float32, 3*qHeads)
	must(t, cache.BindAttention(0, nLayers, AttentionDesc{NQHeads: qHeads, Sinks: make([]float32, qHeads)}))
	must(t, cache.BindAttention(0, nLayers, AttentionDesc{NQHeads: qHeads}))
	must(t, cache.BindRope(0, nLayers, RopeDesc{Pairs: Halves, FrequencyFactors: ones(headDim / 2)}))
	must(t, cache.Begin([]int32{0, 1, 2}, []int32{0, 0, 0}))
	for layer := 0; layer < nLayers; layer++ {
		must(t, cache.Put(layer, kv(k, 3), kv(v, 3)))
		must(t, cache.AttentionWith(layer, qo(q, 3), qo(out, 3), AttentionExtra{LSE: Float32(lse, 3, qHeads)}))
	}
	// Queries of zeros give all keys the same weight: the output is the mean of the visible values.
	for token, want := range []float32{1, 1.5, 2} {
		if got := out[token*qHeads*headDim]; got < want-1e-5 || got > want+1e-5 {
			t.Errorf("token %d: %v, not %v", token, got, want)
		}
	}
	if lse[0] != 0 {
		t.Errorf("one key of weight e^0 has the log %v", lse[0])
	}

	_, _, _, err := cache.MaskShape(nLayers)
	is(t, err, InvalidArgument, "layer 2")
	keys, values, err := cache.Get(1)
	must(t, err)
	if keys.DType != F16 || values.DType != F32 || keys.Shape[1] != kvHeads || values.Shape[2] != headDim {
		t.Fatalf("views of %+v and %+v", keys, values)
	}
	nTokens, history, dtype, err := cache.MaskShape(1)
	must(t, err)
	if nTokens != 3 || history != keys.Shape[0] || dtype != F32 {
		t.Fatalf("a mask of %d, %d, %v", nTokens, history, dtype)
	}
	mask := make([]float32, nTokens*history)
	must(t, cache.Mask(1, Float32(mask, nTokens, history)))
	visible := make([]bool, nTokens*history)
	must(t, cache.Mask(1, Bool(visible, nTokens, history)))
	for i := range mask {
		if visible[i] != (mask[i] == 0) {
			t.Errorf("element %d of the mask is %v and %v", i, visible[i], mask[i])
		}
	}
	is(t, cache.Mask(1, BFloat16(make([]uint16, nTokens*history), nTokens, history)), Dtype, "bf16")
	is(t, cache.Mask(nLayers, Bool(visible, nTokens, history)), InvalidArgument, "layer 2")
	_, _, err = cache.History(nLayers)
	is(t, err, InvalidArgument, "layer 2")
	seen := 0
	for cell := 0; cell < history; cell++ {
		if mask[2*history+cell] == 0 {
			seen++
			if got := values.Float32(cell, 1)[5]; got != 1 && got != 2 && got != 3 {
				t.Errorf("cell %d holds %v", cell, got)
			}
			_ = keys.Bits(cell, 0)
		}
	}
	if seen != 3 {
		t.Errorf("the last token sees %d cells", seen)
	}
	must(t, cache.Commit())

	gathered := make([]float32, 3*kvHeads*headDim)
	must(t, cache.Gather(0, 0, Tensor{}, kv(gathered, 3)))
	for i := range gathered {
		if gathered[i] != v[i] {
			t.Fatalf("gathered %v at %d, not %v", gathered[i], i, v[i])
		}
	}
	columns := make([]float32, len(v))
	must(t, cache.GatherTransposed(0, 0, Tensor{}, Float32(columns, kvHeads, headDim, 3)))
	for i := range columns {
		if want := v[i%3*kvHeads*headDim+i/3]; columns[i] != want {
			t.Fatalf("gathered %v at %d of the columns, not %v", columns[i], i, want)
		}
	}
	runs, err := cache.Runs(1, 0)
	must(t, err)
	_, err = cache.Runs(nLayers, 0)
	is(t, err, InvalidArgument, "layer 2")
	if len(runs) != 1 || runs[0].Length != 3 || runs[0].Position != 0 {
		t.Errorf("runs %v", runs)
	}
	must(t, cache.Check())
}

// An empty slice has the right length for a sequence that holds nothing and is too short for any
// other sequence. It never means "not wanted".
func TestGatherIntoEmptySlices(t *testing.T) {
	cache := open(t)
	must(t, cache.Gather(0, 0, kv(nil, 0), kv([]float32{}, 0)))
	must(t, cache.Gather(0, 0, kv(nil, 0), Tensor{}))
	fill(t, cache, 0, 0, 3)
	must(t, cache.Commit())
	k := make([]float32, 3*kvHeads*headDim)
	is(t, cache.Gather(0, 0, kv(k, 3), kv(nil, 0)), Shape, "v has shape [0, 2, 16], not [3, 2, 16]")
	is(t, cache.Gather(0, 0, kv(k[:0], 0), kv(k, 3)), Shape, "k has shape [0, 2, 16], not [3, 2, 16]")
	is(t, cache.Gather(0, 0, Float32(nil), Tensor{}), Shape, "0 dimensions")
	must(t, cache.Gather(0, 0, Tensor{}, Tensor{}))
	if k[0] != 0 {
		t.Error("a call that failed has written")
	}
}

// With data null the library would return the shape and write nothing.
func TestMaskIntoAnEmptySlice(t *testing.T) {
	cache := open(t)
	fill(t, cache, 0, 0, 3)
	is(t, cache.Mask(0, Float32(nil, 3, 0)), Shape, "into has shape [3, 0], not [3, 3]")
	is(t, cache.Mask(0, Float32(nil, 0)), Shape, "into has shape [0], not [3, 3]")
	is(t, cache.Mask(0, Tensor{}), Shape, "into is Tensor{}")
}

func TestOtherMinorVersionsAreRefused(t *testing.T) {
	library := VersionNumber()
	must(t, compatible(library))
	must(t, compatible(library^0xff)) // a patch changes no struct
	is(t, compatible(library+0x100), Version, "loaded kvc")
	is(t, compatible(library+0x10000), Version, "loaded kvc")
	is(t, compatible(12<<16|34<<8), Version, fmt.Sprintf("for kvc %d.%d", library>>16, library>>8&0xff))
	is(t, compatible(12<<16|34<<8), Version, "loaded kvc 12.34")
}

func ones(n int) []float32 {
	all := make([]float32, n)
	for i := range all {
		all[i] = 1
	}
	return all
}

func fill(t testing.TB, cache *Cache, sequence, first, n int) {
	t.Helper()
	k, v, q, out := arrays(n)
	positions, sequences := make([]int32, n), make([]int32, n)
	for i := range positions {
		positions[i], sequences[i] = int32(first+i), int32(sequence)
	}
	must(t, cache.BeginFlagged(positions, sequences, make([]TokenFlags, n)))
	for layer := 0; layer < nLayers; layer++ {
		must(t, cache.PutAttention(layer, kv(k, n), kv(v, n), qo(q, n), qo(out, n)))
	}
}

func TestSequences(t *testing.T) {
	cache := open(t)
	must(t, cache.BindRope(0, nLayers, RopeDesc{}))
	fill(t, cache, 0, 0, 8)
	must(t, cache.SetCausal([]int32{7}))
	must(t, cache.SetCausal(nil))
	must(t, cache.CommitPrefix([]int32{0}, []int32{6}))
	before, err := cache.Digest()
	must(t, err)
	fill(t, cache, 0, 6, 2)
	must(t, cache.Abort())
	after, err := cache.Digest()
	must(t, err)
	if before != after {
		t.Error("abort left a trace")
	}
	if got, err := cache.CopyPrefix(0, 1, 4); err != nil || got != 4 {
		t.Errorf("CopyPrefix: %d, %v", got, err)
	}
	must(t, cache.CanRemove(0, 1, 3))
	is(t, cache.CanRemove(0, 3, 1), InvalidArgument, "")
	must(t, cache.Remove(0, 1, 3))
	if best, err := cache.CanResume(0, 3); err != nil || best != 3 {
		t.Errorf("CanResume: %d, %v", best, err)
	}
	if got, err := cache.Resume(0, 3); err != nil || got != 3 {
		t.Errorf("Resume: %d, %v", got, err)
	}
	must(t, cache.Reorder([]int32{0}, []int32{1}))
	info, err := cache.Sequence(0)
	must(t, err)
	if info.First != 0 || info.Next != 4 || info.Count != 4 || info.LostBelow != 0 || info.Room != 28 {
		t.Errorf("%+v", info)
	}
	stats, err := cache.Stats()
	must(t, err)
	if stats.State != Idle || stats.Cells != 64 || stats.CellsUsed != 4 || stats.CellsShared != 4 || stats.Passes != 1 {
		t.Errorf("%+v", stats)
	}
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 2})
	must(t, err)
	bytes, err := MemoryBytes(device, testDesc(), CausalDesc{})
	must(t, err)
	must(t, device.Close())
	if bytes != stats.Bytes {
		t.Errorf("MemoryBytes returned %d, the cache has %d", bytes, stats.Bytes)
	}
	must(t, cache.BeginReserve(8))
	must(t, cache.Remove(0, 0, SeqEnd))
}

// CanRemove and Fits return what Remove and Begin return.
func TestQueriesReturnTheErrorOfTheCall(t *testing.T) {
	cache := open(t) // without RoPE, so positions cannot move
	fill(t, cache, 0, 0, 4)
	must(t, cache.Commit())
	is(t, cache.CanRemove(0, 1, 2), NotSupported, "")
	is(t, cache.Remove(0, 1, 2), NotSupported, "")
	must(t, cache.CanRemove(0, 2, SeqEnd))

	positions, sequences := []int32{4, 5}, []int32{0, 0}
	for _, test := range []struct {
		flags []TokenFlags
		part  string
	}{{[]TokenFlags{0}, "2 and 1"}, {[]TokenFlags{0, 1 << 9}, "token_flags[1]"}} {
		is(t, cache.FitsFlagged(positions, sequences, test.flags), InvalidArgument, test.part)
		is(t, cache.BeginFlagged(positions, sequences, test.flags), InvalidArgument, test.part)
	}
	must(t, cache.FitsFlagged(positions, sequences, []TokenFlags{0, SeesLater}))
}

func TestTokensOfATypeSeeEachOther(t *testing.T) {
	cache, err := create(t, CausalDesc{MaskDType: Bool8}, func(*CacheDesc) {})
	must(t, err)
	positions, sequences, image := []int32{0, 1, 2, 3}, []int32{0, 0, 0, 0}, TokenType(3)
	is(t, cache.BeginFlagged(positions, sequences, []TokenFlags{image, 0, image, 0}), InvalidArgument, "type 3")
	must(t, cache.BeginFlagged(positions, sequences, []TokenFlags{0, image, image, 0}))
	mask := make([]bool, 16)
	must(t, cache.Mask(0, Bool(mask, 4, 4)))
	want := []bool{
		true, false, false, false,
		true, true, true, false,
		true, true, true, false,
		true, true, true, true,
	}
	if !reflect.DeepEqual(mask, want) {
		t.Errorf("the mask is %v", mask)
	}
}

func TestMaskOfBooleansAsTheDefault(t *testing.T) {
	cache, err := create(t, CausalDesc{MaskDType: Bool8}, func(*CacheDesc) {})
	must(t, err)
	must(t, cache.Begin([]int32{0, 1}, []int32{0, 0}))
	nTokens, history, dtype, err := cache.MaskShape(0)
	must(t, err)
	if nTokens != 2 || history != 2 || dtype != Bool8 {
		t.Errorf("a mask of %d, %d, %v", nTokens, history, dtype)
	}
}

func TestErrors(t *testing.T) {
	cache := open(t)
	short := make([]float32, 8)
	is(t, cache.Commit(), BadState, "pass")
	is(t, cache.Begin([]int32{0}, []int32{0, 0}), InvalidArgument, "1 and 2")
	is(t, cache.Begin(nil, nil), InvalidArgument, "positions is empty")
	is(t, cache.Fits([]int32{}, []int32{}), InvalidArgument, "positions is empty")
	is(t, cache.Fits([]int32{40}, []int32{7}), InvalidArgument, "7")
	is(t, cache.BeginFlagged([]int32{0}, []int32{0}, []TokenFlags{0, 0}), InvalidArgument, "1 and 2")
	is(t, cache.BindAttention(0, 1, AttentionDesc{NQHeads: 4, Sinks: short[:3]}), InvalidArgument, "3 elements")
	is(t, cache.BindRope(0, 1, RopeDesc{FrequencyFactors: short[:3]}), InvalidArgument, "3 elements")
	is(t, cache.BindRope(0, 1, RopeDesc{Base: -1}), InvalidArgument, "")
	must(t, cache.Begin([]int32{0}, []int32{0}))
	// The library knows no lengths: the package finds slices that are too short.
	is(t, cache.Put(0, kv(short, 1), kv(short, 1)), Shape, "needs 32 elements, the slice has 8")
	is(t, cache.Put(0, Float32(short, 1<<40, 1<<40, 1<<40), kv(short, 1)), Shape, "the slice has 8")
	is(t, cache.Put(0, Float32(short, 1, -1, 8), kv(short, 1)), InvalidArgument, "negative")
	is(t, cache.Put(0, Float32(short, 1, -1, 0), kv(short, 0)), InvalidArgument, "negative")
	is(t, cache.Put(0, Float32(short, 1, 1, 1, 1, 8), kv(short, 1)), Shape, "5 dimensions")
	is(t, cache.Put(0, Tensor{}, kv(short, 1)), Shape, "k is Tensor{}")
	is(t, cache.Put(0, Float32(short, 1, 1, 8), Float32(short, 1, 1, 8)), Shape, "")
	is(t, cache.Put(nLayers, Float32(short, 1, 1, 8), Float32(short, 1, 1, 8)), InvalidArgument, "layer 2")
	must(t, cache.Abort())
	is(t, cache.Remove(0, 2, 1), InvalidArgument, "")

	_, err := OpenDevice("cuda:9", DeviceOptions{})
	is(t, err, BackendUnavailable, "")
	_, err = OpenDevice("cpu\x00", DeviceOptions{})
	is(t, err, InvalidArgument, "zero byte")
	_, err = NewCache(&Device{}, CacheDesc{}, CausalDesc{})
	is(t, err, InvalidHandle, "")
	var none Cache
	is(t, none.Commit(), InvalidHandle, "")
	must(t, none.Close())
}

// A slice inside a struct that holds pointers: cgo must not check the whole struct.
func TestSliceOfLargerStruct(t *testing.T) {
	cache := open(t)
	type model struct {
		next *model
		data [kvHeads * headDim]float32
	}
	m := &model{}
	m.next = m
	must(t, cache.Begin([]int32{0}, []int32{0}))
	must(t, cache.Put(0, kv(m.data[:], 1), kv(m.data[:], 1)))
	must(t, cache.Abort())
}

func TestHalfPrecision(t *testing.T) {
	cache := open(t)
	bits := make([]uint16, kvHeads*headDim)
	for i := range bits {
		bits[i] = 0x3f80 // 1 in bfloat16, 1.875 in half precision
	}
	for _, test := range []struct {
		tensor Tensor
		want   float32
	}{{BFloat16(bits, 1, kvHeads, headDim), 1}, {Float16(bits, 1, kvHeads, headDim), 1.875}} {
		must(t, cache.Begin([]int32{0}, []int32{0}))
		must(t, cache.Put(0, test.tensor, test.tensor))
		k := make([]float32, kvHeads*headDim)
		must(t, cache.Gather(0, 0, kv(k, 1), Tensor{}))
		if k[0] != test.want {
			t.Errorf("%v, not %v", k[0], test.want)
		}
		must(t, cache.Abort())
	}
}

func ExampleStatus() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	cache, _ := NewCache(device, CacheDesc{
		NLayers: 1, NKVHeads: 1, HeadDimK: 8, MaxSequences: 1, Capacity: 4, MaxBatch: 8,
	}, CausalDesc{})
	defer cache.Close()
	err := cache.Begin([]int32{0, 1, 2, 3, 4}, []int32{0, 0, 0, 0, 0})
	fmt.Println(errors.Is(err, CacheFull))
	// Output: true
}
