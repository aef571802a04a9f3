package kvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"testing"
)

type lightningCache struct {
	MaxSequences       int32 `json:"max_sequences"`
	Heads              int32
	QHeads             int32 `json:"q_heads"`
	HeadDimK           int32 `json:"head_dim_k"`
	HeadDimV           int32 `json:"head_dim_v"`
	Slope              [][]float32
	Checkpoints        int32
	CheckpointInterval int32 `json:"checkpoint_interval"`
	CheckpointMinPos   int32 `json:"checkpoint_min_pos"`
	DraftStates        int32 `json:"draft_states"`
	Scale              float32
}

// lightningStep is a call on a lightning cache, and what it must do.
type lightningStep struct {
	Op, Status    string
	Position      []int32
	Sequence      json.RawMessage // a number or a list
	Masked        []int
	Salt          uint32
	Out           [][][][]float64
	Keep          []int32
	Want, Got     int
	Src, Dst, Len int
	Next          []int
	Checkpoints   [][]int32
	State         [][][]float64
}

// numbered returns the inputs of the vectors: exact in float32.
func numbered(salt uint32, n int) []float32 {
	all := make([]float32, n)
	for i := range all {
		all[i] = float32((uint32(i+1)*2654435761+salt*2246822519)>>16)/32768 - 1
	}
	return all
}

func openLightning(t testing.TB, shape lightningCache) *Cache {
	t.Helper()
	cache := openKind(t, CacheDesc{
		NLayers: int32(len(shape.Slope)), NKVHeads: shape.Heads, HeadDimK: shape.HeadDimK, HeadDimV: shape.HeadDimV,
		MaxSequences: shape.MaxSequences, MaxBatch: 64, MaxQHeads: shape.QHeads,
	}, &LightningDesc{
		Checkpoints: shape.Checkpoints, CheckpointInterval: shape.CheckpointInterval,
		CheckpointMinPos: shape.CheckpointMinPos, DraftStates: shape.DraftStates,
	})
	for layer, slopes := range shape.Slope {
		must(t, cache.BindDecay(layer, layer+1, slopes))
	}
	must(t, cache.BindAttention(0, len(shape.Slope), AttentionDesc{NQHeads: shape.QHeads, Scale: shape.Scale}))
	return cache
}

// lightningTensors makes k, v, q and out of n tokens.
func (shape *lightningCache) tensors(salt uint32, n int) (k, v, q, out Tensor, outputs []float32) {
	heads, queries, dk, dv := int(shape.Heads), int(shape.QHeads), int(shape.HeadDimK), int(shape.HeadDimV)
	outputs = make([]float32, n*queries*dv)
	return Float32(numbered(salt, n*heads*dk), n, heads, dk), Float32(numbered(salt+1, n*heads*dv), n, heads, dv),
		Float32(numbered(salt+2, n*queries*dk), n, queries, dk), Float32(outputs, n, queries, dv), outputs
}

func playLightning(t *testing.T, cache *Cache, shape *lightningCache, step *lightningStep) (got int, err error) {
	switch step.Op {
	case "begin":
		flags := make([]TokenFlags, len(step.Position))
		for i, masked := range step.Masked {
			if masked != 0 {
				flags[i] = Masked
			}
		}
		if err := cache.BeginFlagged(step.Position, numbersOf(t, step.Sequence), flags); err != nil {
			return 0, err
		}
		for layer := range shape.Slope {
			k, v, q, out, outputs := shape.tensors(step.Salt+3*uint32(layer), len(flags))
			must(t, cache.Put(layer, k, v))
			must(t, cache.Attention(layer, q, out))
			put := append([]float32(nil), outputs...)
			must(t, cache.PutAttention(layer, k, v, q, out))
			equal(t, outputs, put)
			i := 0
			for _, token := range step.Out[layer] {
				for _, head := range token {
					for _, want := range head {
						near(t, outputs[i], want)
						i++
					}
				}
			}
		}
		return 0, nil
	case "commit":
		return 0, cache.Commit()
	case "abort":
		return 0, cache.Abort()
	case "commit_prefix":
		return 0, cache.CommitPrefix(numbersOf(t, step.Sequence), step.Keep)
	case "checkpoint_take":
		return 0, cache.CheckpointTake(numberOf(t, step.Sequence))
	case "resume":
		return cache.Resume(numberOf(t, step.Sequence), step.Want)
	case "can_resume":
		return cache.CanResume(numberOf(t, step.Sequence), step.Want)
	case "copy_prefix":
		return cache.CopyPrefix(step.Src, step.Dst, step.Len)
	}
	t.Fatalf("no call is called %s", step.Op)
	return 0, nil
}

