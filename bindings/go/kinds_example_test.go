package kvc

import "fmt"

// Two sequences hear one recording: it is put once for each layer, and nothing is put for the tokens
// that follow.
func ExampleCache_EncoderShare() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	const length, heads, size = 1500, 2, 8
	cross, _ := NewCache(device, CacheDesc{
		NLayers: 1, NKVHeads: heads, HeadDimK: size, MaxSequences: 2, Capacity: length, MaxBatch: 4,
	}, EncoderDesc{})
	defer cross.Close()
	k, v := make([]float32, length*heads*size), make([]float32, length*heads*size)
	q, out := make([]float32, 2*heads*size), make([]float32, 2*heads*size)

	flags := []TokenFlags{CarriesInput, CarriesInput}
	_ = cross.BeginFlagged([]int32{0, 0}, []int32{0, 1}, flags)
	_ = cross.EncoderShare(1, 0)
	_ = cross.EncoderPut(0, 0, Float32(k, length, heads, size), Float32(v, length, heads, size))
	_ = cross.Attention(0, Float32(q, 2, heads, size), Float32(out, 2, heads, size))
	_ = cross.Commit()

	_ = cross.Begin([]int32{1, 1}, []int32{0, 1})
	_ = cross.Attention(0, Float32(q, 2, heads, size), Float32(out, 2, heads, size))
	_ = cross.Commit()
	stats, _ := cross.Stats()
	fmt.Println(cross.EncoderQuery(1))
	fmt.Println(stats.CellsUsed, "positions are stored, and shared:", stats.CellsShared)
	// Output:
	// 0 1500 <nil>
	// 1500 positions are stored, and shared: 1500
}

// A running sum stands for the recurrence of a model. The pass drafts two tokens, of which one is kept.
func ExampleCache_StateGet() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	cache, _ := NewCache(device, CacheDesc{NLayers: 1, MaxSequences: 1, MaxBatch: 4},
		RecurrentDesc{StateSize: 1, DraftStates: 1})
	defer cache.Close()

	sum, rows := []float32{0}, make([]float32, 2)
	_ = cache.Begin([]int32{0, 1}, []int32{0, 0})
	_ = cache.StateGet(0, Recurrent, Float32(sum, 1, 1))
	for i, token := range []float32{5, 7} {
		sum[0] += token
		rows[i] = sum[0]
	}
	_ = cache.StatePut(0, Recurrent, Float32(rows, 2, 1))
	_ = cache.CommitPrefix([]int32{0}, []int32{1})

	_ = cache.StateGather(0, Recurrent, 0, 1, Float32(sum, 1))
	fmt.Println(sum)
	// Output: [5]
}

// Gated delta rules beside full attention, three to one: one cache, whose layer i is the model's.
func ExampleNewHybrid() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	full := Layer{CacheDesc{
		NKVHeads: 2, HeadDimK: 8, MaxSequences: 4, Capacity: 1024, MaxBatch: 64,
	}, CausalDesc{}}
	delta := Layer{CacheDesc{MaxSequences: 4, MaxBatch: 64}, RecurrentDesc{
		StateSize: 4 * 8 * 8, ConvChannels: 96, ConvDim: 3, CheckpointMinPos: None,
	}}
	model, _ := NewHybrid(device, []Layer{delta, delta, delta, full, delta, delta, delta, full})
	defer model.Close()

	k, v := make([]float32, 2*8), make([]float32, 2*8)
	state, x := make([]float32, 4*8*8), make([]float32, 96)
	_ = model.Begin([]int32{0}, []int32{0})
	for layer := 0; layer < 8; layer++ {
		if layer%4 == 3 {
			_ = model.Put(layer, Float32(k, 1, 2, 8), Float32(v, 1, 2, 8))
			continue
		}
		_ = model.StateGet(layer, Recurrent, Float32(state, 1, 4, 8, 8))
		_ = model.StatePut(layer, Recurrent, Float32(state, 1, 4, 8, 8))
		_ = model.StateConv(layer, Float32(x, 1, 96))
	}
	_ = model.Commit()
	children, _ := model.Children()
	fmt.Println(len(children), "caches")
	fmt.Println(model.CanResume(0, 9))
	// Output:
	// 2 caches
	// 1 <nil>
}
