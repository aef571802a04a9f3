package kvc

import (
	"bytes"
	"fmt"
	"math"
	"testing"
)

const nRows, rowLength, qMost = 2, 8, 3

// rowsDesc describes a batch of rows of vectors of storageDim.
func rowsDesc(s stored) CacheDesc {
	desc := testDesc()
	desc.HeadDimK, desc.DTypeK, desc.DTypeV, desc.BlockK, desc.BlockV = storageDim, s.dtype, s.dtype, s.block, s.block
	desc.MaxSequences, desc.Capacity, desc.MaxBatch = nRows, rowLength, nRows*qMost
	if s.rotate {
		desc.Flags = RotateK | RotateV
	}
	return desc
}

func openRows(t testing.TB, s stored, kind TransformerDesc) *Cache {
	t.Helper()
	cache := openKind(t, rowsDesc(s), kind)
	if s.f8() {
		must(t, cache.BindScales(0, nLayers, boundScales, boundScales))
	}
	return cache
}

func batch(data []float32, qLen, heads int) Tensor {
	return Float32(data, nRows, qLen, heads, storageDim)
}

// A cache is built of the codes of another one, and of its numbers, as a whole.
func TestRowsOfEveryStorageTypeAreViewedAndFilled(t *testing.T) {
	valid, starts := []int32{3, 2}, []int32{1, 0}
	for _, storage := range everyStorage() {
		t.Run(fmt.Sprintf("%v,%d,%v", storage.dtype, storage.block, storage.rotate), func(t *testing.T) {
			cache := openRows(t, storage, TransformerDesc{})
			k, v := wave(nRows*qMost*kvHeads*storageDim, 1), wave(nRows*qMost*kvHeads*storageDim, 2)
			wantK, wantV := storage.encode(t, k), storage.encode(t, v)
			must(t, cache.BeginRows(qMost, valid))
			for layer := 0; layer < nLayers; layer++ {
				must(t, cache.Put(layer, batch(k, qMost, kvHeads), batch(v, qMost, kvHeads)))
			}
			lentK, lentV, err := cache.GetCodes(1)
			must(t, err)
			shape, _, err := cache.CopyShapes(1)
			must(t, err)
			equal(t, shape, []int{nRows, rowLength, kvHeads, storageDim})
			copied := make([]float32, nRows*rowLength*kvHeads*storageDim)
			must(t, cache.GetCopy(1, Tensor{}, Float32(copied, shape...)))
			for row, n := range valid {
				token, cell := row*qMost*kvHeads*storageDim, row*rowLength*kvHeads*storageDim
				end := int(n) * kvHeads * storageDim
				equal(t, copied[cell:cell+end], wantV.decoded[token:token+end])
			}
			must(t, cache.Commit())
			must(t, cache.RowsSet(0, nil, starts))

			viewK, viewV, err := cache.RowsView(1)
			must(t, err)
			equal(t, []View{viewK.Codes, viewK.Scales, viewV.Codes, viewV.Scales},
				[]View{lentK.Codes, lentK.Scales, lentV.Codes, lentV.Scales})
			equal(t, viewK.Codes.Shape, [3]int{nRows * rowLength, kvHeads, wantK.CodesPerRow})
			equal(t, viewK.Codes.Columns, rowLength)
			for row, n := range valid {
				for _, pair := range []struct {
					view View
					want []byte
				}{{viewK.Codes, wantK.codes}, {viewK.Scales, wantK.scales}, {viewV.Codes, wantV.codes}, {viewV.Scales, wantV.scales}} {
					got := pair.view.AppendCells(nil, row*pair.view.Columns, int(n))
					token := len(pair.want) / nRows * row
					if !bytes.Equal(got, pair.want[token:token+len(got)]) {
						t.Errorf("row %d stores %x, Encode writes %x", row, got, pair.want)
					}
				}
			}

			ofCodes, ofNumbers := openRows(t, storage, TransformerDesc{}), openRows(t, storage, TransformerDesc{})
			want, err := cache.Digest()
			must(t, err)
			for i, made := range []*Cache{ofCodes, ofNumbers} {
				must(t, made.BeginRows(qMost, valid))
				must(t, made.Commit())
				for layer := 0; layer < nLayers; layer++ {
					if i == 1 {
						must(t, made.RowsFill(layer, 0, nRows, batch(k, qMost, kvHeads), Tensor{}, batch(v, qMost, kvHeads), Tensor{}))
						continue
					}
					codes := func(view View) Tensor {
						if view.DType == 0 {
							return Tensor{}
						}
						return Bytes(view.DType, view.AppendCells(nil, 0, nRows*view.Columns), nRows, view.Columns, kvHeads, view.Shape[2])
					}
					must(t, made.RowsFill(layer, 0, nRows, codes(viewK.Codes), codes(viewK.Scales), Tensor{}, Tensor{}))
					must(t, made.RowsFill(layer, 0, nRows, Tensor{}, Tensor{}, codes(viewV.Codes), codes(viewV.Scales)))
				}
				must(t, made.RowsSet(0, nil, starts))
				got, err := made.Digest()
				must(t, err)
				equal(t, got, want)
			}
		})
	}
}

