package kvc

import (
	"bytes"
	"fmt"
	"math"
	"testing"
)

// storageDim is a multiple of every block.
const storageDim = 64

func TestNamesOfStorageTypesAreParsed(t *testing.T) {
	for _, dtype := range storageTypes {
		parsed, err := ParseDType(dtype.String())
		must(t, err)
		equal(t, parsed, dtype)
	}
	for _, name := range []string{"", "Q8_0", "q5_0", "i8", "bool"} {
		_, err := ParseDType(name)
		is(t, err, Dtype, fmt.Sprintf("%q is no storage type; there are f32, f16", name))
	}
}

// stored describes a cache of one storage type.
type stored struct {
	dtype  DType
	block  int32
	rotate bool
}

func everyStorage() (all []stored) {
	for _, dtype := range storageTypes {
		all = append(all, stored{dtype: dtype})
	}
	for _, dtype := range []DType{Q8_0, Q4_0, INT8, NF4} {
		all = append(all, stored{dtype: dtype, rotate: true})
	}
	return append(all, stored{NF4, 16, false}, stored{NF4, 32, true})
}

func (s stored) f8() bool { return s.dtype == F8E4M3 || s.dtype == F8E5M2 }

func (s stored) open(t testing.TB) *Cache {
	t.Helper()
	desc := testDesc()
	desc.HeadDimK, desc.DTypeK, desc.DTypeV, desc.BlockK, desc.BlockV = storageDim, s.dtype, s.dtype, s.block, s.block
	if s.rotate {
		desc.Flags = RotateK | RotateV
	}
	cache := openKind(t, desc, CausalDesc{})
	if s.f8() {
		must(t, cache.BindScales(0, nLayers, boundScales, boundScales))
	}
	return cache
}

var boundScales = []float32{0.5, 0.03125} // of f8, for the KV heads

// encoded holds vectors of tokens and heads as codes and scales, encoded one by one.
type encoded struct {
	StorageInfo
	codes, scales []byte
	decoded       []float32
}

func (s stored) encode(t *testing.T, values []float32) *encoded {
	t.Helper()
	info, err := StorageQuery(s.dtype, storageDim, int(s.block))
	must(t, err)
	rows := len(values) / storageDim
	codeBytes, scaleBytes := info.CodesPerRow*info.CodeDType.size(), info.ScalesPerRow*info.ScaleDType.size()
	equal(t, codeBytes+scaleBytes, info.BytesPerRow)
	e := &encoded{info, make([]byte, rows*codeBytes), make([]byte, rows*scaleBytes), make([]float32, len(values))}
	for i := 0; i < rows; i++ {
		desc := CodecDesc{DType: s.dtype, Rotate: s.rotate, Block: s.block}
		if s.f8() {
			desc.Scale = boundScales[i%kvHeads]
		}
		codes := Bytes(info.CodeDType, e.codes[i*codeBytes:][:codeBytes], info.CodesPerRow)
		scales := Bytes(info.ScaleDType, e.scales[i*scaleBytes:][:scaleBytes], info.ScalesPerRow)
		must(t, Encode(desc, Float32(values[i*storageDim:], storageDim), codes, scales))
		must(t, Decode(desc, codes, scales, Float32(e.decoded[i*storageDim:], storageDim)))
	}
	return e
}

func (e *encoded) tensors(n int) (codes, scales Tensor) {
	return Bytes(e.CodeDType, e.codes, n, kvHeads, e.CodesPerRow), Bytes(e.ScaleDType, e.scales, n, kvHeads, e.ScalesPerRow)
}

func wave(n int, phase float64) []float32 {
	all := make([]float32, n)
	for i := range all {
		all[i] = float32(math.Sin(phase + 0.7*float64(i)))
	}
	return all
}

func vectors(data []float32, n, heads int) Tensor { return Float32(data, n, heads, storageDim) }

