package kvc

// #include "shim.h"
import "C"

import "runtime"

// CanResume returns the largest position up to want at which the sequence can continue. Nothing
// changes.
func (c *Cache) CanResume(sequence, want int) (best int, err error) {
	var narrow narrowing
	of, to := narrow.number("sequence", sequence), narrow.number("want", want)
	if narrow.err != nil {
		return 0, narrow.err
	}
	out := C.go_can_resume(c.key(), of, to)
	runtime.KeepAlive(c)
	return int(out.number), failure(out.result)
}

// Resume drops everything at or behind the position that CanResume returns, and returns that position:
// continue there. It may be less than want, even 0, where a window has slid.
func (c *Cache) Resume(sequence, want int) (got int, err error) {
	var narrow narrowing
	of, to := narrow.number("sequence", sequence), narrow.number("want", want)
	if narrow.err != nil {
		return 0, narrow.err
	}
	out := C.go_resume(c.key(), of, to)
	runtime.KeepAlive(c)
	return int(out.number), failure(out.result)
}

// CopyPrefix makes destination share the first tokens of source and returns where destination
// continues: continue there. It may be less than length, even 0, where a window has slid or source
// holds less.
func (c *Cache) CopyPrefix(source, destination, length int) (got int, err error) {
	var narrow narrowing
	from, into, n := narrow.number("source", source), narrow.number("destination", destination), narrow.number("length", length)
	if narrow.err != nil {
		return 0, narrow.err
	}
	out := C.go_copy_prefix(c.key(), from, into, n)
	runtime.KeepAlive(c)
	return int(out.number), failure(out.result)
}

// Reorder makes several whole copies at once, of what each source was before the call.
func (c *Cache) Reorder(destinations, sources []int32) error {
	n, err := together("destinations and sources", len(destinations), len(sources))
	if err != nil {
		return err
	}
	err = failure(C.go_reorder(c.key(), n, numbers(destinations), numbers(sources)))
	runtime.KeepAlive(c)
	return err
}

// Remove releases the positions [begin, end) of a sequence; later positions move down. SeqEnd: to
// the end.
func (c *Cache) Remove(sequence, begin, end int) error {
	var narrow narrowing
	of, from, to := narrow.number("sequence", sequence), narrow.number("begin", begin), narrow.number("end", end)
	if narrow.err != nil {
		return narrow.err
	}
	err := failure(C.go_remove(c.key(), of, from, to))
	runtime.KeepAlive(c)
	return err
}

// CanRemove returns the error that Remove would return now. Nothing changes.
func (c *Cache) CanRemove(sequence, begin, end int) error {
	var narrow narrowing
	of, from, to := narrow.number("sequence", sequence), narrow.number("begin", begin), narrow.number("end", end)
	if narrow.err != nil {
		return narrow.err
	}
	err := failure(C.go_can_remove(c.key(), of, from, to))
	runtime.KeepAlive(c)
	return err
}

// ---- Watching -----------------------------------------------------------------------------------

// SequenceInfo is what a sequence holds. See kvc_sequence_info.
type SequenceInfo struct {
	First, Next, Count, Room, LostBelow int
	Approximate                         bool // a recurrent state contains what was removed from its middle
}

// Sequence returns what a sequence holds.
func (c *Cache) Sequence(sequence int) (SequenceInfo, error) {
	of, err := number("sequence", sequence)
	if err != nil {
		return SequenceInfo{}, err
	}
	out := C.go_sequence_query(c.key(), of)
	runtime.KeepAlive(c)
	i := &out.info
	return SequenceInfo{
		int(i.first), int(i.next), int(i.count), int(i.room), int(i.lost_below),
		i.flags&C.KVC_SEQUENCE_APPROXIMATE != 0,
	}, failure(out.result)
}

// State of a cache. A later library may return a state that has no name here.
type State uint32

// The states of a cache.
const (
	Idle     State = C.KVC_STATE_IDLE
	InPass   State = C.KVC_STATE_PASS
	Reserve  State = C.KVC_STATE_RESERVE
	Poisoned State = C.KVC_STATE_POISONED // only Close and Stats work
)

// Stats counts what a cache holds. See kvc_stats.
type Stats struct {
	State                                        State
	Cells, CellsUsed, CellsShared, Bytes, Passes uint64
}

// Stats counts what the cache holds, at one moment between two calls. It may be called while a pass
// runs in another goroutine, and never returns Busy; after Close it returns InvalidHandle.
func (c *Cache) Stats() (Stats, error) {
	out := C.go_cache_stats(c.key())
	runtime.KeepAlive(c)
	s := &out.stats
	return Stats{
		State: State(s.state), Cells: uint64(s.cells), CellsUsed: uint64(s.cells_used),
		CellsShared: uint64(s.cells_shared), Bytes: uint64(s.bytes), Passes: uint64(s.passes),
	}, failure(out.result)
}

// Digest returns 128 bits over everything observable; as text, 16 hexadecimal digits of each half in
// this order. It reads all keys and values: not for the hot path.
func (c *Cache) Digest() ([2]uint64, error) {
	out := C.go_state_digest(c.key())
	runtime.KeepAlive(c)
	return [2]uint64{uint64(out.first), uint64(out.second)}, failure(out.result)
}

// Check verifies every invariant and names a broken one.
func (c *Cache) Check() error {
	err := failure(C.go_check(c.key()))
	runtime.KeepAlive(c)
	return err
}
