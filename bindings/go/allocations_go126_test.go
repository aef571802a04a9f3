//go:build go1.26

package kvc

import "testing"

// Older compilers move some arguments of foreign calls to the heap.
func TestHotCallsAllocateNothing(t *testing.T) {
	cache := open(t)
	k, v, q, out := arrays(1)
	positions, sequences, flags := []int32{0}, []int32{0}, []TokenFlags{0}
	mask, lse := []bool{true}, make([]float32, qHeads)
	allocations := testing.AllocsPerRun(100, func() {
		must(t, cache.FitsFlagged(positions, sequences, flags))
		must(t, cache.Begin(positions, sequences))
		for layer := 0; layer < nLayers; layer++ {
			must(t, cache.Put(layer, kv(k, 1), kv(v, 1)))
			must(t, cache.Attention(layer, qo(q, 1), qo(out, 1)))
			must(t, cache.PutAttention(layer, kv(k, 1), kv(v, 1), qo(q, 1), qo(out, 1)))
			extra := AttentionExtra{Mask: Bool(mask, 1), LSE: Float32(lse, 1, qHeads)}
			must(t, cache.AttentionWith(layer, qo(q, 1), qo(out, 1), extra))
			must(t, cache.PutAttentionWith(layer, kv(k, 1), kv(v, 1), qo(q, 1), qo(out, 1), extra))
			must(t, cache.Mask(layer, Bool(mask, 1, 1)))
		}
		must(t, cache.Abort())
	})
	if allocations != 0 {
		t.Errorf("%v allocations in a pass", allocations)
	}
}

func TestPassesOverCodesAllocateNothing(t *testing.T) {
	cache := stored{dtype: Q8_0}.open(t)
	x, q, out := ones(kvHeads*storageDim), ones(qHeads*storageDim), ones(qHeads*storageDim)
	codes, scales := make([]int8, kvHeads*storageDim), make([]uint16, kvHeads*2)
	positions, sequences := []int32{0}, []int32{0}
	allocations := testing.AllocsPerRun(100, func() {
		must(t, cache.Begin(positions, sequences))
		for layer := 0; layer < nLayers; layer++ {
			must(t, cache.PutAttention(layer, vectors(x, 1, kvHeads), vectors(x, 1, kvHeads), vectors(q, 1, qHeads), vectors(out, 1, qHeads)))
			k, _, _ := cache.GetCodes(layer)
			copy(codes, k.Codes.Int8(0, 0))
			copy(scales, k.Scales.Bits(0, 0))
			must(t, cache.GetCopy(layer, vectors(x, 1, kvHeads), Tensor{}))
			of := Int8(codes, 1, kvHeads, storageDim)
			by := Float16(scales, 1, kvHeads, 2)
			must(t, cache.PutCodes(layer, of, by, of, by))
		}
		must(t, cache.Abort())
	})
	if allocations != 0 {
		t.Errorf("%v allocations in a pass", allocations)
	}
}

func TestPassesOfRowsAllocateNothing(t *testing.T) {
	cache := openRows(t, stored{dtype: F16}, TransformerDesc{})
	k, q, out := ones(nRows*kvHeads*storageDim), ones(nRows*qHeads*storageDim), ones(nRows*qHeads*storageDim)
	valid, types, mask, seen := []int32{1, 0}, []int32{1, 0}, []int32{1, 0}, make([]bool, nRows*rowLength)
	index, starts := make([]int32, nRows), make([]int32, nRows)
	allocations := testing.AllocsPerRun(100, func() {
		extra := RowsExtra{AttentionMask: Int32(mask, nRows, 1), TokenTypes: types}
		must(t, cache.FitsRowsWith(1, valid, extra))
		must(t, cache.BeginRowsWith(1, valid, extra))
		for layer := 0; layer < nLayers; layer++ {
			must(t, cache.PutAttention(layer, batch(k, 1, kvHeads), batch(k, 1, kvHeads), batch(q, 1, qHeads), batch(out, 1, qHeads)))
			must(t, cache.Mask(layer, Bool(seen, nRows, 1, 1, rowLength)))
			view, _, _ := cache.RowsView(layer)
			_ = view.Codes.Bits(rowLength, 1)
		}
		must(t, cache.RowsQuery(0, index, starts))
		must(t, cache.RowsSet(0, starts, starts))
		must(t, cache.RowsFill(0, 0, nRows, batch(k, 1, kvHeads), Tensor{}, Tensor{}, Tensor{}))
	})
	if allocations != 0 {
		t.Errorf("%v allocations in a pass", allocations)
	}
}

