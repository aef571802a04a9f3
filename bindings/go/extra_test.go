package kvc

import (
	"math"
	"reflect"
	"testing"
)

// A tree behind a prompt of three tokens: token 3, its children 4 and 5, and 6, a child of 4.
var parent = [...]int{-1, 0, 1, 2, 3, 3, 4}

func isBefore(ancestor, token int) bool {
	for token > ancestor {
		token = parent[token]
	}
	return token == ancestor
}

// rows returns a vector per head of each token.
func rows(kind, heads int, tokens []int) []float32 {
	var all []float32
	for _, token := range tokens {
		for i := 0; i < heads*headDim; i++ {
			all = append(all, float32(math.Sin(float64(token*31+i*7+kind*11))))
		}
	}
	return all
}

func begin(t *testing.T, cache *Cache, sequence, start int, tokens []int) {
	t.Helper()
	n := len(tokens)
	positions, sequences := make([]int32, n), make([]int32, n)
	for i := range positions {
		positions[i], sequences[i] = int32(start+i), int32(sequence)
	}
	must(t, cache.Begin(positions, sequences))
	must(t, cache.Put(0, kv(rows(0, kvHeads, tokens), n), kv(rows(1, kvHeads, tokens), n)))
}

func attend(t *testing.T, cache *Cache, tokens []int, extra AttentionExtra) []float32 {
	t.Helper()
	out := make([]float32, len(tokens)*qHeads*headDim)
	must(t, cache.AttentionWith(0, qo(rows(2, qHeads, tokens), len(tokens)), qo(out, len(tokens)), extra))
	return out
}

// PutAttentionWith takes the extras of AttentionWith and returns the same bits.
func TestPutAttentionWithExtras(t *testing.T) {
	cache := open(t)
	tokens := []int{0, 1, 2}
	begin(t, cache, 0, 0, tokens)
	_, columns, err := cache.History(0)
	must(t, err)
	bias, mask := make([]float32, 3*columns), make([]bool, 3*columns)
	for i := range bias {
		bias[i], mask[i] = float32(i)/4, i%2 == 0
	}
	type result struct{ out, weights, lse []float32 }
	extras := func() (result, AttentionExtra) {
		r := result{
			make([]float32, 3*qHeads*headDim), make([]float32, qHeads*3*columns), make([]float32, 3*qHeads),
		}
		return r, AttentionExtra{
			Bias: Float32(bias, 3, columns), Mask: Bool(mask, 3, columns),
			Weights: Float32(r.weights, qHeads, 3, columns), LSE: Float32(r.lse, 3, qHeads),
		}
	}
	q := qo(rows(2, qHeads, tokens), 3)
	k, v := kv(rows(0, kvHeads, tokens), 3), kv(rows(1, kvHeads, tokens), 3)
	want, extra := extras()
	must(t, cache.AttentionWith(0, q, qo(want.out, 3), extra))
	got, extra := extras()
	must(t, cache.PutAttentionWith(0, k, v, q, qo(got.out, 3), extra))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v is not %v", got, want)
	}
	if want.lse[0] == 0 || want.weights[0] == 0 || want.out[0] == 0 {
		t.Errorf("nothing was written: %v", want)
	}
	extra.Weights = Float32(nil, qHeads, 3, columns)
	is(t, cache.PutAttentionWith(0, k, v, q, qo(got.out, 3), extra), Shape, "Weights of shape")
}

// branch runs a whole pass and returns the result of its last token.
func branch(t *testing.T, cache *Cache, sequence, start int, tokens ...int) []float32 {
	t.Helper()
	begin(t, cache, sequence, start, tokens)
	out := attend(t, cache, tokens, AttentionExtra{})
	must(t, cache.Commit())
	return out[len(out)-qHeads*headDim:]
}

