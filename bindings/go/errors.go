package kvc

// #include "shim.h"
import "C"

import "unsafe"

// Status is the kind of a failure. It is an error itself, for errors.Is:
//
//	if errors.Is(err, kvc.CacheFull) { … }
type Status int32

// The statuses of failing calls. Their numbers never change.
const (
	InvalidArgument       Status = C.KVC_E_INVALID_ARGUMENT        // a number out of bounds, an unknown flag
	InvalidHandle         Status = C.KVC_E_HANDLE                  // nil, closed, or made before a fork
	OutOfMemory           Status = C.KVC_E_OUT_OF_MEMORY           // the system or the handle table is exhausted
	NotSupported          Status = C.KVC_E_NOT_SUPPORTED           // well formed, but this cache cannot do it
	BadState              Status = C.KVC_E_BAD_STATE               // no pass is open, a layer was not put, constants were bound too late
	Busy                  Status = C.KVC_E_BUSY                    // another goroutine is inside a call that excludes this one
	Shape                 Status = C.KVC_E_SHAPE                   // a wrong number of dimensions or extent, or a slice that is too short
	Dtype                 Status = C.KVC_E_DTYPE                   // this argument does not take this element type
	Overflow              Status = C.KVC_E_OVERFLOW                // a product of sizes does not fit
	Version               Status = C.KVC_E_VERSION                 // the library has another version, or does not know a setting
	CacheFull             Status = C.KVC_E_CACHE_FULL              // fewer free cells than tokens
	WindowLost            Status = C.KVC_E_WINDOW_LOST             // tokens that the continuation needs were released
	NotFound              Status = C.KVC_E_NOT_FOUND               // there is no such thing
	InvalidRecurrentShape Status = C.KVC_E_INVALID_RECURRENT_SHAPE // the dimensions are not the size of a state
	DeviceFailure         Status = C.KVC_E_DEVICE                  // the device failed; only Close and Stats work
	DeviceMismatch        Status = C.KVC_E_DEVICE_MISMATCH         // a tensor is on another device than the cache
	BackendUnavailable    Status = C.KVC_E_BACKEND_UNAVAILABLE     // no such device on this machine
	IO                    Status = C.KVC_E_IO                      // reading or writing failed
	Corrupt               Status = C.KVC_E_CORRUPT                 // stored data is damaged
	Internal              Status = C.KVC_E_INTERNAL                // a bug inside kvc; only Close and Stats work
)

// String returns the name of a status, for example "CACHE_FULL", or "UNKNOWN" if there is none.
func (s Status) String() string { return C.GoString(C.kvc_status_name(C.kvc_status(s))) }

// Error makes a Status an error.
func (s Status) Error() string { return "kvc: " + s.String() }

// Error is what every failing call of this package returns: the status for programs and the message
// for people. A call that fails has changed nothing (DeviceFailure and Internal excepted).
type Error struct {
	Status  Status
	Message string
}

func (e *Error) Error() string { return e.Status.String() + ": " + e.Message }

// Unwrap lets errors.Is find the status.
func (e *Error) Unwrap() error { return e.Status }

// failure returns the result of a foreign call as an error and frees its message.
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
