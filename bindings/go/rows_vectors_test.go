package kvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// readVectors reads a file of tests/conformance/vectors.
func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "tests", "conformance", "vectors", name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("outside the repository: ", err)
	}
	must(t, err)
	must(t, json.Unmarshal(text, into))
}

type rowsCache struct {
	Batch, Length int32
	MaxQ          int32 `json:"max_q"`
	Reach         int32
	Ring          bool
	NotCausal     bool `json:"not_causal"`
	Starts        []int32
}

// rowsStep is a call on a transformer cache, and what it must do.
type rowsStep struct {
	Op, Status     string
	QLen           int `json:"q_len"`
	Valid          []int32
	Value          [][]int32
	AttentionMask  [][]int32 `json:"attention_mask"`
	TokenTypes     [][]int32 `json:"token_types"`
	NotCausal      int       `json:"not_causal"`
	PostPadded     int
	Except         []int32
	Keep           []int32
	Sequence       json.RawMessage // a number or a list
	Src, Dst       json.RawMessage
	Index, Starts  []int32
	Row, Slot      int
	Want, Got, Len int
	Begin          int
	End            *int
	Other          *struct {
		rowsCache
		Rows []struct {
			Values []int32
			Starts int32
		}
	}
	Visible [][][]int32
	Rows    []any // [first, index, starts, values]
}

func numberOf(t *testing.T, text json.RawMessage) (n int) {
	t.Helper()
	must(t, json.Unmarshal(text, &n))
	return n
}

func numbersOf(t *testing.T, text json.RawMessage) (all []int32) {
	t.Helper()
	must(t, json.Unmarshal(text, &all))
	return all
}

// rowsPlayer replays a script on a cache of one layer whose keys and values are the numbers of tokens.
type rowsPlayer struct {
	*Cache
	shape   rowsCache
	columns int
	qLen    int // of the open pass
}

func playRows(t *testing.T, device *Device, shape rowsCache) *rowsPlayer {
	t.Helper()
	cache, err := NewCache(device, CacheDesc{
		NLayers: 1, NKVHeads: 1, HeadDimK: 1, MaxSequences: shape.Batch, Capacity: shape.Length, MaxBatch: shape.Batch * shape.MaxQ,
	}, TransformerDesc{Ring: shape.Ring, NotCausal: shape.NotCausal, Reach: shape.Reach})
	must(t, err)
	t.Cleanup(func() { must(t, cache.Close()) })
	p := &rowsPlayer{Cache: cache, shape: shape, columns: int(shape.Length)}
	if shape.Ring {
		p.columns += int(shape.MaxQ)
	}
	return p
}

func flat(rows [][]int32) (all []int32) {
	for _, row := range rows {
		all = append(all, row...)
	}
	return all
}

func (p *rowsPlayer) begin(t *testing.T, step *rowsStep) error {
	extra := RowsExtra{TokenTypes: flat(step.TokenTypes), NotCausal: step.NotCausal != 0, PostPadded: step.PostPadded != 0}
	if step.AttentionMask != nil {
		shown, rows := flat(step.AttentionMask), len(step.AttentionMask)
		extra.AttentionMask = Int32(shown, rows, len(shown)/rows)
	}
	fits := p.FitsRowsWith(step.QLen, step.Valid, extra)
	if step.Op == "fits" {
		return fits
	}
	err := p.BeginRowsWith(step.QLen, step.Valid, extra)
	if !reflect.DeepEqual(fits, err) {
		t.Errorf("FitsRowsWith returns %v, BeginRowsWith %v", fits, err)
	}
	if err != nil {
		return err
	}
	p.qLen = step.QLen
	x := make([]float32, 0, int(p.shape.Batch)*step.QLen)
	for _, value := range flat(step.Value) {
		x = append(x, float32(value))
	}
	tensor := Float32(x, int(p.shape.Batch), step.QLen, 1, 1)
	return p.Put(0, tensor, tensor)
}

// other makes the cache that a step inserts.
func (p *rowsPlayer) other(t *testing.T, device *Device, step *rowsStep) *Cache {
	t.Helper()
	shape := step.Other.rowsCache
	shape.Batch = int32(len(step.Other.Rows))
	made, first := playRows(t, device, shape), rowsStep{Op: "begin", QLen: int(shape.MaxQ)}
	var starts []int32
	for _, row := range step.Other.Rows {
		first.Valid = append(first.Valid, int32(len(row.Values)))
		first.Value = append(first.Value, append(row.Values, make([]int32, int(shape.MaxQ)-len(row.Values))...))
		starts = append(starts, row.Starts)
	}
	must(t, made.begin(t, &first))
	must(t, made.Commit())
	must(t, made.RowsSet(0, nil, starts))
	return made.Cache
}

