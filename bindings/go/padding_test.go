package kvc

import (
	"math"
	"reflect"
	"testing"
)

var notANumber = float32(math.NaN())

// padded spreads rows over a batch; rows of padding hold NaN.
func padded(rows []float32, sequences []int32) []float32 {
	count := 0
	for _, sequence := range sequences {
		if sequence != None {
			count++
		}
	}
	width := len(rows) / count
	var all []float32
	for _, sequence := range sequences {
		if sequence == None {
			for i := 0; i < width; i++ {
				all = append(all, notANumber)
			}
			continue
		}
		all, rows = append(all, rows[:width]...), rows[width:]
	}
	return all
}

// attendAll runs one layer of an open pass and returns the output and the log-sum-exp.
func attendAll(t *testing.T, cache *Cache, k, v, q []float32, n int) (out, lse []float32) {
	t.Helper()
	out, lse = make([]float32, n*qHeads*headDim), make([]float32, n*qHeads)
	extra := AttentionExtra{LSE: Float32(lse, n, qHeads)}
	must(t, cache.PutAttentionWith(0, kv(k, n), kv(v, n), qo(q, n), qo(out, n), extra))
	return out, lse
}

func TestPaddingChangesNoBit(t *testing.T) {
	plain, with := open(t), open(t)
	real := []int{0, 1, 2}
	k, v, q := rows(0, kvHeads, real), rows(1, kvHeads, real), rows(2, qHeads, real)
	must(t, plain.Begin([]int32{0, 1, 2}, []int32{0, 0, 0}))
	want, wantLSE := attendAll(t, plain, k, v, q, 3)

	positions, sequences := []int32{-7, 0, 1, 0, 2}, []int32{None, 0, 0, None, 0}
	must(t, with.Fits(positions, sequences))
	must(t, with.Begin(positions, sequences))
	out, lse := attendAll(t, with, padded(k, sequences), padded(v, sequences), padded(q, sequences), 5)
	kept, keptLSE := out[:0:0], lse[:0:0]
	for i, sequence := range sequences {
		row, rowLSE := out[i*qHeads*headDim:(i+1)*qHeads*headDim], lse[i*qHeads:(i+1)*qHeads]
		if sequence != None {
			kept, keptLSE = append(kept, row...), append(keptLSE, rowLSE...)
		} else if row[0] != 0 || !math.IsInf(float64(rowLSE[0]), -1) {
			t.Errorf("padding at %d: output %v, log-sum-exp %v", i, row[0], rowLSE[0])
		}
	}
	if !reflect.DeepEqual(kept, want) || !reflect.DeepEqual(keptLSE, wantLSE) {
		t.Error("padding changes the result of other tokens")
	}
	must(t, plain.Commit())
	must(t, with.Commit())
	a, err := plain.Digest()
	must(t, err)
	b, err := with.Digest()
	must(t, err)
	if a != b {
		t.Error("padding changes the state")
	}
	must(t, with.Check())
}

func TestPaddingAlone(t *testing.T) {
	cache := open(t)
	flags := []TokenFlags{SeesLater, 0}
	is(t, cache.BeginFlagged([]int32{0, 0}, []int32{None, None}, flags), InvalidArgument, "padding")
	must(t, cache.Begin([]int32{0, 0}, []int32{None, None}))
	_, columns, err := cache.History(0)
	must(t, err)
	if columns != 0 {
		t.Errorf("a pass of padding has %d columns", columns)
	}
	must(t, cache.Mask(0, Float32(nil, 2, 0)))
	k, v, q, out := arrays(2)
	out[0] = 1
	extra := AttentionExtra{Bias: Float32(nil, qHeads, 2, 0), Mask: Bool([]bool{}, 2, 0)}
	must(t, cache.PutAttentionWith(0, kv(k, 2), kv(v, 2), qo(q, 2), qo(out, 2), extra))
	if out[0] != 0 {
		t.Errorf("padding gets %v", out[0])
	}
	must(t, cache.Begin([]int32{0}, []int32{0})) // ends a pass of padding without a put of layer 1
}
