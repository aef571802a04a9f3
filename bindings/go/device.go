package kvc

// #include "shim.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// DeviceOptions of OpenDevice; zero: all defaults.
type DeviceOptions struct {
	NThreads int // threads that share one attention call, the caller's included; 0: as many as allowed

	DeviceAllocator Allocator // of a GPU's memory; zero: CUDA's own. NotSupported on the CPU
}

// Allocator is a kvc_allocator: the addresses of two functions of C, which may run on any thread, and what
// they are called with. kvc/device.h says what they have to do.
type Allocator struct {
	User, Alloc, Free unsafe.Pointer
}

// Device is where memory is and how many threads work. Any goroutine may use it.
type Device struct {
	handle *C.kvc_device
	once   closing
}

// key returns the handle, null for a nil device.
func (d *Device) key() *C.kvc_device {
	if d == nil {
		return nil
	}
	return d.handle
}

// OpenDevice opens "cpu" and starts its threads, or a GPU, "cuda:0". It returns Version if the loaded library has
// another minor version than the headers that this package was compiled with.
func OpenDevice(name string, options DeviceOptions) (*Device, error) {
	if err := compatible(VersionNumber()); err != nil {
		return nil, err
	}
	nThreads, err := number("NThreads", options.NThreads)
	if err != nil {
		return nil, err
	}
	text, err := cString(name)
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(text))
	memory := options.DeviceAllocator
	out := C.go_device_open(text, nThreads, memory.User, memory.Alloc, memory.Free)
	if err := failure(out.result); err != nil {
		return nil, err
	}
	d := &Device{handle: out.device}
	d.once.open = true
	whenForgotten(d, out.device, func(h *C.kvc_device) { dropped(C.go_device_close(h)) })
	runtime.KeepAlive(d)
	return d, nil
}

// compatible refuses libraries whose structs and functions may differ from the headers.
func compatible(library uint32) error {
	header := uint32(C.go_header_version())
	if library>>8 == header>>8 {
		return nil
	}
	return &Error{Version, fmt.Sprintf("this program was compiled for kvc %d.%d and has loaded kvc %d.%d: "+
		"compile it again, or put the other libkvc first in LD_LIBRARY_PATH",
		header>>16, header>>8&0xff, library>>16, library>>8&0xff)}
}

// Close closes the device; its caches keep what they need. A second Close does nothing.
func (d *Device) Close() error {
	if d == nil {
		return &Error{InvalidHandle, "the device is nil"}
	}
	err := d.once.close(func() C.go_result { return C.go_device_close(d.handle) })
	runtime.KeepAlive(d)
	return err
}

// Synchronize waits until the device has done everything that it was given so far. It returns DeviceFailure if a GPU has
// failed. On the CPU it returns at once.
func (d *Device) Synchronize() error {
	if d == nil {
		return &Error{InvalidHandle, "the device is nil"}
	}
	err := failure(C.go_device_synchronize(d.handle))
	runtime.KeepAlive(d)
	return err
}