// Views flatten the rows, whatever lies between vectors.
func TestViewsOfRowsFindEachColumn(t *testing.T) {
	for _, kind := range []TransformerDesc{{}, {Ring: true}} {
		desc := rowsDesc(stored{dtype: F16})
		desc.Flags = Interleaved
		cache := openKind(t, desc, kind)
		columns := rowLength
		if kind.Ring {
			columns += qMost
		}
		for pass := 0; pass < 5; pass++ { // 15 positions, or 8
			if !kind.Ring && pass == 2 {
				break
			}
			k := make([]float32, nRows*qMost*kvHeads*storageDim)
			for i := range k { // the position of the token, and its row
				token := i / (kvHeads * storageDim)
				k[i] = float32(pass*qMost + token%qMost + 100*(token/qMost))
			}
			must(t, cache.BeginRows(qMost, nil))
			for layer := 0; layer < nLayers; layer++ {
				must(t, cache.Put(layer, batch(k, qMost, kvHeads), batch(k, qMost, kvHeads)))
			}
			_, lent, err := cache.Get(0)
			must(t, err)
			equal(t, lent.Columns, columns)
			for row := 0; row < nRows; row++ {
				for i := 0; i < qMost; i++ {
					position := pass*qMost + i
					bits := lent.Bits(row*columns+position%columns, 1)
					equal(t, bits[storageDim-1], halfBits(position+100*row))
				}
			}
		}
	}
}

// halfBits returns the bits of a whole number from 0 to 2048 in half precision.
func halfBits(n int) uint16 {
	if n == 0 {
		return 0
	}
	exponent := int(math.Log2(float64(n)))
	return uint16((exponent+15)<<10 | (n<<10>>exponent)&0x3ff)
}

