package kvc

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestClose(t *testing.T) {
	cache := open(t)
	var all sync.WaitGroup
	for i := 0; i < 16; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			must(t, cache.Close())
		}()
	}
	all.Wait()
	is(t, cache.Commit(), InvalidHandle, "")
	_, err := cache.Digest()
	is(t, err, InvalidHandle, "")
}

// stays collects garbage, which must leave the cache of a key.
func stays(t *testing.T, key *Cache) {
	t.Helper()
	for i := 0; i < 20; i++ {
		runtime.GC()
		time.Sleep(time.Millisecond)
		if _, err := key.Stats(); err != nil {
			t.Fatal("the cache is gone while a view of it is in use: ", err)
		}
	}
}

// goes collects garbage until the cache of a key is closed.
func goes(t *testing.T, key *Cache) {
	t.Helper()
	for i := 0; i < 200; i++ {
		runtime.GC()
		if _, err := key.Stats(); errors.Is(err, InvalidHandle) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a cache that nobody holds is still open")
}

// collect collects garbage and returns when what that closes is closed. What is found in one collection is closed in any order, but
// before what is found in the next.
func collect(t *testing.T) {
	t.Helper()
	for i := 0; i < 2; i++ {
		closed := make(chan struct{})
		func() { whenForgotten(new([64]byte), closed, func(c chan struct{}) { close(c) }) }()
		runtime.GC()
		select {
		case <-closed:
		case <-time.After(10 * time.Second): // the collector may keep it for longer
		}
	}
}

func TestForgottenCachesAreClosed(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	forget := func() Cache {
		cache, err := NewCache(device, testDesc(), CausalDesc{})
		must(t, err)
		return Cache{handle: cache.handle} // a copy of the key, which does not keep the cache
	}
	key := forget()
	goes(t, &key)
}

// The collector does not know C's memory: a view must keep its cache alive.
func TestViewsOfRowsKeepTheirCache(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	show := func() (Cache, Codes) {
		cache, err := NewCache(device, rowsDesc(stored{dtype: F32}), TransformerDesc{})
		must(t, err)
		must(t, cache.BeginRows(1, nil))
		must(t, cache.Commit())
		_, v, err := cache.RowsView(0)
		must(t, err)
		return Cache{handle: cache.handle}, v // a copy of the key, which does not keep the cache
	}
	key, view := show()
	stays(t, &key)
	if got := view.Codes.Float32(rowLength, 1)[5]; got != 0 {
		t.Errorf("a column that was not put holds %v", got)
	}
	runtime.KeepAlive(view)
	goes(t, &key)
}

// The same of views that a pass lends.
func TestViewsKeepTheirCache(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	for _, lend := range []func(*Cache) (View, error){
		func(c *Cache) (View, error) { _, v, err := c.Get(0); return v, err },
		func(c *Cache) (View, error) { _, v, err := c.GetCodes(0); return v.Codes, err },
	} {
		show := func() (Cache, View) {
			cache, err := NewCache(device, testDesc(), CausalDesc{})
			must(t, err)
			fill(t, cache, 0, 0, 3)
			v, err := lend(cache)
			must(t, err)
			return Cache{handle: cache.handle}, v // a copy of the key, which does not keep the cache
		}
		key, view := show()
		stays(t, &key)
		if got := view.Float32(0, 1)[5]; got != 1 {
			t.Errorf("cell 0 holds %v", got)
		}
		runtime.KeepAlive(view)
		goes(t, &key)
	}
}

// A view through a wrapper keeps the child that lends it.
func TestStateViewsKeepTheirCache(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	show := func() (Cache, StateView) {
		model, err := NewHybrid(device, []Layer{{statesDesc(0), testStates()}})
		must(t, err)
		must(t, model.Begin([]int32{0}, []int32{0}))
		view, err := model.StateView(0, Recurrent)
		must(t, err)
		view.Float32(view.Slots - 1)[5] = 7
		children, err := model.Children()
		must(t, err)
		return Cache{handle: children[0].handle}, view // a copy of the key, which does not keep the cache
	}
	key, view := show()
	stays(t, &key)
	if got := view.Float32(view.Slots - 1)[5]; got != 7 {
		t.Errorf("the state holds %v", got)
	}
	runtime.KeepAlive(view)
	goes(t, &key)
}

// Each goroutine has a child of its own: none is busy.
func TestGoroutinesPutChildrenAtTheSameTime(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	defer device.Close()
	desc := testDesc()
	desc.NLayers = 0
	model, err := NewHybrid(device, []Layer{{desc, CausalDesc{}}, {desc, CausalDesc{Reach: 4}}, {statesDesc(0), testStates()}})
	must(t, err)
	defer model.Close()
	children, err := model.Children()
	must(t, err)
	k, v, _, _ := arrays(1)
	state, x := ones(6), ones(2)
	for pass := 0; pass < 50; pass++ {
		must(t, model.Begin([]int32{int32(pass % 20)}, []int32{0}))
		var all sync.WaitGroup
		put := func(call func() error) {
			all.Add(1)
			go func() {
				defer all.Done()
				for i := 0; i < 20; i++ {
					if err := call(); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		put(func() error { return children[0].Put(0, kv(k, 1), kv(v, 1)) })
		put(func() error { return children[1].Put(0, kv(k, 1), kv(v, 1)) })
		put(func() error {
			if err := children[2].StatePut(0, Recurrent, Float32(state, 1, 6)); err != nil {
				return err
			}
			return children[2].StateConv(0, Float32(x, 1, 2))
		})
		all.Wait()
		must(t, model.Commit())
		if pass%20 == 19 {
			must(t, model.Remove(0, 0, SeqEnd))
		}
	}
	must(t, model.Check())
}

// Layers keep what they need of an operator that is closed or collected; overlapping forwards are Busy.
func TestOperatorsAmongGoroutines(t *testing.T) {
	device := device(t)
	cache := open(t)
	bind := func() Operator {
		op, err := NewOperator(device, "vanilla", OperatorDesc{DropoutProb: 0.5})
		must(t, err)
		must(t, cache.BindOperator(0, nLayers, ModeTrain, op))
		return Operator{handle: op.handle} // a copy of the key, which does not keep the operator
	}
	key := bind()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		collect(t) // a query at the same time would make the operator busy, and nobody closes it again
		if _, _, err := key.Query(); errors.Is(err, InvalidHandle) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an operator that nobody holds is still open")
		}
	}
	k, v, q, out := arrays(1)
	must(t, cache.Begin([]int32{0}, []int32{0}))
	must(t, cache.PutAttentionWith(0, kv(k, 1), kv(v, 1), qo(q, 1), qo(out, 1), AttentionExtra{Dropout: true}))

	op := newOperator(t, device, "flash", forwardBounds())
	var all sync.WaitGroup
	for i := 0; i < 8; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			x, out := make([]float32, forwardHeads*forwardSize), make([]float32, forwardHeads*forwardSize)
			q, kv := Float32(x, 1, 1, forwardHeads, forwardSize), Float32(x, 1, 2, 1, forwardSize)
			for n := 0; n < 500; n++ {
				err := op.Forward(ForwardDesc{}, q, kv, kv, Float32(out, 1, 1, forwardHeads, forwardSize))
				if err != nil && !errors.Is(err, Busy) {
					t.Error(err)
				}
				if _, err := device.Supports("", OperatorNeeds{Mode: ModePrefill}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	all.Wait()
}

// Runs queries the number of runs in one call and reads them in another.
func TestRunsWhileTheirNumberChanges(t *testing.T) {
	cache := open(t)
	positions := []int32{0, 2, 4, 6, 8, 10, 12, 14} // gaps: a run for each
	stop, done := make(chan struct{}), make(chan struct{})
	again := func(call func() error) {
		for errors.Is(call(), Busy) {
		}
	}
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				again(func() error { return cache.Begin(positions, make([]int32, len(positions))) })
				again(cache.Commit)
				again(func() error { return cache.Remove(0, 0, SeqEnd) })
			}
		}
	}()
	defer func() { close(stop); <-done }()
	seen := map[int]int{}
	for deadline := time.Now().Add(time.Minute); seen[0] < 2000 || seen[8] < 2000; {
		runs, err := cache.Runs(0, 0)
		if err != nil {
			is(t, err, Busy, "")
			continue
		}
		seen[len(runs)]++
		for i, run := range runs {
			if len(runs) != 8 || run.Length != 1 || run.Position != positions[i] {
				t.Fatalf("after %v results: run %d of %v", seen, i, runs)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the number of runs did not change: %v", seen)
		}
	}
}

// If the failing call and the copy of its message were two foreign calls, the goroutine could change
// threads between them and lose the message. Each goroutine must find its own number in its message.
func TestMessagesAreNeverLost(t *testing.T) {
	const goroutines, calls = 64, 500
	var all sync.WaitGroup
	lost := make(chan string, goroutines)
	for i := 0; i < goroutines; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
			if err != nil {
				lost <- err.Error()
				return
			}
			defer device.Close()
			cache, err := NewCache(device, CacheDesc{
				NLayers: 1, NKVHeads: 1, HeadDimK: 8, MaxSequences: 1, Capacity: 8, MaxBatch: 1,
			}, CausalDesc{})
			if err != nil {
				lost <- err.Error()
				return
			}
			defer cache.Close()
			data := make([]float32, 8)
			for call := 0; call < calls; call++ {
				layer := 1000 + i*calls + call
				err := cache.Begin([]int32{0}, []int32{0})
				if err == nil {
					err = cache.Put(layer, Float32(data, 1, 1, 8), Float32(data, 1, 1, 8))
				}
				if err == nil || !strings.Contains(err.Error(), fmt.Sprint("layer ", layer, " ")) {
					lost <- fmt.Sprintf("layer %d: %v", layer, err)
					return
				}
				if err := cache.Abort(); err != nil {
					lost <- err.Error()
					return
				}
			}
		}(i)
	}
	all.Wait()
	close(lost)
	for message := range lost {
		t.Error(message)
	}
}

// Many goroutines call one cache: an overlap returns Busy, and nothing else goes wrong.
func TestOverlapIsBusy(t *testing.T) {
	cache := open(t)
	var all sync.WaitGroup
	for i := 0; i < 8; i++ {
		all.Add(1)
		go func(sequence int) {
			defer all.Done()
			for n := 0; n < 500; n++ {
				if err := cache.Remove(sequence, 0, SeqEnd); err != nil && !errors.Is(err, Busy) {
					t.Error(err)
				}
				if _, err := cache.Stats(); err != nil { // the one method that is never Busy
					t.Error(err)
				}
			}
		}(i % 2)
	}
	all.Wait()
	must(t, cache.Check())
}