func TestEncodeWritesWhatCachesStoreAndDecodeReadsWhatTheyCopy(t *testing.T) {
	const n, layer = 5, nLayers - 1
	positions, sequences := []int32{0, 1, 2, 3, 4}, []int32{1, 1, 1, 1, 1}
	for _, storage := range everyStorage() {
		t.Run(fmt.Sprintf("%v,%d,%v", storage.dtype, storage.block, storage.rotate), func(t *testing.T) {
			cache, restored := storage.open(t), storage.open(t)
			k, v, q := wave(n*kvHeads*storageDim, 1), wave(n*kvHeads*storageDim, 2), wave(n*qHeads*storageDim, 3)
			out, outOfRestored := make([]float32, len(q)), make([]float32, len(q))
			wantK, wantV := storage.encode(t, k), storage.encode(t, v)

			must(t, cache.Begin(positions, sequences))
			for l := 0; l < nLayers; l++ {
				must(t, cache.PutAttention(l, vectors(k, n, kvHeads), vectors(v, n, kvHeads), vectors(q, n, qHeads), vectors(out, n, qHeads)))
			}
			gotK, gotV, err := cache.GetCodes(layer)
			must(t, err)
			equal(t, []DType{gotK.Codes.DType, gotK.Scales.DType}, []DType{wantK.CodeDType, wantK.ScaleDType})
			first, _, err := cache.History(layer)
			must(t, err)
			runs, err := cache.Runs(layer, 1)
			must(t, err)
			column := int(runs[0].Cell) - first
			for _, pair := range []struct {
				got, want []byte
			}{
				{gotK.Codes.AppendCells(nil, column, n), wantK.codes}, {gotK.Scales.AppendCells(nil, column, n), wantK.scales},
				{gotV.Codes.AppendCells(nil, column, n), wantV.codes}, {gotV.Scales.AppendCells(nil, column, n), wantV.scales},
			} {
				if !bytes.Equal(pair.got, pair.want) {
					t.Errorf("the cache stores %x, Encode writes %x", pair.got, pair.want)
				}
			}

			shape, shapeV, err := cache.CopyShapes(layer)
			must(t, err)
			equal(t, shape, []int{shape[0], kvHeads, storageDim})
			equal(t, shapeV, shape)
			copiedK, copiedV := make([]float32, shape[0]*kvHeads*storageDim), make([]float32, shape[0]*kvHeads*storageDim)
			must(t, cache.GetCopy(layer, vectors(copiedK, shape[0], kvHeads), vectors(copiedV, shape[0], kvHeads)))
			at := column * kvHeads * storageDim
			equal(t, copiedK[at:at+len(k)], wantK.decoded)
			equal(t, copiedV[at:at+len(v)], wantV.decoded)
			must(t, cache.Commit())

			must(t, restored.Begin(positions, sequences))
			for l := 0; l < nLayers; l++ {
				codesK, scalesK := wantK.tensors(n)
				codesV, scalesV := wantV.tensors(n)
				must(t, restored.PutCodes(l, codesK, scalesK, codesV, scalesV))
				must(t, restored.Attention(l, vectors(q, n, qHeads), vectors(outOfRestored, n, qHeads)))
			}
			must(t, restored.Commit())
			equal(t, outOfRestored, out)
			digest, err := cache.Digest()
			must(t, err)
			again, err := restored.Digest()
			must(t, err)
			equal(t, again, digest)
		})
	}
}

// Latent attention: 96 dimensions are put, of which 64 are the value too.
func TestValuesThatArePartOfKeysAreNotPut(t *testing.T) {
	for _, dtype := range []DType{F32, Q8_0} {
		desc := testDesc()
		desc.HeadDimK, desc.HeadDimV, desc.DTypeK, desc.DTypeV, desc.Flags = 96, 64, dtype, 0, VInK
		cache := openKind(t, desc, CausalDesc{})
		k, q, out, v := wave(kvHeads*96, 1), wave(qHeads*96, 2), make([]float32, qHeads*64), make([]float32, kvHeads*64)
		must(t, cache.Begin([]int32{0}, []int32{0}))
		is(t, cache.Put(0, Float32(k, 1, kvHeads, 96), Float32(v, 1, kvHeads, 64)), InvalidArgument, "v")
		must(t, cache.Put(0, Float32(k, 1, kvHeads, 96), Tensor{}))
		must(t, cache.PutAttention(1, Float32(k, 1, kvHeads, 96), Tensor{}, Float32(q, 1, qHeads, 96), Float32(out, 1, qHeads, 64)))
		must(t, cache.GetCopy(1, Tensor{}, Float32(v, 1, kvHeads, 64)))
		for i, got := range out { // one token sees itself alone
			want := v[i/64/(qHeads/kvHeads)*64+i%64]
			if math.Abs(float64(got-want)) > 1e-6 {
				t.Fatalf("%v: out[%d] is %v, not %v", dtype, i, got, want)
			}
		}
		codesK, codesV, err := cache.GetCodes(1)
		must(t, err)
		equal(t, codesV.Codes.Data, codesK.Codes.Data)
		equal(t, codesV.Codes.Shape[2], 64)
		must(t, cache.Commit())
	}
}