// Row 0 has two tokens, row 1 one. NaN in the place of the others changes nothing.
func TestExtrasOfRows(t *testing.T) {
	cache := openRows(t, stored{dtype: F32}, TransformerDesc{MaskDType: Bool8})
	const qLen = 2
	k, v, q := wave(nRows*qLen*kvHeads*storageDim, 1), wave(nRows*qLen*kvHeads*storageDim, 2), wave(nRows*qLen*qHeads*storageDim, 3)
	for i := 3 * kvHeads * storageDim; i < len(k); i++ {
		k[i], v[i] = notANumber, notANumber
	}
	out, lse := make([]float32, len(q)), make([]float32, nRows*qLen*qHeads)
	weights := make([]float32, nRows*qHeads*qLen*rowLength)
	bias, hides := make([]float32, qLen*rowLength), make([]bool, nRows*qLen*rowLength)
	bias[rowLength] = 1 // of token 1 of each row, on column 0
	for i := range hides {
		hides[i] = true
	}
	must(t, cache.BeginRows(qLen, []int32{2, 1}))
	nTokens, history, dtype, err := cache.MaskShape(0)
	must(t, err)
	equal(t, []int{nTokens, history, int(dtype)}, []int{nRows * qLen, rowLength, int(Bool8)})
	mask := make([]bool, nRows*qLen*rowLength)
	must(t, cache.Mask(0, Bool(mask, nRows, 1, qLen, rowLength)))
	want := make([]bool, len(mask))
	want[0], want[rowLength], want[rowLength+1], want[2*rowLength] = true, true, true, true
	equal(t, mask, want)
	must(t, cache.PutAttentionWith(0, batch(k, qLen, kvHeads), batch(v, qLen, kvHeads), batch(q, qLen, qHeads), batch(out, qLen, qHeads),
		AttentionExtra{
			Bias: Float32(bias, qLen, rowLength), Mask: Bool(hides, nRows, 1, qLen, rowLength),
			Weights: Float32(weights, nRows, qHeads, qLen, rowLength), LSE: Float32(lse, nRows, qLen, qHeads),
		}))
	for head := 0; head < qHeads; head++ {
		row := q[(qHeads+head)*storageDim:][:storageDim]
		var scores [2]float64
		for j := range scores {
			for i, x := range row {
				scores[j] += float64(x) * float64(k[(j*kvHeads+head*kvHeads/qHeads)*storageDim+i]) / math.Sqrt(storageDim)
			}
		}
		sum := math.Log(math.Exp(scores[0]+1) + math.Exp(scores[1]))
		near(t, lse[qHeads+head], sum)
		at := (head*qLen + 1) * rowLength
		near(t, weights[at], math.Exp(scores[0]+1-sum))
		near(t, weights[at+1], math.Exp(scores[1]-sum))
		if padding := (nRows*qLen-1)*qHeads + head; out[padding*storageDim] != 0 || !math.IsInf(float64(lse[padding]), -1) {
			t.Errorf("padding gets %v and %v", out[padding*storageDim], lse[padding])
		}
	}
}

func near(t testing.TB, got float32, want float64) {
	t.Helper()
	if math.Abs(float64(got)-want) > 1e-5*(1+math.Abs(want)) {
		t.Errorf("%v is not near %v", got, want)
	}
}