func TestPassesOfLightningCachesAllocateNothing(t *testing.T) {
	shape := testLightning
	cache := openLightning(t, shape)
	k, v, q, out, _ := shape.tensors(1, 2)
	positions, sequences := []int32{0, 0}, []int32{0, 1}
	state := make([]float32, 2*2*3*5)
	allocations := testing.AllocsPerRun(100, func() {
		must(t, cache.Begin(positions, sequences))
		for layer := range shape.Slope {
			must(t, cache.PutAttention(layer, k, v, q, out))
			must(t, cache.Attention(layer, q, out))
			must(t, cache.LightningRead(layer, 0, 2, Float32(state, 2, 2, 3, 5)))
		}
		must(t, cache.Abort())
	})
	if allocations != 0 {
		t.Errorf("%v allocations in a pass", allocations)
	}
}

func TestOperatorsAllocateNothing(t *testing.T) {
	device := device(t)
	op := newOperator(t, device, "flash", forwardBounds())
	dropping := newOperator(t, device, "vanilla", OperatorDesc{DropoutProb: 0.5})
	cache := open(t)
	q, k, out := ones(forwardHeads*forwardSize), ones(2*forwardSize), ones(forwardHeads*forwardSize)
	sinks, lse, lse2 := ones(forwardHeads), make([]float32, forwardHeads), make([]float32, forwardHeads)
	x, y, z := ones(qHeads*headDim), ones(kvHeads*headDim), ones(qHeads*headDim)
	kept, positions := make([]bool, 4), []int32{0, 1}
	result := Float32(out, 1, 1, forwardHeads, forwardSize)
	allocations := testing.AllocsPerRun(100, func() {
		must(t, op.ForwardWith(ForwardDesc{Causal: true, Sinks: sinks}, Float32(q, 1, 1, forwardHeads, forwardSize),
			Float32(k, 1, 2, 1, forwardSize), Float32(k, 1, 2, 1, forwardSize), result, AttentionExtra{LSE: Float32(lse, 1, 1, forwardHeads)}))
		must(t, MergeAttention(result, Float32(lse, 1, 1, forwardHeads), Float32(q, 1, 1, forwardHeads, forwardSize), Float32(lse2, 1, 1, forwardHeads)))
		must(t, ApplySinks(result, Float32(lse, 1, 1, forwardHeads), sinks))
		must(t, RepeatKVHeads(Float32(k, 2, 1, forwardSize), 2, Float32(q, 2, 2, forwardSize)))
		must(t, DropoutMask(1, 0.5, 0, 0, positions, positions, Bool(kept, 1, 2, 2)))
		_, _ = ModeOf(result, true)
		must(t, cache.BindOperator(0, nLayers, ModeTrain, dropping))
		must(t, cache.Begin(positions[:1], positions[:1]))
		must(t, cache.PutAttentionWith(0, kv(y, 1), kv(y, 1), qo(x, 1), qo(z, 1), AttentionExtra{Dropout: true, DropoutSeed: 3}))
		must(t, cache.Abort())
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

func TestPassesOfOtherKindsAllocateNothing(t *testing.T) {
	cross := openKind(t, testDesc(), EncoderDesc{})
	states := openKind(t, statesDesc(1), testStates())
	k, v, q, out := arrays(1)
	positions, sequences, flags := []int32{0}, []int32{0}, []TokenFlags{CarriesInput}
	layout, order, slots, state, x := make([]StateSequence, 1), make([]int32, 8), make([]int32, 1), ones(6), ones(2)
	allocations := testing.AllocsPerRun(100, func() {
		must(t, cross.BeginFlagged(positions, sequences, flags))
		for layer := 0; layer < nLayers; layer++ {
			must(t, cross.EncoderPut(layer, 0, kv(k, 1), kv(v, 1)))
			must(t, cross.Attention(layer, qo(q, 1), qo(out, 1)))
		}
		_, _, _ = cross.EncoderQuery(0)
		must(t, cross.Abort())
		must(t, states.Begin(positions, sequences))
		_, _ = states.StateLayout(layout, order)
		must(t, states.StateGet(0, Recurrent, Float32(state, 1, 6)))
		must(t, states.StatePut(0, Recurrent, Float32(state, 1, 6)))
		must(t, states.StateConv(0, Float32(x, 1, 2)))
		view, _ := states.StateView(0, Recurrent)
		_, _ = states.StateSlots(slots)
		view.Float32(int(slots[0]))[0] = 1
		must(t, states.StateDone(0, Recurrent))
		must(t, states.Abort())
	})
	if allocations != 0 {
		t.Errorf("%v allocations in a pass", allocations)
	}
}