func TestInterleavedStorageChangesStridesAlone(t *testing.T) {
	var results [2][]float32
	for i, flags := range []CacheFlags{0, Interleaved} {
		cache, err := create(t, CausalDesc{}, func(d *CacheDesc) { d.DTypeV, d.Flags = F16, flags })
		must(t, err)
		q := wave(3*qHeads*headDim, 3)
		results[i] = make([]float32, len(q))
		must(t, cache.Begin([]int32{0, 1, 2}, []int32{0, 0, 0}))
		k, v := wave(3*kvHeads*headDim, 1), wave(3*kvHeads*headDim, 2)
		must(t, cache.PutAttention(0, kv(k, 3), kv(v, 3), qo(q, 3), qo(results[i], 3)))
		keys, _, err := cache.Get(0)
		must(t, err)
		equal(t, keys.Strides[0], headDim*(1+i))
		must(t, cache.Abort())
	}
	equal(t, results[1], results[0])
}

func TestTheSideThatStoresNumbersIsLentAlone(t *testing.T) {
	x := wave(kvHeads*storageDim, 1)
	for _, keysAreNumbers := range []bool{true, false} {
		desc := testDesc()
		desc.HeadDimK, desc.DTypeK, desc.DTypeV = storageDim, NF4, F32
		if keysAreNumbers {
			desc.DTypeK, desc.DTypeV = F32, Q8_0
		}
		cache := openKind(t, desc, CausalDesc{})
		lent, refused := cache.GetValues, cache.GetKeys
		if keysAreNumbers {
			lent, refused = refused, lent
		}
		must(t, cache.Begin([]int32{0}, []int32{0}))
		_, err := lent(0)
		is(t, err, BadState, "kvc_put")
		must(t, cache.Put(0, vectors(x, 1, kvHeads), vectors(x, 1, kvHeads)))
		_, err = refused(0)
		is(t, err, NotSupported, "kvc_get_codes")
		view, err := lent(0)
		must(t, err)
		equal(t, view.Float32(0, 1), x[storageDim:])
		must(t, cache.Abort())
	}
}

// Removing the first token moves the others: no code changes, copies are turned as far as keys owe.
func TestCodesStayAsTheyWerePutWhenPositionsMove(t *testing.T) {
	const n, row = 4, kvHeads * storageDim
	cache := stored{dtype: Q8_0, rotate: true}.open(t)
	must(t, cache.BindRope(0, nLayers, RopeDesc{}))
	put := func(position int32, data []float32) {
		count := len(data) / row
		positions := make([]int32, count)
		for i := range positions {
			positions[i] = position + int32(i)
		}
		must(t, cache.Begin(positions, make([]int32, count)))
		for layer := 0; layer < nLayers; layer++ {
			must(t, cache.Put(layer, vectors(data, count, kvHeads), vectors(data, count, kvHeads)))
		}
	}
	put(0, wave(n*row, 1))
	k, v, err := cache.GetCodes(0)
	must(t, err)
	before := [2][]byte{k.Codes.AppendCells(nil, 1, n-1), v.Scales.AppendCells(nil, 1, n-1)}
	must(t, cache.Remove(0, 0, 1))
	put(n-1, wave(row, 2))

	runs, err := cache.Runs(0, 0)
	must(t, err)
	first, _, err := cache.History(0)
	must(t, err)
	equal(t, runs[0], Run{Cell: runs[0].Cell, Length: n - 1, Position: 0, Offset: -1})
	column := int(runs[0].Cell) - first
	k, v, err = cache.GetCodes(0)
	must(t, err)
	equal(t, [2][]byte{k.Codes.AppendCells(nil, column, n-1), v.Scales.AppendCells(nil, column, n-1)}, before)

	shape, _, err := cache.CopyShapes(0)
	must(t, err)
	copied, gathered := make([]float32, shape[0]*row), make([]float32, n*row)
	must(t, cache.GetCopy(0, vectors(copied, shape[0], kvHeads), Tensor{}))
	must(t, cache.Gather(0, 0, vectors(gathered, n, kvHeads), Tensor{}))
	equal(t, copied[column*row:(column+n-1)*row], gathered[:(n-1)*row])
	must(t, cache.Abort())
}