func TestVectorsOfLightningCaches(t *testing.T) {
	var all struct {
		Lightning []struct {
			Name  string
			Cache lightningCache
			Steps []lightningStep
		}
	}
	readVectors(t, "lightning.json", &all)
	equal(t, len(all.Lightning), 28)
	for _, script := range all.Lightning {
		shape := script.Cache
		cache := openLightning(t, shape)
		for i := range script.Steps {
			step := &script.Steps[i]
			t.Run(fmt.Sprintf("%s/%d %s", script.Name, i, step.Op), func(t *testing.T) {
				got, err := playLightning(t, cache, &shape, step)
				status := "OK"
				var failed *Error
				if errors.As(err, &failed) {
					status = failed.Status.String()
				}
				if status != step.Status || err == nil && got != step.Got {
					t.Fatalf("returns %d, %v", got, err)
				}
				must(t, cache.Check())
				size := int(shape.Heads * shape.HeadDimK * shape.HeadDimV)
				state := make([]float32, size)
				for sequence, next := range step.Next {
					info, err := cache.Sequence(sequence)
					must(t, err)
					equal(t, info.Next, next)
					at, err := cache.CheckpointList(sequence)
					must(t, err)
					equal(t, append([]int32{}, at...), step.Checkpoints[sequence])
					for layer := 0; step.State != nil && layer < len(shape.Slope); layer++ {
						into := Float32(state, 1, int(shape.Heads), int(shape.HeadDimK), int(shape.HeadDimV))
						must(t, cache.LightningRead(layer, sequence, 1, into))
						for j, want := range step.State[sequence][layer] {
							near(t, state[j], want)
						}
					}
				}
			})
		}
	}
}

func TestSlopes(t *testing.T) {
	var all struct {
		Slopes []struct {
			Family               string
			Heads, Layer, Layers int
			Slopes               string // 8 hexadecimal digits for the bits of each
		}
	}
	readVectors(t, "lightning.json", &all)
	equal(t, len(all.Slopes), 10)
	for _, test := range all.Slopes {
		for family := SlopesALiBi; family <= SlopesLinear; family++ {
			if family.String() != test.Family {
				continue
			}
			slopes := make([]float32, test.Heads)
			must(t, Slopes(family, test.Layer, test.Layers, slopes))
			text := ""
			for _, slope := range slopes {
				text += fmt.Sprintf("%08s", strconv.FormatUint(uint64(math.Float32bits(slope)), 16))
			}
			equal(t, text, test.Slopes)
		}
	}
	slopes := make([]float32, 2)
	is(t, Slopes(0, 0, 1, slopes), InvalidArgument, "family 0")
	is(t, Slopes(SlopesLinear, 1, 1, slopes), InvalidArgument, "layer")
	is(t, Slopes(SlopesALiBi, 0, 1, nil), InvalidArgument, "n_heads")
	is(t, Slopes(SlopesALiBi, 1<<40, 1, slopes), InvalidArgument, "layer 1099511627776 does not fit")
}

var testLightning = lightningCache{
	MaxSequences: 2, Heads: 2, QHeads: 4, HeadDimK: 3, HeadDimV: 5, Slope: [][]float32{{0.5, 0}, {0.25, 1}},
	CheckpointInterval: None,
}

