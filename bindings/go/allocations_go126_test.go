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