// Cross attention in one type beside self attention in another, by the numbers of the model's layers.
func TestLayersOfAHybridStoreTypesOfTheirOwn(t *testing.T) {
	const n = 3
	self, cross := stored{dtype: Q4_0, rotate: true}, stored{dtype: INT8}
	describe := func(s stored, kind Kind) Layer {
		desc := testDesc()
		desc.NLayers, desc.HeadDimK, desc.DTypeK, desc.DTypeV = 0, storageDim, s.dtype, s.dtype
		if s.rotate {
			desc.Flags = RotateK | RotateV
		}
		return Layer{desc, kind}
	}
	model, err := NewHybrid(device(t), []Layer{describe(cross, EncoderDesc{}), describe(self, CausalDesc{})})
	must(t, err)
	defer model.Close()
	must(t, model.BeginFlagged([]int32{0, 1, 2}, []int32{0, 0, 0}, []TokenFlags{CarriesInput, 0, 0}))
	for layer, storage := range []stored{cross, self} {
		want := storage.encode(t, wave(n*kvHeads*storageDim, float64(layer)))
		codes, scales := want.tensors(n)
		must(t, model.PutCodes(layer, codes, scales, codes, scales))
		k, v, err := model.GetCodes(layer)
		must(t, err)
		equal(t, k.Codes.AppendCells(nil, 0, n), want.codes)
		equal(t, v.Scales.AppendCells(nil, 0, n), want.scales)
		shape, _, err := model.CopyShapes(layer)
		must(t, err)
		values := make([]float32, n*kvHeads*storageDim)
		must(t, model.GetCopy(layer, Tensor{}, Float32(values, shape...)))
		equal(t, values, want.decoded)
	}
	must(t, model.Commit())
}

func TestStorageErrors(t *testing.T) {
	_, err := StorageQuery(I8, 64, 0)
	is(t, err, Dtype, "i8")
	_, err = StorageQuery(Q4_0, 33, 0)
	is(t, err, InvalidArgument, "33")
	_, err = StorageQuery(Q4_0, 1<<40, 0)
	is(t, err, InvalidArgument, "headDim 1099511627776 does not fit")

	x, codes, scales := wave(64, 1), make([]int8, 64), make([]uint16, 2)
	q8 := CodecDesc{DType: Q8_0}
	must(t, Encode(q8, Float32(x, 64), Int8(codes, 64), Float16(scales, 2)))
	is(t, Encode(q8, Float32(x, 64), Int8(codes, 64), Tensor{}), InvalidArgument, "scales")
	is(t, Encode(q8, Float32(x, 64), Int8(codes[:63], 64), Float16(scales, 2)), Shape, "codes of shape [64] needs 64")
	is(t, Encode(q8, Tensor{}, Int8(codes, 64), Float16(scales, 2)), Shape, "values is Tensor{}")
	is(t, Encode(q8, Float32(x, 64), Uint8(make([]uint8, 64), 64), Float16(scales, 2)), Dtype, "codes is u8")
	is(t, Decode(q8, Int8(codes, 64), Float16(scales[:1], 2), Float32(x, 64)), Shape, "scales of shape [2] needs 2")
	is(t, Decode(q8, Bytes(Q8_0, make([]byte, 68), 64), Float16(scales, 2), Float32(x, 64)), Dtype, "q8_0")
	is(t, Decode(q8, Bytes(I8, make([]byte, 63), 64), Float16(scales, 2), Float32(x, 64)), Shape, "needs 64")
	is(t, Decode(q8, Int8(codes, 64), Bytes(F16, make([]byte, 3), 2), Float32(x, 64)), Shape, "needs 2 elements, the slice has 1")

	cache := stored{dtype: Q8_0}.open(t)
	k := make([]float32, kvHeads*storageDim)
	_, _, err = cache.GetCodes(0)
	is(t, err, BadState, "")
	_, _, err = cache.CopyShapes(0)
	is(t, err, BadState, "")
	is(t, cache.BindScales(0, 1, boundScales, nil), NotSupported, "q8_0")
	must(t, cache.Begin([]int32{0}, []int32{0}))
	is(t, cache.Put(0, vectors(k, 1, kvHeads), Tensor{}), InvalidArgument, "v is null")
	must(t, cache.Put(0, vectors(k, 1, kvHeads), vectors(k, 1, kvHeads)))
	_, _, err = cache.Get(0)
	is(t, err, NotSupported, "kvc_get_codes")
	is(t, cache.GetCopy(0, vectors(nil, 0, kvHeads), Tensor{}), Shape, "k has shape [0, 2, 64]")
	is(t, cache.PutCodes(0, Tensor{}, Tensor{}, Tensor{}, Tensor{}), Shape, "k is Tensor{}")
	is(t, cache.PutCodes(0, vectors(k, 1, kvHeads), Tensor{}, Tensor{}, Tensor{}), Dtype, "k is f32")
	is(t, cache.PutCodes(0, Int8(codes, 1, kvHeads, storageDim), Tensor{}, Tensor{}, Tensor{}), Shape, "needs 128")
}

