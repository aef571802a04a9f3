package kvc

// #include "shim.h"
import "C"

import "unsafe"

// Status says what kind of failure an error is. It is an error itself, for errors.Is:
//
//	if errors.Is(err, kvc.CacheFull) { … }
type Status int32

// The statuses that a failing call may have; the numbers are pinned for ever.
const (
	InvalidArgument       Status = C.KVC_E_INVALID_ARGUMENT        // a number outside its bounds, an unknown flag
	InvalidHandle         Status = C.KVC_E_HANDLE                  // closed, or from before a fork
	OutOfMemory           Status = C.KVC_E_OUT_OF_MEMORY           // the system or the handle table has no more
	NotSupported          Status = C.KVC_E_NOT_SUPPORTED           // well formed, but this cache cannot do it
	BadState              Status = C.KVC_E_BAD_STATE               // no pass is open, a layer was not put, bound too late
	Busy                  Status = C.KVC_E_BUSY                    // another goroutine is inside a call that excludes this one
	Shape                 Status = C.KVC_E_SHAPE                   // wrong number of dimensions or extent, or a slice too short
	Dtype                 Status = C.KVC_E_DTYPE                   // an element type that this argument does not take
	Overflow              Status = C.KVC_E_OVERFLOW                // a product of sizes does not fit
	Version               Status = C.KVC_E_VERSION                 // a library of another version, or a setting that it does not know
	CacheFull             Status = C.KVC_E_CACHE_FULL              // fewer free cells than tokens
	WindowLost            Status = C.KVC_E_WINDOW_LOST             // what a continuation would need has slid out
	NotFound              Status = C.KVC_E_NOT_FOUND               // there is no such thing
	InvalidRecurrentShape Status = C.KVC_E_INVALID_RECURRENT_SHAPE // dimensions that are not the size of a state
	DeviceFailure         Status = C.KVC_E_DEVICE                  // the device failed; only Close and Stats work
	DeviceMismatch        Status = C.KVC_E_DEVICE_MISMATCH         // a tensor lies on another device than the cache
	BackendUnavailable    Status = C.KVC_E_BACKEND_UNAVAILABLE     // no such device on this machine
	IO                    Status = C.KVC_E_IO                      // reading or writing failed
	Corrupt               Status = C.KVC_E_CORRUPT                 // stored data is damaged
	Internal              Status = C.KVC_E_INTERNAL                // a bug inside kvc; only Close and Stats work
)

// String is the name of a status, "CACHE_FULL"; "UNKNOWN" for a number that is none.
func (s Status) String() string { return C.GoString(C.kvc_status_name(C.kvc_status(s))) }

// Error makes a Status an error.
func (s Status) Error() string { return "kvc: " + s.String() }

// Error is what every failing call of this package returns: the status to act on and the message for people.
// A call that fails has changed nothing (DeviceFailure and Internal excepted).
type Error struct {
	Status  Status
	Message string
}

func (e *Error) Error() string { return e.Status.String() + ": " + e.Message }

// Unwrap lets errors.Is find the status.
func (e *Error) Unwrap() error { return e.Status }

// failure takes over what a foreign call brought back.
func failure(result C.go_result) error {
	if result.status == C.KVC_OK {
		return nil
	}
	err := &Error{Status: Status(result.status)}
	if result.message != nil {
		err.Message = C.GoString(result.message)
		C.free(unsafe.Pointer(result.message))
	}
	return err
}
