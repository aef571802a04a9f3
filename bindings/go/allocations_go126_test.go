//go:build go1.26

package kvc

import "testing"

// Older compilers move arguments of foreign calls to the heap.
func TestHotCallsAllocateNothing(t *testing.T) {
	cache := open(t)
	k, v, q, out := arrays(1)
	positions, sequences, mask := []int32{0}, []int32{0}, []bool{true}
	allocations := testing.AllocsPerRun(100, func() {
		must(t, cache.Begin(positions, sequences))
		for layer := 0; layer < nLayers; layer++ {
			must(t, cache.Put(layer, kv(k, 1), kv(v, 1)))
			must(t, cache.Attention(layer, qo(q, 1), qo(out, 1)))
			must(t, cache.PutAttention(layer, kv(k, 1), kv(v, 1), qo(q, 1), qo(out, 1)))
			must(t, cache.AttentionWith(layer, qo(q, 1), qo(out, 1), AttentionExtra{Mask: Bool(mask, 1)}))
		}
		must(t, cache.Abort())
	})
	if allocations != 0 {
		t.Errorf("%v allocations in a pass", allocations)
	}
}
