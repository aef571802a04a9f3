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
	NThreads int // threads that share one attention call, the caller's included; 0: as many as are allowed
}

// Device is where memory lies and how many threads work. It may be used from any goroutine.
type Device struct {
	handle *C.kvc_device
	once   closing
}

// OpenDevice opens "cpu" and starts its threads. Version: the library that was loaded is not of the minor version whose
// headers this package was compiled with.
func OpenDevice(name string, options DeviceOptions) (*Device, error) {
	if err := compatible(VersionNumber()); err != nil {
		return nil, err
	}
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

// compatible refuses libraries whose structs and functions may differ from what this package was compiled with.
func compatible(library uint32) error {
	header := uint32(C.go_header_version())
	if library>>8 == header>>8 {
		return nil
	}
	return &Error{Version, fmt.Sprintf("compiled for kvc %d.%d, loaded kvc %d.%d",
		header>>16, header>>8&0xff, library>>16, library>>8&0xff)}
}

// Close ends the device; caches made on it keep what they need. Closing twice is fine.
func (d *Device) Close() error {
	err := d.once.close(func() C.go_result { return C.go_device_close(d.handle) })
	runtime.KeepAlive(d)
	return err
}