func TestTreeInOnePassIsItsBranches(t *testing.T) {
	cache := open(t)
	branch(t, cache, 0, 0, 0, 1, 2)
	var want [][]float32
	_, err := cache.CopyPrefix(0, 1, 3)
	must(t, err)
	want = append(want, branch(t, cache, 1, 3, 3), branch(t, cache, 1, 4, 4))
	last := branch(t, cache, 1, 5, 6)
	must(t, cache.Remove(1, 4, SeqEnd))
	want = append(want, branch(t, cache, 1, 4, 5), last)

	tree := []int{3, 4, 5, 6}
	begin(t, cache, 0, 3, tree)
	first, columns, err := cache.History(0)
	must(t, err)
	runs, err := cache.Runs(0, 0)
	must(t, err)
	mask := make([]bool, len(tree)*columns)
	for row, token := range tree {
		for _, run := range runs {
			for i := 0; i < int(run.Length); i++ {
				mask[row*columns+int(run.Cell)+i-first] = isBefore(int(run.Position)+i, token)
			}
		}
	}
	weights, lse := make([]float32, qHeads*len(mask)), make([]float32, len(tree)*qHeads)
	out := attend(t, cache, tree, AttentionExtra{
		Mask:    Bool(mask, len(tree), columns),
		Weights: Float32(weights, qHeads, len(tree), columns),
		LSE:     Float32(lse, len(tree), qHeads),
	})
	for i, got := range out {
		row := want[i/(qHeads*headDim)]
		if math.Abs(float64(got-row[i%len(row)])) > 1e-6 {
			t.Fatalf("token %d: %v, not %v", tree[i/(qHeads*headDim)], got, row[i%len(row)])
		}
	}
	for row := 0; row < qHeads*len(tree); row++ {
		sum := 0.0
		for c, weight := range weights[row*columns : (row+1)*columns] {
			if (weight > 0) != mask[row%len(tree)*columns+c] {
				t.Errorf("row %d has the weight %v in column %d", row, weight, c)
			}
			sum += float64(weight)
		}
		if math.Abs(sum-1) > 1e-6 || lse[row] == 0 {
			t.Errorf("row %d: weights of %v, log-sum-exp %v", row, sum, lse[row])
		}
	}
}

func TestBiasOfMinusInfinityIsAMask(t *testing.T) {
	cache := open(t)
	tokens := []int{0, 1, 2}
	begin(t, cache, 0, 0, tokens)
	_, columns, err := cache.History(0)
	must(t, err)
	mask, bias := make([]uint8, columns), make([]float32, columns) // of one row, for all heads and tokens
	for c := range mask {
		mask[c] = uint8(c % 2 * 255)
		if mask[c] == 0 {
			bias[c] = float32(math.Inf(-1))
		}
	}
	masked := attend(t, cache, tokens, AttentionExtra{Mask: Bool(mask, columns)})
	if !reflect.DeepEqual(masked, attend(t, cache, tokens, AttentionExtra{Bias: Float32(bias, columns)})) {
		t.Error("a bias of 0 and minus infinity is not the mask")
	}
	if reflect.DeepEqual(masked, attend(t, cache, tokens, AttentionExtra{})) {
		t.Error("the mask hides nothing")
	}
	for _, value := range attend(t, cache, tokens, AttentionExtra{Mask: Bool(make([]bool, columns), columns)}) {
		if value != 0 {
			t.Fatalf("a token that sees nothing returns %v", value)
		}
	}

	q, out := rows(2, qHeads, tokens), make([]float32, len(tokens)*qHeads*headDim)
	with := func(extra AttentionExtra) error { return cache.AttentionWith(0, qo(q, 3), qo(out, 3), extra) }
	is(t, with(AttentionExtra{Mask: Bool(mask[:0], 0)}), Shape, "mask has shape [0], not [3]")
	is(t, with(AttentionExtra{Bias: Bool(mask, columns)}), Dtype, "bias")
	is(t, with(AttentionExtra{Mask: Bool(mask, 3, columns)}), Shape, "slice has 3")
	is(t, with(AttentionExtra{LSE: Float32(nil, 0)}), Shape, "lse has shape [0], not [3, 4]")
	is(t, with(AttentionExtra{LSE: Float32(nil)}), Shape, "LSE has 0 dimensions")
	must(t, cache.Abort())
	_, _, err = cache.History(0)
	is(t, err, BadState, "pass")
}