func TestErrorsOfRows(t *testing.T) {
	cache := openRows(t, stored{dtype: F32}, TransformerDesc{})
	is(t, cache.Begin([]int32{0}, []int32{0}), NotSupported, "rows")
	is(t, cache.BindRope(0, nLayers, RopeDesc{}), NotSupported, "")
	is(t, open(t).BeginRows(1, nil), NotSupported, "rows")
	is(t, cache.BeginRows(0, nil), InvalidArgument, "q_len")
	is(t, cache.BeginRows(qMost+1, nil), InvalidArgument, "q_len")
	is(t, cache.BeginRows(1, []int32{1}), InvalidArgument, "valid has 1 elements, not 2, one for each row")
	is(t, cache.BeginRows(1, []int32{}), InvalidArgument, "valid has 0 elements, not 2")
	is(t, cache.FitsRows(1, []int32{2, 0}), InvalidArgument, "valid[0]")
	types := RowsExtra{TokenTypes: []int32{1, 1, 0}}
	is(t, cache.BeginRowsWith(2, nil, types), InvalidArgument, "TokenTypes has 3 elements, not 4")
	short := RowsExtra{AttentionMask: Bool(make([]bool, 3), 2, 2)}
	is(t, cache.BeginRowsWith(2, nil, short), Shape, "AttentionMask of shape [2 2] needs 4")
	wrong := RowsExtra{AttentionMask: Float32(make([]float32, 4), 2, 2)}
	is(t, cache.FitsRowsWith(2, nil, wrong), Dtype, "attention_mask is f32")
	is(t, cache.BeginRowsWith(2, nil, RowsExtra{PostPadded: true}), InvalidArgument, "attention_mask is null")
	must(t, cache.FitsRowsWith(qMost, nil, RowsExtra{Reserve: true}))
	must(t, cache.BeginRowsWith(qMost, nil, RowsExtra{Reserve: true}))
	stats, err := cache.Stats()
	must(t, err)
	equal(t, stats.State, Reserve)
	must(t, cache.Abort())

	must(t, cache.BeginRows(2, nil))
	is(t, cache.RowsSet(0, []int32{1}, nil), BadState, "put")
	is(t, cache.RowsFill(0, 0, nRows, Tensor{}, Tensor{}, Tensor{}, Tensor{}), BadState, "pass")
	must(t, cache.Commit())
	is(t, cache.RowsSet(0, []int32{1}, []int32{0, 0}), InvalidArgument, "index and starts have 1 and 2")
	is(t, cache.RowsSet(0, []int32{3}, nil), InvalidArgument, "index")
	is(t, cache.RowsSet(1, []int32{1, 1}, nil), InvalidArgument, "row")
	is(t, cache.RowsQuery(0, make([]int32, 3), nil), InvalidArgument, "row")
	is(t, cache.RowsQuery(1<<31, nil, nil), InvalidArgument, "rowBegin 2147483648 does not fit")
	_, _, err = cache.RowsView(nLayers)
	is(t, err, InvalidArgument, "layer 2")
	k := make([]float32, kvHeads*storageDim)
	is(t, cache.RowsFill(0, 0, nRows, batch(k, 1, kvHeads), Tensor{}, Tensor{}, Tensor{}), Shape, "k of shape")
	is(t, cache.RowsFill(0, 0, nRows, Float32(k, 1, 1, kvHeads, storageDim), Tensor{}, Tensor{}, Tensor{}), Shape, "k has shape")
	is(t, cache.Insert(cache, 0), InvalidArgument, "itself")
	is(t, cache.Insert(nil, 0), InvalidHandle, "")
	is(t, cache.Insert(open(t), 0), InvalidArgument, "")

	for positions := 2; positions < rowLength; positions += qMost {
		must(t, cache.BeginRows(qMost, []int32{1, qMost}))
		must(t, cache.Commit())
	}
	is(t, cache.BeginRows(1, nil), CacheFull, "row 1")
	must(t, cache.BeginRows(1, []int32{1, 0}))
}

func TestKindOfTransformerCaches(t *testing.T) {
	desc := rowsDesc(stored{dtype: F32})
	heads := openKind(t, desc, &TransformerDesc{ValueHeads: 1})
	must(t, heads.BeginRows(1, nil))
	k, v, q := ones(nRows*kvHeads*storageDim), ones(nRows*storageDim), ones(nRows*qHeads*storageDim)
	must(t, heads.Put(0, batch(k, 1, kvHeads), batch(v, 1, 1)))
	is(t, heads.Attention(0, batch(q, 1, qHeads), batch(ones(len(q)), 1, qHeads)), NotSupported, "value_heads")
	desc.MaxBatch = 1
	_, err := NewCache(device(t), desc, TransformerDesc{})
	is(t, err, InvalidArgument, "max_batch")

	// Windows beside full layers move as one batch of rows.
	desc = rowsDesc(stored{dtype: F16})
	desc.NLayers = 0
	full, window := Layer{desc, TransformerDesc{}}, Layer{desc, TransformerDesc{Reach: 2}}
	model, err := NewHybrid(device(t), []Layer{window, {desc, &TransformerDesc{Reach: 2}}, full})
	must(t, err)
	defer model.Close()
	children, err := model.Children()
	must(t, err)
	equal(t, len(children), 2)
	is(t, children[0].BeginRows(1, nil), BadState, "wrapper")
	is(t, model.BeginRows(1, []int32{1, 1, 1}), InvalidArgument, "valid has 3 elements, not 2")
	must(t, model.BeginRows(1, []int32{1, 0}))
	for layer := 0; layer < 3; layer++ {
		must(t, model.Put(layer, batch(k, 1, kvHeads), batch(k, 1, kvHeads)))
	}
	must(t, model.Commit())
	index := make([]int32, nRows)
	must(t, model.RowsQuery(0, index, nil))
	equal(t, index, []int32{1, 0})
}