// A row of a batch does what the sequence does as a list, bit for bit; states are handed on.
func TestRowsOfALightningCache(t *testing.T) {
	shape := testLightning
	list, rows, other := openLightning(t, shape), openLightning(t, shape), openLightning(t, shape)
	const qLen = 3
	k, v, q, _, want := shape.tensors(7, 2*qLen)
	must(t, list.BeginFlagged([]int32{0, 1, 2, 0, 1, 0}, []int32{0, 0, 0, 1, 1, None}, []TokenFlags{0, Masked, 0, 0, 0, 0}))
	mask := Bool([]bool{true, false, true, true, true, true}, 2, qLen)
	must(t, rows.BeginRowsWith(qLen, []int32{3, 2}, RowsExtra{AttentionMask: mask}))
	out := make([]float32, len(want))
	reshaped := func(x Tensor) Tensor { // [2, qLen, …]
		x.shape, x.ndim = [maxDims]int{2, qLen, x.shape[1], x.shape[2]}, maxDims
		return x
	}
	for layer := range shape.Slope {
		must(t, list.PutAttention(layer, k, v, q, Float32(want, 2*qLen, int(shape.QHeads), int(shape.HeadDimV))))
		must(t, rows.PutAttention(layer, reshaped(k), reshaped(v), reshaped(q), Float32(out, 2, qLen, int(shape.QHeads), int(shape.HeadDimV))))
		equal(t, out, want)
	}
	must(t, list.Commit())
	must(t, rows.Commit())
	a, err := list.Digest()
	must(t, err)
	b, err := rows.Digest()
	must(t, err)
	equal(t, a, b)

	must(t, other.BeginRows(1, nil))
	must(t, other.Commit())
	must(t, other.RowsSet(0, []int32{3, 2}, nil)) // labels of time
	states := func(data []float32) Tensor {
		return Float32(data, 2, int(shape.Heads), int(shape.HeadDimK), int(shape.HeadDimV))
	}
	data := make([]float32, 2*shape.Heads*shape.HeadDimK*shape.HeadDimV)
	for layer := range shape.Slope {
		must(t, rows.LightningRead(layer, 0, 2, states(data)))
		must(t, other.LightningWrite(layer, 0, 2, states(data)))
	}
	c, err := other.Digest()
	must(t, err)
	equal(t, c, a)
	must(t, other.RowsSet(0, []int32{0, 0}, nil))
	must(t, other.Insert(rows, 0))
	c, err = other.Digest()
	must(t, err)
	equal(t, c, a)
}

