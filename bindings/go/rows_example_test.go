package kvc

import "fmt"

// Two prompts of different lengths in one batch, the shorter one padded on its right; then a token each.
func ExampleCache_BeginRows() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	const rows, heads, size = 2, 1, 8
	cache, _ := NewCache(device, CacheDesc{
		NLayers: 1, NKVHeads: heads, HeadDimK: size, MaxSequences: rows, Capacity: 16, MaxBatch: rows * 4,
	}, TransformerDesc{})
	defer cache.Close()

	for _, pass := range []struct {
		qLen  int
		valid []int32
	}{{4, []int32{4, 2}}, {1, nil}} {
		x := make([]float32, rows*pass.qLen*heads*size) // stands for k, v and q of the model
		out := make([]float32, len(x))
		batch := Float32(x, rows, pass.qLen, heads, size)
		_ = cache.BeginRows(pass.qLen, pass.valid)
		_ = cache.Put(0, batch, batch)
		_ = cache.Attention(0, batch, Float32(out, rows, pass.qLen, heads, size))
		_ = cache.Commit()
	}
	index := make([]int32, rows)
	_ = cache.RowsQuery(0, index, nil)
	fmt.Println(index)
	// Output: [5 3]
}
