package kvc

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// DeviceOptions of OpenDevice; zero: all defaults.
type DeviceOptions struct {
	NThreads int // threads that share one attention call, the caller's included; 0: as many as are allowed
}

// Device is where memory lies and how many threads work. It may be used from any goroutine.
type Device struct {
	handle *C.kvc_device
	once   closing
}

// OpenDevice opens "cpu" and starts its threads.
func OpenDevice(name string, options DeviceOptions) (*Device, error) {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	answer := C.go_device_open(text, number(options.NThreads))
	if err := failure(answer.result); err != nil {
		return nil, err
	}
	d := &Device{handle: answer.device}
	d.once.open = true
	whenForgotten(d, answer.device, func(h *C.kvc_device) { dropped(C.go_device_close(h)) })
	runtime.KeepAlive(d)
	return d, nil
}

// Close ends the device; caches made on it keep what they need. Closing twice is fine.
func (d *Device) Close() error {
	err := d.once.close(func() C.go_result { return C.go_device_close(d.handle) })
	runtime.KeepAlive(d)
	return err
}
