// A first program for kvc in Go. The programs in examples/c, examples/cpp and examples/rust do the
// same and print the same, byte for byte. Two conversations of a server share a prompt, one
// speculates, and one runs out of context:
//
//	PKG_CONFIG_PATH=<prefix>/lib/pkgconfig LD_LIBRARY_PATH=<prefix>/lib go run .
//
// A model would compute keys, values and queries and rotate keys and queries by RoPE; this program
// computes them by a formula.
package main

import (
	"errors"
	"fmt"
	"os"

	"kvc"
)

const layers, kvHeads, queryHeads, headDim, maxBatch = 2, 2, 4, 16, 8

// ---- What a model would compute --------------------------------------------------------------------------------------

type kind int

const (
	key kind = iota
	value
	query
)

// element returns a multiple of 1/8 between -2 and 2, which every storage type and language represents
// exactly.
func element(kind kind, layer, sequence, position, head, dim int) float32 {
	return float32((position*29+sequence*13+layer*7+head*5+dim*3+int(kind)*11)%33-16) / 8
}

// elements returns those of n consecutive positions: [n, heads, headDim].
func elements(kind kind, layer, sequence, position, n, heads int) kvc.Tensor {
	data := make([]float32, 0, n*heads*headDim)
	for token := 0; token < n; token++ {
		for head := 0; head < heads; head++ {
			for dim := 0; dim < headDim; dim++ {
				data = append(data, element(kind, layer, sequence, position+token, head, dim))
			}
		}
	}
	return kvc.Float32(data, n, heads, headDim)
}

// ---- Steps -----------------------------------------------------------------------------------------------------------

// must ends the program if a call failed.
func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
}

func printState(step string, cache *kvc.Cache) {
	digest, err := cache.Digest()
	must(err)
	fmt.Printf("%-14s %016x%016x\n", step, digest[0], digest[1])
}

// forward opens a pass of n tokens of one sequence and runs the layers; the caller ends the pass.
func forward(cache *kvc.Cache, sequence, position, n int) error {
	positions, sequences := make([]int32, n), make([]int32, n)
	for i := range positions {
		positions[i], sequences[i] = int32(position+i), int32(sequence)
	}
	if err := cache.Begin(positions, sequences); err != nil {
		return err
	}
	out := make([]float32, n*queryHeads*headDim)
	sum := 0.0
	for layer := 0; layer < layers; layer++ {
		k := elements(key, layer, sequence, position, n, kvHeads)
		v := elements(value, layer, sequence, position, n, kvHeads)
		q := elements(query, layer, sequence, position, n, queryHeads)
		if err := cache.Put(layer, k, v); err != nil {
			return err
		}
		if err := cache.Attention(layer, q, kvc.Float32(out, n, queryHeads, headDim)); err != nil {
			return err
		}
		for _, one := range out {
			sum += float64(one)
		}
	}
	fmt.Printf("%-14s sequence %d, positions %d to %d: sum %.3f\n", "attention", sequence, position, position+n-1, sum)
	return nil
}

func converse(cache *kvc.Cache) {
	must(forward(cache, 0, 0, 8))
	must(cache.Commit())
	printState("prompt", cache)
	for position := 8; position < 16; position++ {
		must(forward(cache, 0, position, 1))
		must(cache.Commit())
	}
	printState("decode", cache)

	// Another conversation starts with the same 12 tokens: it shares their cells.
	got, err := cache.CopyPrefix(0, 1, 12)
	must(err)
	fmt.Printf("%-14s continues at %d\n", "copy_prefix", got)
	printState("copy_prefix", cache)

	// Four tokens were guessed; the model accepts two.
	must(forward(cache, 1, 12, 4))
	printState("draft", cache)
	must(cache.CommitPrefix([]int32{1}, []int32{2}))
	printState("commit_prefix", cache)

	// Remove tokens in the middle: later ones move down and are read as if computed there.
	must(cache.Remove(0, 4, 8))
	printState("shift", cache)
	must(forward(cache, 0, 12, 1))
	must(cache.Commit())
	printState("after shift", cache)

	// The user edits the last message.
	got, err = cache.Resume(1, 13)
	must(err)
	fmt.Printf("%-14s continues at %d\n", "resume", got)
	printState("resume", cache)

	// The window slides; the sequence cannot continue from what has left it.
	for position := 13; position < 37; position += 8 {
		must(forward(cache, 0, position, 8))
		must(cache.Commit())
	}
	printState("slide", cache)
	if err = cache.Remove(0, 10, kvc.SeqEnd); errors.Is(err, kvc.WindowLost) {
		fmt.Printf("%-14s %v\n", "handled", err)
	}
	got, err = cache.CanResume(0, 10)
	must(err)
	fmt.Printf("%-14s could continue at %d\n", "can_resume", got)

	// A third conversation does not fit, so the second one is removed.
	for position := 0; position < 16; position += 8 {
		err = forward(cache, 2, position, 8)
		if errors.Is(err, kvc.CacheFull) {
			fmt.Printf("%-14s %v\n", "handled", err)
			must(cache.Remove(1, 0, kvc.SeqEnd))
			err = forward(cache, 2, position, 8)
		}
		must(err)
		must(cache.Commit())
	}
	printState("third", cache)
	printCounts(cache)
}

func printCounts(cache *kvc.Cache) {
	for sequence := 0; sequence < 3; sequence++ {
		info, err := cache.Sequence(sequence)
		must(err)
		fmt.Printf("%-14s %d: positions %d to %d, %d held\n", "sequence", sequence, info.First, info.Next, info.Count)
	}
	stats, err := cache.Stats()
	must(err)
	fmt.Printf("%-14s %d of %d cells used, %d shared, %d passes\n", "stats",
		stats.CellsUsed, stats.Cells, stats.CellsShared, stats.Passes)
	must(cache.Check())
}

func main() {
	device, err := kvc.OpenDevice("cpu", kvc.DeviceOptions{})
	must(err)
	cache, err := kvc.NewCache(device, kvc.CacheDesc{
		NLayers: layers, NKVHeads: kvHeads, HeadDimK: headDim, DTypeK: kvc.F16, DTypeV: kvc.F16,
		MaxSequences: 3, Capacity: 64, MaxBatch: maxBatch, MaxQHeads: queryHeads, Cells: 44,
	}, kvc.CausalDesc{Reach: 8, Memory: 16})
	must(err)
	must(cache.BindAttention(0, layers, kvc.AttentionDesc{NQHeads: queryHeads}))
	must(cache.BindRope(0, layers, kvc.RopeDesc{Pairs: kvc.Halves}))
	converse(cache)
	must(cache.Close())
	must(device.Close())
}