func TestErrorsOfLightningCaches(t *testing.T) {
	shape := testLightning
	cache := openLightning(t, shape)
	is(t, cache.BindDecay(0, 2, []float32{1}), InvalidArgument, "slopes has 1 elements, not 2, one for each KV head")
	is(t, cache.BindDecay(0, 2, nil), InvalidArgument, "slopes")
	is(t, cache.BindDecay(0, 3, []float32{1, 1}), InvalidArgument, "layer")
	is(t, cache.BindDecay(0, 2, []float32{1, -1}), InvalidArgument, "slopes[1] is -1")
	is(t, open(t).BindDecay(0, 1, []float32{1, 1}), NotSupported, "lightning")
	is(t, open(t).BeginFlagged([]int32{0}, []int32{0}, []TokenFlags{Masked}), InvalidArgument, "token_flags[0]")
	is(t, cache.BindAttention(0, 2, AttentionDesc{NQHeads: 4, Softcap: 1}), NotSupported, "softcap")
	k, v, q, out, _ := shape.tensors(1, 1)
	must(t, cache.Begin([]int32{0}, []int32{0}))
	is(t, cache.BindDecay(0, 2, []float32{1, 1}), BadState, "pass")
	is(t, cache.Attention(0, q, out), BadState, "put")
	must(t, cache.Put(0, k, v))
	lse := AttentionExtra{LSE: Float32(make([]float32, 4), 1, 4)}
	is(t, cache.AttentionWith(0, q, out, lse), NotSupported, "log-sum-exp")
	_, _, err := cache.Get(0)
	is(t, err, NotSupported, "")
	state := make([]float32, 2*3*5)
	into := Float32(state, 1, 2, 3, 5)
	is(t, cache.LightningWrite(0, 0, 1, into), BadState, "pass")
	is(t, cache.LightningRead(0, 0, 2, into), Shape, "state has shape [1, 2, 3, 5], not [2, 2, 3, 5]")
	is(t, cache.LightningRead(0, 0, 1, Float32(state[:7], 1, 2, 3, 5)), Shape, "into of shape [1 2 3 5] needs 30")
	is(t, cache.LightningRead(0, 0, 1, Tensor{}), Shape, "into is Tensor{}")
	must(t, cache.Abort())
	is(t, cache.LightningWrite(0, 0, 1, into), BadState, "empty")

	fused := openKind(t, CacheDesc{NLayers: 1, NKVHeads: 2, HeadDimK: 3, HeadDimV: 5, MaxSequences: 1, MaxBatch: 1}, LightningDesc{Checkpoints: None, Fused: true})
	must(t, fused.BindDecay(0, 1, []float32{1, 1}))
	must(t, fused.Begin([]int32{0}, []int32{0}))
	must(t, fused.PutAttention(0, k, v, q, out))
	is(t, fused.Attention(0, q, out), NotSupported, "FUSED")

	without := openKind(t, CacheDesc{NLayers: 1, NKVHeads: 2, HeadDimK: 3, HeadDimV: 5, MaxSequences: 1, MaxBatch: 1}, LightningDesc{Checkpoints: None})
	must(t, without.Begin([]int32{0}, []int32{0}))
	is(t, without.Put(0, k, v), BadState, "slopes")
	desc := CacheDesc{NLayers: 1, NKVHeads: 1, HeadDimK: 1, MaxSequences: 1, MaxBatch: 1}
	_, err = NewCache(device(t), desc, LightningDesc{Block: 1025})
	is(t, err, InvalidArgument, "block")
	desc.Capacity = 1
	_, err = NewCache(device(t), desc, LightningDesc{})
	is(t, err, InvalidArgument, "capacity")
}

// Linear attention beside full attention, by the numbers of the model's layers.
func TestHybridWithLightningLayers(t *testing.T) {
	linear := CacheDesc{NKVHeads: kvHeads, HeadDimK: headDim, MaxSequences: 2, MaxBatch: 8, MaxQHeads: qHeads}
	desc := testDesc()
	desc.NLayers = 0
	named := linear
	named.DTypeK, named.HeadDimV = F32, headDim
	model, err := NewHybrid(device(t), []Layer{
		{linear, LightningDesc{DraftStates: 1}}, {desc, CausalDesc{}}, {named, &LightningDesc{DraftStates: 1}},
	})
	must(t, err)
	defer model.Close()
	children, err := model.Children()
	must(t, err)
	equal(t, len(children), 2)
	is(t, model.BindDecay(0, 3, ones(kvHeads)), NotSupported, "")
	for _, layer := range []int{0, 2} {
		is(t, model.BindDecay(layer, layer+1, ones(kvHeads+1)), InvalidArgument, "3 elements, not 2")
		must(t, model.BindDecay(layer, layer+1, ones(kvHeads)))
	}
	k, v, q, out := arrays(2)
	must(t, model.Begin([]int32{0, 1}, []int32{0, 0}))
	for layer := 0; layer < 3; layer++ {
		must(t, model.PutAttention(layer, kv(k, 2), kv(v, 2), qo(q, 2), qo(out, 2)))
	}
	must(t, model.CommitPrefix([]int32{0}, []int32{1}))
	info, err := model.Sequence(0)
	must(t, err)
	equal(t, info.Next, 1)
}