// The library is not told how many scales there are.
func TestScalesAreCountedByTheHeadsThatTheyAreFor(t *testing.T) {
	f8 := stored{dtype: F8E4M3}
	cache := f8.open(t)
	is(t, cache.BindScales(0, 1, boundScales[:1], nil), InvalidArgument, "kScales has 1 elements, not 2, one for each KV head")
	is(t, cache.BindScales(0, 1, nil, ones(3)), InvalidArgument, "vScales has 3 elements, not 2")
	is(t, cache.BindScales(0, 1, []float32{}, nil), InvalidArgument, "kScales has 0 elements")
	is(t, cache.BindScales(0, nLayers+1, boundScales, nil), InvalidArgument, "layer_end")
	is(t, cache.BindScales(0, 1, []float32{1, -1}, nil), InvalidArgument, "")
	must(t, cache.BindScales(0, 1, nil, boundScales))
	must(t, cache.BindScales(0, 1, nil, nil))
	fewer := testDesc()
	fewer.NKVHeads, fewer.HeadDimK, fewer.DTypeK, fewer.DTypeV, fewer.NLayers = 1, storageDim, F8E4M3, F8E4M3, 0
	more := fewer
	more.NKVHeads = 2
	model, err := NewHybrid(device(t), []Layer{{fewer, CausalDesc{}}, {more, CausalDesc{}}})
	must(t, err)
	defer model.Close()
	must(t, model.BindScales(1, 2, boundScales, nil))
	must(t, model.BindScales(0, 1, boundScales[:1], nil))
	is(t, model.BindScales(0, 2, boundScales, boundScales), InvalidArgument, "kScales has 2 elements, not 1")
}

func TestViewsOfCodesAreReadByTheirType(t *testing.T) {
	row := []uint16{0x0201, 0x0403}
	view := View{Data: pointer(row), DType: F16, Shape: [3]int{1, 1, 2}, Strides: [3]int{2, 2, 1}}
	equal(t, view.Bytes(0, 0), []byte{1, 2, 3, 4})
	panics(t, func() { view.Int8(0, 0) })
	view.DType = I8
	equal(t, view.Int8(0, 0), []int8{1, 2})
	panics(t, func() { view.Int8(1, 0) })
	panics(t, func() { View{}.Bytes(0, 0) })
	equal(t, view.AppendCells([]byte{9}, 0, 1), []byte{9, 1, 2})
	panics(t, func() { view.AppendCells(nil, 0, 2) })
	equal(t, View{}.AppendCells([]byte{9}, 0, 1), []byte{9})
	none := Bytes(0, nil, 3, 2, 0)
	equal(t, none.absent(), true)
}