func (p *rowsPlayer) play(t *testing.T, device *Device, step *rowsStep) (got int, err error) {
	switch step.Op {
	case "begin", "fits":
		return 0, p.begin(t, step)
	case "set_causal":
		return 0, p.SetCausal(step.Except)
	case "commit":
		return 0, p.Commit()
	case "commit_prefix":
		return 0, p.CommitPrefix(numbersOf(t, step.Sequence), step.Keep)
	case "abort":
		return 0, p.Abort()
	case "can_resume":
		return p.CanResume(numberOf(t, step.Sequence), step.Want)
	case "resume":
		return p.Resume(numberOf(t, step.Sequence), step.Want)
	case "copy_prefix":
		return p.CopyPrefix(numberOf(t, step.Src), numberOf(t, step.Dst), step.Len)
	case "reorder":
		return 0, p.Reorder(numbersOf(t, step.Dst), numbersOf(t, step.Src))
	case "remove":
		end := SeqEnd
		if step.End != nil {
			end = *step.End
		}
		return 0, p.Remove(numberOf(t, step.Sequence), step.Begin, end)
	case "rows_set":
		return 0, p.RowsSet(step.Row, step.Index, step.Starts)
	case "insert":
		return 0, p.Insert(p.other(t, device, step), step.Slot)
	}
	t.Fatalf("no call is called %s", step.Op)
	return 0, nil
}

// visible returns, per row and token, the positions that the mask shows. Attention with queries of zeros
// must return the mean of their values.
func (p *rowsPlayer) visible(t *testing.T) (all [][][]int32) {
	t.Helper()
	batch := int(p.shape.Batch)
	mask, q, out := make([]bool, batch*p.qLen*p.columns), make([]float32, batch*p.qLen), make([]float32, batch*p.qLen)
	must(t, p.Mask(0, Bool(mask, batch, 1, p.qLen, p.columns)))
	must(t, p.Attention(0, Float32(q, batch, p.qLen, 1, 1), Float32(out, batch, p.qLen, 1, 1)))
	_, v, err := p.RowsView(0)
	must(t, err)
	index := make([]int32, batch)
	must(t, p.RowsQuery(0, index, nil))
	for row := 0; row < batch; row++ {
		all = append(all, [][]int32{})
		for i := 0; i < p.qLen; i++ {
			seen, sum, token := []int32{}, 0.0, row*p.qLen+i
			from := int(index[row]) - p.columns
			if from < 0 {
				from = 0
			}
			for position := from; position < int(index[row]); position++ {
				if column := position % p.columns; mask[token*p.columns+column] {
					seen = append(seen, int32(position))
					sum += float64(v.Codes.Float32(row*v.Codes.Columns+column, 0)[0])
				}
			}
			all[row] = append(all[row], seen)
			if mean := sum / math.Max(1, float64(len(seen))); math.Abs(float64(out[token])-mean) > 1e-4*(1+mean) {
				t.Errorf("token %d of row %d gets %v, not %v", i, row, out[token], mean)
			}
		}
	}
	return all
}

// held returns what the rows hold as the vectors tell it.
func (p *rowsPlayer) held(t *testing.T) (all []any) {
	t.Helper()
	index, starts := make([]int32, p.shape.Batch), make([]int32, p.shape.Batch)
	must(t, p.RowsQuery(0, index, starts))
	for row := range index {
		info, err := p.Sequence(row)
		must(t, err)
		values := make([]float32, info.Count)
		must(t, p.Gather(0, row, Tensor{}, Float32(values, info.Count, 1, 1)))
		numbers := make([]any, len(values))
		for i, value := range values {
			numbers[i] = float64(value)
		}
		all = append(all, []any{float64(info.First), float64(index[row]), float64(starts[row]), numbers})
	}
	must(t, p.Check())
	return all
}

func (p *rowsPlayer) replay(t *testing.T, device *Device, step *rowsStep) {
	before, err := p.Digest()
	must(t, err)
	got, err := p.play(t, device, step)
	status := "OK"
	var failed *Error
	if errors.As(err, &failed) {
		status = failed.Status.String()
	}
	if status != step.Status || err == nil && got != step.Got {
		t.Fatalf("returns %d, %v", got, err)
	}
	if err != nil {
		after, err := p.Digest()
		must(t, err)
		equal(t, after, before)
	}
	if step.Visible != nil {
		equal(t, p.visible(t), step.Visible)
	}
	equal(t, p.held(t), step.Rows)
}

func TestVectorsOfRows(t *testing.T) {
	var all struct {
		Transformer []struct {
			Name  string
			Cache rowsCache
			Steps []rowsStep
		}
	}
	readVectors(t, "rows.json", &all)
	equal(t, len(all.Transformer), 94)
	device := device(t)
	for _, script := range all.Transformer {
		p := playRows(t, device, script.Cache)
		if script.Cache.Starts != nil {
			must(t, p.RowsSet(0, nil, script.Cache.Starts))
		}
		for i := range script.Steps {
			step := &script.Steps[i]
			t.Run(fmt.Sprintf("%s/%d %s", script.Name, i, step.Op), func(t *testing.T) { p.replay(t, device, step) })
		}
	}
}
